/**
 * The agent is killed after each step of a pod's coming into the mesh, leaving it and being gone: the next one converges, and
 * nothing of the pod is left. Each pod of this world stops at a step of its own, so that one death is all of them.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { cleanup, instancePaths, realCleanupParts } from '../agent/index.js';
import { logger } from '../common/log.js';
import { run } from '../common/process.js';
import { BpfObject } from '../native/index.js';
import { Lab } from '../lab/index.js';
import { Pilot } from '../pilot/index.js';
import type { StepOptions } from './step-agent.js';

const name = `up-steps-${process.pid}`;
const paths = instancePaths({ instance: name });
const pinDir = join(paths.bpffsDir, name);
/** As many pods as there are steps, and some with which the process gets to the end; by iptables one for each step that the others have not. */
const BPF = Array.from({ length: 48 }, (_, index) => `bpf-${index}`);
const RULES = ['start outbound rules', 'set pods', 'start inbound rules', 'stop outbound rules', 'stop inbound rules', 'remove outbound rules', 'remove inbound rules', 'unpin namespace'];
const IPTABLES = RULES.map((_, index) => `iptables-${index}`);
const WAYS = { bpf: BPF, iptables: IPTABLES };

const yaml = Object.entries(WAYS).flatMap(([way, names]) => [
  `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${way}, labels: {underpass.io/redirection: ${way}}}\n`,
  // Lets in whoever does not ask for this port, and leads all callers to the proxy.
  `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nine, namespace: ${way}}\nspec: {action: DENY, rules: [{to: [{operation: {ports: ["9"]}}]}]}\n`,
  ...names.map((pod) => `apiVersion: v1\nkind: Pod\nmetadata: {name: ${pod}, namespace: ${way}}\nspec: {containers: [{name: sleep, image: sleep}]}\n`),
]).join('---\n');

const sources = mkdtempSync(join(tmpdir(), `${name}-`));
const discovery = `unix:${join(sources, 'xds.sock')}`;
let lab: Lab;
let pilot: Pilot | undefined;
let agent: ChildProcess | undefined;

before(async () => {
  writeFileSync(join(sources, 'world.yaml'), yaml);
  lab = await Lab.up({ name, sources: [sources], watch: false, purpose: 'test', discovery });
  await lab.whenReady();
  pilot = new Pilot({ sources: [join(sources, 'world.yaml'), lab.objectsDir], logger: logger('pilot').child({}, { level: 'warn' }), debounce: { quietMs: 20 }, listen: [discovery] });
  await pilot.start();
});
after(async () => {
  await kill();
  await pilot?.stop();
  await lab?.down();
  await cleanup({ instance: name, logger: logger('test.cleanup').child({}, { level: 'warn' }) }, realCleanupParts);
  rmSync(sources, { recursive: true, force: true });
});

/** Starts an agent, and returns each pod's steps, by its name, when all are done or stopped. */
async function steps(more: Partial<Pick<StepOptions, 'stopAt' | 'gone'>> = {}): Promise<Map<string, string[]>> {
  const options: StepOptions = { node: lab.info().nodes[0]!.name, instance: name, labSocket: lab.socket, discovery, stopAt: {}, gone: [], ...more };
  await kill();
  const child = spawn(process.execPath, [join(import.meta.dirname, 'step-agent.js'), JSON.stringify(options)], { stdio: ['ignore', 'pipe', 'pipe'] });
  agent = child;
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  const said = new Promise<Record<string, string[]>>((resolve, reject) => {
    child.stdout.on('data', (chunk: Buffer) => {
      log += chunk.toString();
      const line = /^STEPS (.*)$/m.exec(log);
      if (line) resolve(JSON.parse(line[1]!) as Record<string, string[]>);
    });
    child.once('exit', () => reject(new Error(`the agent ended:\n${log.slice(-4_000)}`)));
  });
  const byUid = await said;
  return new Map(lab.pods().map(({ name: pod, uid }) => [pod, byUid[uid] ?? []]));
}

async function kill(): Promise<void> {
  if (!agent || agent.exitCode !== null || agent.signalCode !== null) return;
  agent.kill('SIGKILL');
  await once(agent, 'exit');
}

const uidOf = (pod: string): string => lab.pods().find((record) => record.name === pod)!.uid;
const everyPod = [...BPF, ...IPTABLES];
const mesh = async (mode: 'node' | null): Promise<void> => {
  for (const way of Object.keys(WAYS)) await lab.label({ kind: 'Namespace', name: way, labels: { 'underpass.io/mode': mode } });
};

