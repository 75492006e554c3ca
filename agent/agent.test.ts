// How the parts are put together, with stand-ins for kernel and proxy; test/agent-*.test.ts has the real ones.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { pino } from 'pino';
import { removeCgroup } from '../common/cgroup.js';
import type { PodRecord } from '../common/lab-api.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { askAgent } from './admin/server.js';
import type { AgentStatus } from './admin/status.js';
import { Agent } from './agent.js';
import { instanceCgroup, instancePaths } from './instance.js';
import { KernelWorld, TEST_BPFFS } from './dataplane/kernel-testing.js';
import type { ProbationEntry } from './dataplane/kernel.js';
import type { AgentParts, SelfTestVerdict } from './parts.js';
import { realParts } from './real-parts.js';

const passed: SelfTestVerdict = {
  ok: true, capture: { ok: true, reason: 'fine' }, acceleration: { ok: true, reason: 'fine' }, fastPath: { ok: true, reason: 'fine' }, checks: [{ name: 'order', ok: true, detail: '' }], restrictions: [], tookMs: 1,
};

interface Stage {
  agent: Agent;
  steps: string[];
  /** What the proxy was told, in order. */
  eventDriven: string[][];
  /** Whether the proxy that was created may bind to callers' addresses. */
  showsCallers: boolean[];
  /** What the kernel says; to be changed. */
  probation: ProbationEntry[];
  status(): Promise<AgentStatus>;
  get(path: string): Promise<string>;
  pods(records: PodRecord[]): void;
}

let counter = 0;

function stage(context: TestContext, change: Partial<{ verdict: () => Promise<SelfTestVerdict>; openKernel: () => never; detachKernel: AgentParts['detachKernel']; instance: string; bpffsDir: string; startProxy: () => Promise<void> }> = {}): Stage {
  const steps: string[] = [];
  const eventDriven: string[][] = [];
  const shown: boolean[] = [];
  const probation: ProbationEntry[] = [];
  const runDir = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  const instance = change.instance ?? `up-agentt-${process.pid}-${counter++}`;
  let wake: (() => void) | undefined;
  let newest: PodRecord[] | undefined;
  const parts: AgentParts = {
    openKernel: () => {
      change.openKernel?.();
      return Promise.resolve({
        attachProxy: (path: string) => void steps.push(`attachProxy ${path.endsWith(`/underpass-${instance}/proxy`)}`),
        putPod: () => undefined,
        removePod: () => undefined,
        liveConnections: () => 0,
        pods: () => [{ uid: 'p', netnsCookie: 7n, cgroupPath: '', addresses: ['10.0.0.1', 'FD00:0::1'], mode: 'node', capture: true, acceleration: 'l4' }],
        counters: () => ({ bytes_tcp: 2n ** 60n }),
        podCounters: () => new Map(),
        probation: () => [...probation],
        setGlobalAcceleration: (on: boolean) => void steps.push(`acceleration ${on}`),
        setFlowLog: () => undefined,
        flows: {
          rttBoundsUs: [], settle: () => undefined, entries: () => [], take: () => undefined, retired: () => new Map(), retire: () => true,
          dropRetired: () => undefined, onRecord: () => undefined,
        },
        setPolicies: () => undefined,
        policyVersions: () => new Map(),
        setListenerPorts: (ports: readonly number[]) => void steps.push(`ports ${ports.join()}`),
        close: () => void steps.push('kernel closed'),
      });
    },
    detachKernel: (options) => (change.detachKernel ?? (() => Promise.resolve(0)))(options),
    selfTest: () => (change.verdict ?? (() => Promise.resolve(passed)))(),
    createProxy: ({ onListenerPorts, showsCallers }) => (shown.push(showsCallers), {
      workloads: { addresses: new Map(), synced: true, revision: 0 },
      settled: true,
      waypoints: { waypoints: {}, destinations: [] },
      setPods: (pods) => void steps.push(`setPods ${pods.length}`),
      setEventDriven: (endpoints) => void eventDriven.push([...endpoints]),
      start: async () => {
        steps.push('proxy start');
        await change.startProxy?.();
        onListenerPorts([80, 443], []);
      },
      whenReady: () => Promise.resolve(),
      whenRemoved: () => Promise.resolve(),
      activeConnections: () => Promise.resolve(0),
      status: () => ({
        envoy: { pid: 1, version: 'v', adopted: false, restarts: 0, connected: true },
        controlPlane: { address: 'a', connected: true, streams: 1, lastError: undefined },
        classes: [],
        workloads: { addresses: 0, authorizations: 0, synced: true },
        nacks: [], settled: true,
      }),
      stop: ({ keepEnvoy }) => Promise.resolve(void steps.push(`proxy stop keepEnvoy=${keepEnvoy}`)),
    }),
  };
  const agent = new Agent(
    {
      nodeName: 'n1', discoveryAddress: 'unix:/none', runDir, instance, metricsAddress: { host: '127.0.0.1', port: 0 }, ...(change.bpffsDir === undefined ? {} : { bpffsDir: change.bpffsDir }),
      logger: () => pino({ level: 'silent' }),
      workloads: {
        description: 'a test',
        problem: undefined,
        async *watch(signal) {
          signal.addEventListener('abort', () => wake?.());
          while (!signal.aborted) {
            if (newest) {
              const value = newest;
              newest = undefined;
              yield value;
            } else await new Promise<void>((resolve) => (wake = resolve));
          }
        },
      },
    },
    parts,
  );
  const { adminSocket } = instancePaths({ runDir, instance });
  context.after(async () => {
    await agent.stop();
    await removeCgroup(instanceCgroup(instance));
    rmSync(runDir, { recursive: true, force: true });
  });
  return {
    agent,
    steps,
    eventDriven,
    showsCallers: shown,
    probation,
    get: (path) => askAgent(adminSocket, path, { okStatus: [200, 503] }),
    status: async () => JSON.parse(await askAgent(adminSocket, '/v1/status')) as AgentStatus,
    pods: (records) => {
      newest = records;
      wake?.();
    },
  };
}

