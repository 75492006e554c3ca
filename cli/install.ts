/** `underpass install`: the objects of the chart, printed or applied to a cluster. */
import { homedir } from 'node:os';
import { join } from 'node:path';
import { Option, type Command } from 'commander';
import { stringify } from 'yaml';
import { duration } from '../common/arguments.js';
import { UnderpassError } from '../common/errors.js';
import { KubeClient } from '../common/kube/client.js';
import { inClusterServer, readKubeconfig } from '../common/kube/kubeconfig.js';
import type { Service } from '../common/kube/types.js';
import { ProgressLine } from './progress.js';
import { OPERATOR, applyAll, isOurs, operatorKinds, present, prune, withoutTaking } from './install/cluster.js';
import { installationObjects } from './install/objects.js';
import { waitUntilReady } from './install/ready.js';
import type { Values } from './install/settings.js';
import { readValues } from './install/values.js';

export interface ClusterOptions {
  kubeconfig?: string;
  context?: string;
  values: string[];
  set: string[];
  timeout: number;
}

interface Options extends ClusterOptions {
  dryRun?: boolean;
  wait: boolean;
}

export const FIELD_MANAGER = 'underpass-install';
const TAKEN_HINT = 'let the agents follow an istiod that is there by --set controlPlane=istiod, or take these away first';
const OLDEST = { major: 1, minor: 25 };
/** What needs kinds of Prometheus' operator, and what there is without it. */
const OPERATOR_SETTINGS = {
  'agent.podMonitor': { kind: 'PodMonitor', instead: 'the pods have the annotations prometheus.io/scrape, port and path' },
  'pilot.podMonitor': { kind: 'PodMonitor', instead: 'the pods have the annotations prometheus.io/scrape, port and path' },
  'monitoring.prometheusRule': { kind: 'PrometheusRule', instead: 'deploy/prometheus/rules.yaml is for rule_files of a Prometheus' },
} as const;

const collect = (word: string, all: string[]): string[] => [...all, word];

export function addClusterOptions(command: Command): Command {
  return command
    .option('--kubeconfig <file>', 'of the cluster (default: $KUBECONFIG, else ~/.kube/config, else the cluster that this is a pod of)')
    .option('--context <name>', 'of the kubeconfig (default: its current one)')
    .option('-f, --values <file>', 'values, as for Helm; may be given several times, later ones override', collect, [])
    .option('--set <path=value>', 'one value, lists and mappings as JSON; may be given several times, overrides files', collect, [])
    .addOption(new Option('--timeout <duration>', 'how long to wait').argParser(duration).default(300_000, '5m'));
}

export function configure(command: Command): void {
  addClusterOptions(command)
    .option('--dry-run', 'print the objects, and leave every cluster alone')
    .option('--no-wait', 'end when the objects are applied, without waiting for what they start')
    .addHelpText('after', '\nThe values are those of the Helm chart; docs/install.md lists them. Exit code 1: something was refused, or is not ready in time.\nExample:\n  underpass install --set image.repository=registry.example/underpass')
    .action(async (options: Options) => {
      const values = readValues(options.values, options.set);
      const objects = installationObjects(values);
      if (options.dryRun) {
        process.stdout.write(objects.map((object) => `---\n${stringify(object, { lineWidth: 0 })}`).join(''));
        return;
      }
      const client = await clusterClient(options);
      const progress = new ProgressLine();
      const show = (text: string): void => progress.show(text);
      try {
        await requireVersion(client);
        await requireControlPlane(client, values);
        await requireOperator(client, values);
        await applyAll(client, await withoutTaking(client, objects, TAKEN_HINT), show);
        const gone = await prune(client, objects);
        progress.clear();
        process.stdout.write(`${objects.length} objects applied${gone.length === 0 ? '' : `, removed what the values have no more: ${gone.join(', ')}`}\n`);
        if (!options.wait) return;
        await waitUntilReady(client, objects, options.timeout, show);
        progress.clear();
        process.stdout.write('ready: label a namespace underpass.io/mode=node, and its pods are in the mesh\n');
      } finally {
        progress.clear();
        client.close();
      }
    });
}

/** @throws UnderpassError `UNDERPASS_KUBECONFIG` */
export async function clusterClient({ kubeconfig, context }: Pick<ClusterOptions, 'kubeconfig' | 'context'>): Promise<KubeClient> {
  const given = kubeconfig ?? process.env['KUBECONFIG'];
  const server = given === undefined || given === '' ? inClusterServer() : undefined;
  return new KubeClient(server ?? (await readKubeconfig(given || join(homedir(), '.kube', 'config'), context)), FIELD_MANAGER);
}

async function requireVersion(client: KubeClient): Promise<void> {
  const { major, minor, gitVersion } = await client.request<{ major: string; minor: string; gitVersion: string }>('GET', '/version');
  if (Number(major) > OLDEST.major || Number.parseInt(minor, 10) >= OLDEST.minor) return;
  throw new UnderpassError('UNDERPASS_INSTALL', `installing: the cluster is Kubernetes ${gitVersion}, expected ${OLDEST.major}.${OLDEST.minor} or later`);
}

/** Before anything is applied. */
async function requireOperator(client: KubeClient, values: Values): Promise<void> {
  const asked = Object.entries(OPERATOR_SETTINGS).filter(([path]) => values[path as keyof typeof OPERATOR_SETTINGS] === true);
  if (asked.length === 0) return;
  const there = await operatorKinds(client);
  for (const [path, { kind, instead }] of asked) {
    if (there.includes(kind)) continue;
    throw new UnderpassError('UNDERPASS_INSTALL', `installing: ${path}: found no kind ${kind} of ${OPERATOR} in the cluster, expected that of Prometheus' operator`, { hint: `install the operator first, or leave ${path} away: ${instead}` });
  }
}

/** Agents are not sent where nobody answers, or will answer. */
async function requireControlPlane(client: KubeClient, values: Values): Promise<void> {
  if (values.controlPlane === 'pilot') return;
  const [, name, namespace] = /^([^.]+)\.([^.:]+)\.svc(?:\.[^:]*)?:\d+$/.exec(String(values.discoveryAddress)) ?? [];
  if (name === undefined || namespace === undefined) return;
  const service = await present<Service>(client, 'v1', 'Service', { namespace, name });
  const problem = !service ? `there is no Service ${namespace}/${name}` : isOurs(service) ? `the Service ${namespace}/${name} is that of Underpass's own control plane, which these values take away` : undefined;
  if (problem !== undefined) throw new UnderpassError('UNDERPASS_INSTALL', `installing agents of an istiod: ${problem}`, { hint: 'install Istio\'s control plane first, or name it by --set discoveryAddress=HOST:PORT' });
}