/** One agent that stops each pod at another step, and is killed then. Says at which. */
async function dieAtEachStep(gone: string[] = []): Promise<string[]> {
  const stopAt = Object.fromEntries([...BPF.map((pod, index) => [uidOf(pod), index] as const), ...IPTABLES.map((pod, index) => [uidOf(pod), RULES[index]!] as const)]);
  const done = await steps({ stopAt, gone });
  await kill();
  const counts = BPF.map((pod) => done.get(pod)!.length);
  // How many there are may differ by one that is done again, when the pod is asked for something else meanwhile.
  const all = Math.min(...counts.filter((count, index) => count < index));
  assert.ok(all < BPF.length, `there are ${BPF.length} steps or more: this world needs more pods`);
  assert.deepEqual(counts.slice(0, all + 1), Array.from({ length: all + 1 }, (_, index) => index), 'a pod stopped before each step');
  return done.get(BPF.at(-1)!)!;
}

interface State {
  /** Of a pod, by its name; without what is not there. */
  pods: Record<string, string[]>;
  /** Entries of the kernel's maps that are by pod. */
  maps: Record<string, number>;
}

async function state(): Promise<State> {
  const records = lab.pods();
  const listeners = (await run('curl', ['-s', '--max-time', '10', '--unix-socket', join(paths.folder, 'envoy-admin.sock'), 'http://envoy/listeners?format=json'])).stdout;
  const mounts = readFileSync('/proc/self/mounts', 'utf8');
  const parts = async ({ uid, namespace, name: pod }: (typeof records)[number]): Promise<string[]> => {
    const pins = join(pinDir, 'links', 'pods', uid);
    const { stdout } = await lab.exec(`${namespace}/${pod}`, ['nft', '--stateless', 'list', 'ruleset']);
    return [
      ...['steering', 'steered'].filter((kind) => existsSync(join(pinDir, 'links', kind, uid))),
      ...(existsSync(pins) ? ['folder of pins', ...readdirSync(pins).map((hook) => `hook ${hook}`)] : []),
      ...(mounts.includes(join(paths.netnsFolder, uid)) ? ['namespace mounted'] : []),
      ...(existsSync(join(paths.netnsFolder, uid)) ? ['namespace'] : []),
      ...(listeners.includes(uid) ? ['listeners'] : []),
      ...stdout.split('\n').filter((line) => line.includes('UNDERPASS')).map((line) => `rule ${line.trim()}`),
    ];
  };
  const pods = Object.fromEntries(await Promise.all(records.map(async (record) => [record.name, await parts(record)] as const)));
  const object = BpfObject.open({ pinDir, programs: [] });
  try {
    assert.ok(object.adopted);
    const maps = ['pods', 'netns_of_address', 'policies', 'establishing', 'peers', 'client_verdicts', 'listener_verdicts', 'verdict_quotas', 'flow_quotas'];
    return { pods, maps: Object.fromEntries(maps.map((map) => [map, object.map(map).entries().length])) };
  } finally {
    object.close();
  }
}

async function isWhole(): Promise<void> {
  const { pods, maps } = await state();
  for (const names of Object.values(WAYS)) for (const pod of names) assert.deepEqual(pods[pod], pods[names.at(-1)!], `${pod} is in the mesh like one that was not interrupted`);
  assert.equal(pods['bpf-0']!.filter((part) => part.startsWith('hook')).length, 10);
  for (const part of ['namespace mounted', 'listeners', 'steering']) assert.ok(pods['bpf-0']!.includes(part), part);
  for (const chain of ['UNDERPASS_OUTPUT', 'UNDERPASS_INBOUND']) assert.ok(pods['iptables-0']!.some((part) => part.includes(chain)), chain);
  assert.deepEqual([maps['pods'], maps['netns_of_address'], maps['policies']], [everyPod.length, everyPod.length * 2, everyPod.length]);
}

async function isClean(isNamespaceGone = false): Promise<void> {
  const { pods, maps } = await state();
  const left = Object.entries(pods).map(([pod, parts]) => [pod, isNamespaceGone ? parts.filter((part) => !part.startsWith('rule')) : parts] as const).filter(([, parts]) => parts.length > 0);
  assert.deepEqual([left, Object.entries(maps).filter(([, count]) => count > 0)], [[], []]);
}

test('a pod that comes into the mesh: killed at each step, the next agent gets it there', async (context) => {
  await mesh('node');
  context.diagnostic((await dieAtEachStep()).join(', '));
  await steps();
  await isWhole();
  await kill();
});

test('a pod that leaves the mesh: killed at each step, the next agent leaves nothing of it', async (context) => {
  await mesh(null);
  context.diagnostic((await dieAtEachStep()).join(', '));
  await steps();
  await isClean();
  await kill();
});

test('a pod that is gone: killed at each step, the next agent leaves nothing of it', async (context) => {
  await mesh('node');
  await steps();
  await kill();
  const gone = everyPod.map(uidOf);
  context.diagnostic((await dieAtEachStep(gone)).join(', '));
  await steps({ gone });
  await isClean(true);
  await kill();
});

