/** `underpass analyze`: what of the written configuration will not do what was meant, by the codes of Istio's analysis messages. */
import { readdir, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { Option, type Command } from 'commander';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { isRefusal, KubeApiError, KubeClient, resourceOf, resourcePath } from '../common/kube/client.js';
import { inClusterServer, readKubeconfig } from '../common/kube/kubeconfig.js';
import { kinds } from '../common/kube/kinds.js';
import type { KubeObject } from '../common/kube/types.js';
import { loadDirectory, loadFile, mergeResults, parseYaml, type LoadResult } from '../common/kube/yaml.js';
import { References } from '../pilot/validation/references.js';
import { checkMore } from './analyze/checks.js';
import { findingOf, LEVELS, type Finding, type Level } from './analyze/codes.js';
import { FORMATS, paint, print, type Format, type Style } from './output.js';
import { whileWaiting } from './progress.js';

interface Options {
  filename: string[];
  recursive?: boolean;
  namespace?: string;
  kubeconfig?: string;
  context?: string;
  suppress: { code: string; resource: RegExp }[];
  failureThreshold: Level;
  output: Format;
  clusterDomain: string;
  rootNamespace: string;
}

const HELP = `
Without a path it looks at the cluster of --kubeconfig ($KUBECONFIG, else ~/.kube/config). Codes that begin with IST mean what
https://istio.io/latest/docs/reference/config/analysis/ says of them; UP ones are this project's own: docs/reference/analysis.md
lists all. Exit code 1 when something is at least as bad as --failure-threshold.
It needs list of what it looks at: Services, Pods, Namespaces, and Istio's and the Gateway API's kinds. Secrets are not read, so
that a cluster's Gateways are not held against their certificates.
Examples:
  underpass analyze -f manifests/ -R
  underpass analyze --namespace shop --suppress 'IST0118=Service *.shop'`;

const CORE: readonly [apiVersion: string, kind: string][] = [['v1', 'Namespace'], ['v1', 'Service'], ['v1', 'Pod'], ['v1', 'ConfigMap']];
const STYLES: Record<Level, Style> = { Error: 'bad', Warning: 'warning', Info: 'faint' };

export function configure(command: Command): void {
  command
    .argument('[path...]', 'directories and files to look at together; - is the standard input')
    .option('-f, --filename <path>', 'the same, as kubectl has it; may be given several times', (value: string, all: string[]) => [...all, value], [] as string[])
    .option('-R, --recursive', 'with what is in folders of folders')
    .option('-n, --namespace <name>', 'say what concerns this namespace alone; all is read')
    .option('--kubeconfig <file>', 'of the cluster to look at')
    .option('--context <name>', 'of the kubeconfig')
    .option('--suppress <code=resource>', 'leave out, e.g. "IST0102=Namespace shop" or "IST0118=Service *.shop"; may be given several times', readSuppression, [])
    .addOption(new Option('--failure-threshold <level>', 'from which level on the exit code is 1').choices(LEVELS).default('Error'))
    .option('--cluster-domain <domain>', 'DNS suffix of services', 'cluster.local')
    .option('--root-namespace <name>', 'where policies are for the workloads of all namespaces', 'istio-system')
    .addOption(new Option('-o, --output <format>', 'table: a line each').choices(FORMATS).default('table'))
    .addHelpText('after', HELP)
    .action(async (paths: string[], options: Options) => {
      const all = [...paths, ...options.filename];
      const isCluster = all.length === 0;
      const loaded = isCluster ? await whileWaiting('reading the cluster', readCluster(options)) : mergeResults((await Promise.all(all.map((path) => load(path, options.recursive === true)))).flat());
      const findings = analyze(loaded, options).filter((finding) => !options.suppress.some(({ code, resource }) => code === finding.code && resource.test(finding.resource)));
      const shown = options.namespace === undefined ? findings : findings.filter(({ namespace, resource }) => namespace === options.namespace || resource === `Namespace ${options.namespace}` || isUnread(resource));
      print(options.output, shown, () => `${shown.map((finding) => line(finding, isCluster)).join('')}${loaded.objects.length} objects looked at, ${LEVELS.map((level) => `${shown.filter((each) => each.level === level).length} ${level.toLowerCase()}s`).join(', ')}\n`);
      if (shown.some(({ level }) => LEVELS.indexOf(level) <= LEVELS.indexOf(options.failureThreshold))) process.exitCode = 1;
    });
}

export function analyze(loaded: Pick<LoadResult, 'objects' | 'errors'>, { clusterDomain, rootNamespace }: Pick<Options, 'clusterDomain' | 'rootNamespace'>): Finding[] {
  const references = new References(loaded.objects, clusterDomain, { rootNamespace });
  const findings = [
    ...loaded.errors.map((error) => findingOf(error, 'alone')),
    ...loaded.objects.flatMap((each) => references.check(each).map((error) => findingOf(error, 'together'))),
    ...checkMore(loaded.objects, clusterDomain),
  ];
  return findings.sort((a, b) => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level) || a.code.localeCompare(b.code) || a.resource.localeCompare(b.resource));
}