test('Agent: the proxy hears which servers\' probation is over, before it starts and as it changes', async (context) => {
  const { agent, eventDriven, showsCallers, probation } = stage(context);
  const entry = (key: string, verdict: ProbationEntry['verdict'] = 'event-driven', kind: ProbationEntry['kind'] = 'listener'): ProbationEntry => {
    const [, address = '', port, cookie] = /^\[?(.+?)\]?:(\d+)@(\d+)$/.exec(key) ?? [];
    return { kind, key, netnsCookie: BigInt(cookie ?? 7), ...(kind === 'listener' ? { address, port: Number(port) } : {}), seen: 8, verdict, reason: '' };
  };
  probation.push(entry('10.0.0.1:80@7'), entry('10.0.0.1:81@7', 'probation'), entry('10.0.0.1:82@7', 'blocking'));
  // Another pod's address in the pod's own namespace, the pod's address in another, loopback, a client.
  probation.push(entry('10.0.0.2:80@7'), entry('10.0.0.1:83@8'), entry('127.0.0.1:80@7'), entry('cgroup 7 exe 1:2', 'event-driven', 'client'));
  await agent.start();
  assert.deepEqual(eventDriven, [['10.0.0.1:80']]);
  assert.deepEqual(showsCallers, [true]);
  probation.push(entry('[fd00::1]:80@7'));
  await waitFor('the next look', () => eventDriven.at(-1)?.length === 2);
  assert.deepEqual(eventDriven.at(-1), ['10.0.0.1:80', '[fd00::1]:80']);
});

test('Agent: the proxy starts only when the pods are known and were given to it; readiness says what is missing', async (context) => {
  const { agent, steps, get, pods } = stage(context);
  await agent.start();
  assert.equal(steps[0], 'attachProxy true');
  assert.ok(!steps.some((step) => step.startsWith('proxy') || step.startsWith('setPods')), steps.join());
  const early = JSON.parse(await get('/readyz')) as { ready: boolean; missing: string[] };
  assert.equal(early.ready, false);
  assert.match(early.missing.join(), /pods of this node are not known yet \(a test: waiting\)/);
  pods([]);
  await waitFor('readiness', async () => (await get('/readyz')).includes('"ready": true'), { everyMs: 5 });
  assert.ok(steps.indexOf('setPods 0') < steps.indexOf('proxy start'), steps.join());
  assert.ok(steps.includes('acceleration true') && steps.includes('ports 80,443'));
  await agent.stop();
  assert.deepEqual(steps.slice(-2), ['proxy stop keepEnvoy=true', 'kernel closed']);
  assert.equal(existsSync(join(agent.folder, 'agent.lock')), false);
});

test('Agent: a failed self-test turns acceleration or capture off, with the reason in status and metrics', async (context) => {
  const verdict = (): Promise<SelfTestVerdict> =>
    Promise.resolve({ ...passed, ok: false, acceleration: { ok: false, reason: 'order: wrong "bytes"' }, capture: { ok: false, reason: 'no hooks' }, checks: [{ name: 'order', ok: false, detail: 'wrong' }] });
  const { agent, steps, status, get, pods } = stage(context, { verdict });
  await agent.start();
  pods([]);
  await waitFor('the verdict', async () => (await status()).ready, { everyMs: 5 });
  assert.ok(steps.includes('acceleration false') && !steps.includes('acceleration true'));
  const { acceleration, redirection } = await status();
  assert.equal(acceleration.on, false);
  assert.match(acceleration.reason ?? '', /order: wrong/);
  assert.match(redirection.bpfProblem ?? '', /no hooks/);
  const metrics = await get('/metrics');
  assert.match(metrics, /^underpass_acceleration_on\{reason="the self-test failed: order: wrong \\"bytes\\""\} 0$/m);
  assert.match(metrics, /^underpass_self_test_passed\{check="order"\} 0$/m);
  assert.match(metrics, /^underpass_kernel_bytes_tcp_total 1152921504606846976$/m);
  const served = await waitFor('the endpoint for Prometheus', async () => {
    const { metrics: tcp } = await status();
    return tcp?.problem === undefined ? tcp : undefined;
  });
  const scraped = await (await fetch(`http://${served.address}/metrics`)).text();
  assert.match(scraped, /^underpass_kernel_bytes_tcp_total 1152921504606846976$/m);
});

