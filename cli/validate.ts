/** `underpass validate`: what is wrong with YAML, before a control plane has to refuse it. */
import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { formatError, loadDirectory, loadFile, mergeResults, parseYaml, type LoadResult, type ValidationError } from '../common/kube/yaml.js';
import { References } from '../pilot/validation/references.js';

interface Options {
  filename: string[];
  output: string;
  clusterDomain: string;
  rootNamespace: string;
}

const HELP = `
Looked at: each object by itself (Istio's networking, security, telemetry and extensions API in all versions, the Gateway
API, Kubernetes' own kinds as far as the mesh reads them), what Envoy has no field for in EnvoyFilters, certificates and
keys of Secrets, the MeshConfig in the ConfigMap istio, and what the objects refer to among each other: hosts, ports,
subsets, delegates, Gateways, Secrets, selectors, grants. Of an object that is there several times the last one counts.

An error is what the control plane refuses; warnings are what it takes and what has no effect, or not the one meant.
Exit code 1 when there is an error. docs/istio-api.md lists the fields.
`;

export function configure(command: Command): void {
  command
    .argument('[path...]', 'directories and files to check together; - is the standard input')
    .option('-f, --filename <path>', 'the same, as kubectl has it; may be given several times', (value: string, all: string[]) => [...all, value], [] as string[])
    .option('-o, --output <format>', 'text or json', 'text')
    .option('--cluster-domain <domain>', 'DNS suffix of services', 'cluster.local')
    .option('--root-namespace <name>', 'where policies are for the workloads of all namespaces', 'istio-system')
    .addHelpText('after', HELP)
    .action(async (paths: string[], options: Options) => {
      const all = [...paths, ...options.filename];
      if (all.length === 0) command.error('nothing to check: give a directory or file');
      if (options.output !== 'text' && options.output !== 'json') command.error(`--output: found ${options.output}, expected text or json`);
      const results: LoadResult[] = [];
      for (const path of all) results.push(await load(path));
      const { objects, errors } = mergeResults(results);
      const references = new References(objects, options.clusterDomain, { rootNamespace: options.rootNamespace });
      const problems = [...errors, ...objects.flatMap((loaded) => references.check(loaded))].sort(byPlace);
      const failed = problems.filter(({ severity }) => severity === 'error').length;
      if (options.output === 'json') {
        process.stdout.write(`${JSON.stringify({ valid: failed === 0, objects: objects.length, problems }, null, 2)}\n`);
      } else {
        for (const problem of problems) process.stdout.write(`${formatError(problem)}\n`);
        process.stdout.write(`${objects.length} objects are valid, ${failed} errors, ${problems.length - failed} warnings\n`);
      }
      if (failed > 0) process.exitCode = 1;
    });
}

async function load(path: string): Promise<LoadResult> {
  if (path === '-') {
    const chunks: Buffer[] = [];
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
    return parseYaml(Buffer.concat(chunks).toString('utf8'), 'stdin');
  }
  try {
    return (await stat(path)).isDirectory() ? await loadDirectory(path) : await loadFile(path);
  } catch (error) {
    throw new UnderpassError('UNDERPASS_SOURCE_MISSING', `checking ${path}: ${errorMessage(error)}`, { cause: error });
  }
}

function byPlace(a: ValidationError, b: ValidationError): number {
  return a.file < b.file ? -1 : a.file > b.file ? 1 : a.line - b.line || a.column - b.column;
}