/** What could not be read may be of any namespace. */
const isUnread = (resource: string): boolean => resource.startsWith('File ');

/** `Error [IST0101] (VirtualService httpbin.default shop.yaml:12) message`, as istioctl has it. */
function line({ level, code, resource, file, line: at, field, message }: Finding, isCluster: boolean): string {
  return `${paint(STYLES[level], level)} [${code}] (${resource}${isCluster || file === undefined ? '' : ` ${file}:${at}`}) ${field === '' ? '' : `${field}: `}${message}\n`;
}

function readSuppression(text: string, before: Options['suppress']): Options['suppress'] {
  const [, code, resource] = /^((?:IST|UP)\d{4})=(.+)$/.exec(text) ?? [];
  if (code === undefined) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--suppress ${text}: expected CODE=KIND NAME.NAMESPACE, where * stands for anything`);
  return [...before, { code, resource: new RegExp(`^${resource!.split('*').map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')).join('.*')}$`) }];
}

async function load(path: string, recursive: boolean): Promise<LoadResult[]> {
  if (path === '-') {
    const chunks: Buffer[] = [];
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
    return [parseYaml(Buffer.concat(chunks).toString('utf8'), 'stdin')];
  }
  try {
    if (!(await stat(path)).isDirectory()) return [await loadFile(path)];
    const folders = recursive ? (await readdir(path, { withFileTypes: true, recursive: true })).filter((entry) => entry.isDirectory()).map((entry) => join(entry.parentPath ?? entry.path, entry.name)) : [];
    return await Promise.all([path, ...folders.sort()].map((folder) => loadDirectory(folder)));
  } catch (error) {
    throw new UnderpassError('UNDERPASS_SOURCE_MISSING', `analyzing ${path}: ${errorMessage(error)}`, { cause: error });
  }
}

async function readCluster({ kubeconfig, context }: Options): Promise<LoadResult> {
  const given = kubeconfig ?? process.env['KUBECONFIG'];
  const client = new KubeClient((given ? undefined : inClusterServer()) ?? (await readKubeconfig(given || join(homedir(), '.kube', 'config'), context)), 'underpass-cli');
  try {
    const wanted = [...CORE, ...kinds.filter(({ unserved }) => !unserved).map(({ group, kind, versions }): [string, string] => [`${group}/${versions[0]}`, kind])];
    return mergeResults(await Promise.all(wanted.map(([apiVersion, kind]) => listKind(client, apiVersion, kind))));
  } finally {
    client.close();
  }
}

/** A kind whose CRD is not installed has no objects. */
async function listKind(client: KubeClient, apiVersion: string, kind: string): Promise<LoadResult> {
  try {
    const { items = [] } = await client.request<{ items?: KubeObject[] }>('GET', resourcePath(resourceOf(apiVersion, kind)));
    return mergeResults(items.map((item) => parseYaml(JSON.stringify({ ...item, apiVersion, kind }), 'cluster')));
  } catch (error) {
    if (isRefusal(error, 404)) return mergeResults([]);
    if (error instanceof KubeApiError) throw error;
    throw new UnderpassError('UNDERPASS_API_SERVER_UNREACHABLE', `asking the API server ${client.server.url.host}: ${errorMessage(error)}`, { cause: error });
  }
}