test('Agent: a self-test that can not be run counts as failed', async (context) => {
  const { agent, steps, status, pods } = stage(context, { verdict: () => Promise.reject(new Error('no namespace')) });
  await agent.start();
  pods([]);
  await waitFor('readiness', async () => (await status()).ready, { everyMs: 5 });
  assert.ok(steps.includes('acceleration false'));
  assert.match((await status()).redirection.bpfProblem ?? '', /could not be run: no namespace/);
});

test('Agent: without BPF it goes on, and says so in one line', async (context) => {
  const { agent, steps, showsCallers, status, get, pods } = stage(context, {
    openKernel: () => {
      throw new Error('loading: EPERM\nlibbpf: many\nlines');
    },
  });
  await agent.start();
  pods([]);
  await waitFor('readiness', async () => (await status()).ready, { everyMs: 5 });
  assert.equal((await status()).redirection.bpfProblem, "the kernel's BPF side is not usable: loading: EPERM");
  assert.ok(steps.includes('proxy start'));
  assert.deepEqual(showsCallers, [false], 'no hook keeps an address that Envoy binds to');
  assert.match(await get('/v1/counters'), /not usable/);
});

test('Agent: a kernel side that a restart can not open leaves no hook of the former agent attached', async (context) => {
  const world = await KernelWorld.create('detach', { pinned: true });
  context.after(() => world.close());
  const instance = world.world.name;
  world.put({ capture: true });
  await world.kernel.close();
  const [client, server] = [world.world.pod(0), world.world.pod(1)];
  // Nobody listens where it goes to; captured, it reaches the proxy's port in the client's own namespace.
  const connect = async (): Promise<string> => {
    const script = `
      const net = require('node:net');
      net.createServer().listen(15001, '127.0.0.1', () => {
        net.connect(8080, '${server.ipv4}').once('connect', () => { console.log('captured'); process.exit(); }).once('error', (e) => { console.log(e.code); process.exit(); });
      });`;
    const [file, ...args] = world.world.inPod(client, [process.execPath, '-e', script]) as [string, ...string[]];
    return (await run(file, args, { timeoutMs: 60_000 })).stdout.trim();
  };
  assert.equal(await connect(), 'captured');
  const refuse = (): never => {
    throw new Error('loading: the verifier refuses connect4');
  };
  const { agent, status, pods } = stage(context, { openKernel: refuse, detachKernel: realParts.detachKernel, instance, bpffsDir: TEST_BPFFS });
  await agent.start();
  pods([]);
  await waitFor('readiness', async () => (await status()).ready, { everyMs: 5 });
  assert.equal(await connect(), 'ECONNREFUSED', 'it goes its plain way');
  assert.equal(existsSync(join(TEST_BPFFS, instance, 'links')), false);
  assert.match((await status()).redirection.bpfProblem ?? '', /verifier refuses connect4; what a former agent had attached was detached/);
  // A later agent that can open it finds its pods, and attaches them anew.
  world.kernel = await world.open(TEST_BPFFS);
  for (const known of world.kernel.pods()) world.kernel.putPod(known);
  assert.equal(await connect(), 'captured');
});

test('Agent: an Envoy that does not start ends it with the reason', async (context) => {
  const { agent, pods, get } = stage(context, { startProxy: () => Promise.reject(new Error('no such Envoy')) });
  await agent.start();
  pods([]);
  await assert.rejects(agent.failed, /no such Envoy/);
  assert.match(await get('/readyz'), /the shared Envoy: no such Envoy/);
});

test('instancePaths: names that are no folder of their own, and folders too long for a socket, are refused', () => {
  for (const instance of ['', 'lab', '../x', 'A', 'a/b', 'x'.repeat(60)]) assert.throws(() => instancePaths({ instance }), { code: 'UNDERPASS_BAD_OPTION' }, instance);
  assert.throws(() => instancePaths({ runDir: `/${'x'.repeat(100)}` }), { code: 'UNDERPASS_BAD_OPTION' });
  assert.equal(instancePaths({}).adminSocket, '/run/underpass/default/agent.sock');
});
