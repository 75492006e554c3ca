/**
 * A real agent of which each pod can be stopped after any number of steps that change something outside of the process: from
 * then on nothing more happens for that pod, as if the process had ended there. Whoever started it then kills it. The product
 * has no hook for this: the methods by which it changes things are wrapped here.
 *
 *   node step-agent.js '{"node":…,"instance":…,"labSocket":…,"discovery":…,"stopAt":{"<uid>":7},"gone":["<uid>"]}'
 *
 * Writes one line `STEPS {…}`, the steps of each pod by uid, as soon as each pod is stopped or is what its labels ask for.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { basename, join } from 'node:path';
import { Agent, LabSource, realParts, type WorkloadSource } from '../agent/index.js';
import { IptablesCapture } from '../agent/dataplane/iptables.js';
import { Kernel } from '../agent/dataplane/kernel.js';
import { KernelSteering } from '../agent/dataplane/kernel-steering.js';
import { pinName } from '../agent/dataplane/bpffs.js';
import { PinnedNamespaces } from '../agent/dataplane/namespaces.js';
import { NodeProxy } from '../agent/proxy/node-proxy.js';
import { logger } from '../common/log.js';
import { waitFor } from '../common/retry.js';
import { BpfMap, BpfObject } from '../native/index.js';
import './shared-self-test.js';

export interface StepOptions {
  node: string;
  instance: string;
  labSocket: string;
  discovery: string;
  /** How many steps of each pod are done, or before which it stops, by uid; pods that are not named go on. */
  stopAt: Record<string, number | string>;
  /** Pods that the source of workloads no longer has. */
  gone: string[];
}

const options = JSON.parse(process.argv[2] ?? '{}') as StepOptions;
const done = new Map<string, string[]>();
const stopped = new Set<string>();

function step(uid: string, name: string): void {
  const steps = done.get(uid) ?? [];
  done.set(uid, steps);
  const at = options.stopAt[uid];
  if (stopped.has(uid) || name === at || (typeof at === 'number' && steps.length >= at)) {
    stopped.add(uid);
    throw new Error(`stopped before ${name}`);
  }
  steps.push(name);
}

/** The pod that the kernel side is at work for; what it does is synchronous. */
let current: string | undefined;

type Method = (this: object, ...args: any[]) => unknown;
function wrap<T extends object>(prototype: T, name: keyof T & string, around: (self: any, args: any[], go: () => unknown) => unknown): void {
  const original = prototype[name] as Method;
  Object.assign(prototype, { [name](this: object, ...args: unknown[]) { return around(this, args, () => original.apply(this, args)); } });
}

for (const name of ['putPod', 'removePod'] as const) {
  wrap(Kernel.prototype, name, (_, [pod], go) => {
    const before = current;
    current = typeof pod === 'string' ? pod : (pod as { uid: string }).uid;
    try {
      return go();
    } finally {
      current = before;
    }
  });
}
wrap(BpfObject.prototype, 'attachCgroup', (_, [program], go) => (current !== undefined && step(current, `attach ${program}`), go()));
wrap(BpfMap.prototype, 'delete', (map: BpfMap, _, go) => (current !== undefined && step(current, `delete ${map.name}`), go()));
// Values of the policies that are written beside it are other pods'.
wrap(BpfMap.prototype, 'set', (map: BpfMap, _, go) => (current !== undefined && map.name !== 'policies' && step(current, `set ${map.name}`), go()));
const { rmSync } = fs;
fs.rmSync = (path, more) => {
  if (current === undefined) return rmSync(path, more);
  // One hook after the other goes.
  if (more?.recursive && basename(String(path)) === pinName(current) && fs.existsSync(path)) {
    for (const entry of fs.readdirSync(path)) {
      step(current, `unpin ${entry}`);
      rmSync(join(String(path), entry));
    }
  }
  step(current, 'remove the folder of pins');
  rmSync(path, more);
};
syncBuiltinESMExports();
for (const name of ['pin', 'unpin'] as const) wrap(PinnedNamespaces.prototype, name, (_, [uid], go) => (step(uid as string, `${name} namespace`), go()));
for (const name of ['start', 'stop', 'remove'] as const) wrap(IptablesCapture.prototype, name, (rules: IptablesCapture, _, go) => (step(basename(rules.netnsPath), `${name} ${rules.options.direction ?? 'outbound'} rules`), go()));
for (const name of ['start', 'stop', 'forget'] as const) wrap(KernelSteering.prototype, name, (_, [pod], go) => (step(typeof pod === 'string' ? pod : (pod as { uid: string }).uid, `${name} steering`), go()));
for (const name of ['whenReady', 'whenRemoved'] as const) {
  wrap(NodeProxy.prototype, name, async (_, [uid], go) => {
    step(uid as string, name === 'whenReady' ? 'listener sent' : 'removal of the listener sent');
    await go();
    step(uid as string, name === 'whenReady' ? 'listener acknowledged' : 'removal of the listener acknowledged');
  });
}

const lab = new LabSource(options.labSocket, options.node, logger('agent.workloads'));
const workloads: WorkloadSource = {
  description: lab.description,
  problem: undefined,
  async *watch(signal) {
    for await (const records of lab.watch(signal)) yield records.filter(({ uid }) => !options.gone.includes(uid));
  },
};
const agent = new Agent({ nodeName: options.node, instance: options.instance, discoveryAddress: options.discovery, concurrency: 1, workloads }, realParts);
await agent.start();
const isDone = (): boolean => {
  const { pods, ready } = agent.status();
  return ready && (pods.length > 0 || options.gone.length > 0) && pods.every(({ uid, settled }) => settled || stopped.has(uid)) && options.gone.every((uid) => stopped.has(uid) || !fs.existsSync(join(agent.folder, 'netns', uid)));
};
await waitFor('all pods to be stopped or settled', isDone, { timeoutMs: 180_000, everyMs: 20 });
console.log('STEPS ' + JSON.stringify(Object.fromEntries(done)));
