/**
 * The HTTP fast path as a user has it: a namespace with acceleration l7, a canary by header and by weight. Requests are answered as
 * Envoy would, most of them without it; its switches work on live traffic; and while routes change each answer is of the old
 * configuration or of the new one.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { askAgent, instancePaths, type AgentFastPathStatus, type Flow } from '../agent/index.js';
import type { TraceLine } from '../agent/client.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { tcpSockets } from '../native/index.js';
import { CLI } from './agent-harness.js';
import { CURL, ECHO, FAST_NAMESPACE, fastPod, fastService } from './fast-world.js';
import { following } from './following.js';
import { MeshWorld } from './mesh/world.js';

/** UNDERPASS_ROUTE_CHANGES: 200 for a release, 40 in `make soak`. After twelve each configuration has followed the one before it. */
const CHANGES = Number(process.env['UNDERPASS_ROUTE_CHANGES'] ?? 12);

const WORLD = `${FAST_NAMESPACE}${fastPod('client', CURL)}${['web-v1', 'web-v2', 'web-v3'].map((name) => fastPod(name, ECHO)).join('')}${fastService('web')}`;
const SUBSETS = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: fast}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]
---
`;

/** By the header `x-canary: yes` to one version, others by weight. */
const routed = (canary: string, weights: Record<string, number>): string => `${SUBSETS}apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: fast}
spec:
  hosts: [web]
  http:
  - name: canary
    match: [{headers: {x-canary: {exact: "yes"}}}]
    route: [{destination: {host: web, subset: ${canary}}}]
  - name: rest
    route: [${Object.entries(weights).map(([subset, weight]) => `{destination: {host: web, subset: ${subset}}, weight: ${weight}}`).join(', ')}]
`;

const DENY_SECRET = `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: fast}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/secret"]}}]}]
`;

const world = new MeshWorld('http-fast', { bare: true, outside: WORLD });
const socket = (): string => instancePaths({ instance: world.name }).adminSocket;
const counters = async (): Promise<Record<string, number>> => (JSON.parse(await askAgent(socket(), '/v1/counters')) as { node: Record<string, number> }).node;
const fastPath = async (): Promise<AgentFastPathStatus> => JSON.parse(await askAgent(socket(), '/v1/http-fast-path')) as AgentFastPathStatus;
const switchTo = (on: boolean): Promise<string> => askAgent(socket(), `/v1/http-fast-path?on=${on}`, { method: 'POST' });

interface Result {
  versions: Record<string, number>;
  statuses: Record<string, number>;
}

/** Requests one after the other, over one connection unless `connections` says more. */
async function load(count: number, options: { headers?: Record<string, string>; fresh?: boolean; each?: number } = {}): Promise<Result> {
  const { versions, statuses } = await world.load('outside', 'http://web/', count, { from: 'fast/client', headers: options.headers ?? {}, keepAlive: !options.fresh, ...(options.each ? { each: options.each } : {}) });
  return { versions, statuses };
}

async function counted(body: () => Promise<Result>): Promise<Result & { counters: Record<string, number> }> {
  const start = await counters();
  const result = await body();
  const end = await counters();
  return { ...result, counters: Object.fromEntries(Object.entries(end).flatMap(([name, value]) => (name.startsWith('http_') && value !== start[name] ? [[name, value - (start[name] ?? 0)] as const] : []))) };
}

/** Those that were not, since this process had no turn for a second, are none of the fast path's. */
const fastOf = (grown: Record<string, number>): number => (grown['http_requests_fast'] ?? 0) + (grown['http_switched_off'] ?? 0);

const live = (pods: number): Promise<unknown> => waitFor('the pods to be live', async () => {
  const status = await fastPath();
  return status.on && status.pods.live >= pods && status.pods.suspended === 0;
}, { timeoutMs: 60_000, everyMs: 20 }).catch(async (error: unknown) => {
  throw new Error(`${String(error)} ${JSON.stringify(await fastPath())} ${JSON.stringify((await world.agentStatus()).pods)}\n${world.agentLog().slice(-3000)}`);
});

before(async () => {
  await world.up();
  await world.apply('mesh', routed('v2', { v1: 100 }));
  // Probation: eight connections of the client's program and to each server, here past Envoy, which would pool them.
  for (const name of ['web-v1', 'web-v2', 'web-v3']) await world.load('outside', `http://${world.lab.pod('fast', name).ips[0]}:8080/`, 12, { from: 'fast/client', keepAlive: false });
  await waitFor('the servers to be known as event-driven', async () => (await world.agentStatus()).probation.filter(({ kind, verdict }) => kind === 'listener' && verdict === 'event-driven').length >= 3, { timeoutMs: 60_000, everyMs: 100 }).catch(async (error: unknown) => {
    throw new Error(`${String(error)} ${JSON.stringify((await world.agentStatus()).probation)}`);
  });
  await sleep(1_500);
  await world.settled();
  await live(4);
});
after(() => world.down());

test('requests go where the routes say, most of them without Envoy', async () => {
  const rest = await counted(() => load(200));
  assert.deepEqual([rest.statuses, rest.versions], [{ 200: 200 }, { v1: 200 }]);
  const message = JSON.stringify([rest.counters, await fastPath()]);
  assert.ok(fastOf(rest.counters) >= 190, message);
  const canary = await counted(() => load(200, { headers: { 'x-canary': 'yes' } }));
  assert.deepEqual([canary.statuses, canary.versions], [{ 200: 200 }, { v2: 200 }]);
  assert.ok(fastOf(canary.counters) >= 190, JSON.stringify(canary.counters));
});

test('flows -f: requests that the kernel repeats are told one by one, with their way, end and bytes, as those that Envoy takes', async () => {
  const { lines, end } = following<Flow>('flows', '-f', '-o', 'json', '--instance', world.name, '--from', 'fast/client');
  const envoys = async (): Promise<string | undefined> => (JSON.parse(await world.nodeProxyAdmin('/runtime')) as { entries: Record<string, { final_value: string } | undefined> }).entries['underpass.flows']?.final_value;
  await waitFor('Envoy to be told', async () => (await envoys()) === '100', { timeoutMs: 60_000, everyMs: 50 });
  const { counters: grown, statuses } = await counted(() => load(60));
  assert.deepEqual(statuses, { 200: 60 });
  const requests = (): Flow[] => lines.filter(({ kind, reporter, path }) => kind === 'request' && reporter === 'source' && path === '/');
  await waitFor('each request to be told', () => requests().length >= 60, { timeoutMs: 60_000, everyMs: 50 }).catch((error: unknown) => {
    throw new Error(`${String(error)} ${requests().length} ${JSON.stringify(grown)} ${JSON.stringify(lines.slice(-3), undefined, 1)}`);
  });
  const fast = requests().filter(({ way }) => way === 'fast-path');
  assert.equal(requests().length, 60);
  assert.equal(fast.length, grown['http_requests_fast'], JSON.stringify(grown));
  for (const each of requests()) assert.deepEqual([each.verdict, each.method, each.protocol, each.response_code, each.authority, each.source.namespace, each.source.pod, each.destination.namespace], ['allowed', 'GET', 'HTTP/1.1', 200, 'web', 'fast', 'client', 'fast']);
  // What the kernel counts are heads and bodies, as they went from socket to socket.
  for (const { bytes_received: received, bytes_sent: sent, bytes_moved: moved, destination, reason } of fast) {
    assert.ok(Number(received) > 30 && Number(sent) > 100, JSON.stringify([received, sent]));
    assert.deepEqual([moved, destination.pod, reason], [Number(received) + Number(sent), 'web-v1', null]);
  }
  // The client's connection, which was led to Envoy, is Envoy's to tell; those of the kernel alone have no way here.
  assert.ok(lines.every(({ way }) => way === 'fast-path' || way === 'envoy'), JSON.stringify(lines.find(({ way }) => way !== 'fast-path' && way !== 'envoy')));
  assert.equal(await end('SIGINT'), 0);
  const { stdout } = await run(process.execPath, [CLI, 'flows', '--instance', world.name, '--way', 'fast-path', '--last', '1', '-o', 'yaml']);
  assert.match(stdout, /^---\n(?:.*\n)*way: fast-path\n/);
});

test('trace: a request of the fast path is followed from the client\'s socket into the server\'s, and its answer back', async () => {
  const { lines, end } = following<TraceLine>('trace', 'fast/client', '-o', 'json', '--instance', world.name);
  const traced = (): TraceLine[][] => lines.filter(({ what }) => what === 'opened').map(({ connection }) => lines.filter((line) => line.connection === connection));
  const told = (of: readonly TraceLine[], wanted: string): TraceLine[] => of.filter(({ what }) => what === wanted);
  // Of one that was opened after the trace had begun; its first request is Envoy's.
  const own = await waitFor('the requests of a connection to be traced', async () => {
    await load(30);
    return lines.some(({ what }) => what === 'answered') ? traced().find((each) => told(each, 'fast').length > 10) : undefined;
  }, { everyMs: 10 }).catch((error: unknown) => {
    throw new Error(`${String(error)} ${JSON.stringify(traced().map((each) => each.map(({ what }) => what).join()))} ${JSON.stringify(lines.slice(-8))}`);
  });
  assert.deepEqual([own[0]!.what, own[0]!.who], ['opened', 'fast/client'], JSON.stringify(own));
  assert.ok(own.some(({ what }) => what === 'to_envoy'), JSON.stringify(own));
  const [asked, answers] = [told(own, 'fast'), told(own, 'answered')];
  assert.ok(asked.every(({ bytes }) => bytes > 30) && answers.every(({ bytes, reason }) => bytes > 100 && reason === '200'), JSON.stringify(own.slice(0, 8)));
  assert.match(asked[0]!.text, /^fast path: \d+ B of a request into the server's socket$/);
  assert.equal(await end('SIGINT'), 0);
});

test('capture: requests of the fast path and their answers are in the file of who may have it, the log says who had whose, and there is one at a time', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-capture-'));
  const file = join(folder, 'a.pcapng');
  const child = spawn(process.execPath, [CLI, 'capture', 'fast/client', '-w', file, '--seconds', '600', '--instance', world.name], { stdio: ['ignore', 'ignore', 'pipe'] });
  const begun = (text: string): number => world.agentLog().split(text).length - 1;
  try {
    await waitFor('the log to say so', () => begun('capture of a pod\'s payload begins') === 1, { timeoutMs: 60_000, everyMs: 50 });
    const second = await run(process.execPath, [CLI, 'capture', 'fast/client', '-w', join(folder, 'b.pcapng'), '--instance', world.name], { okCodes: [1] });
    assert.match(second.stderr, /409 [^]*one at a time/);
    const { counters: grown } = await counted(() => load(40, { headers: { 'x-payload': 'seen-in-capture' } }));
    assert.ok(fastOf(grown) >= 30, JSON.stringify(grown));
    child.kill('SIGINT');
    const [code] = (await once(child, 'exit')) as [number];
    assert.equal(code, 0);
    const { stdout } = await run('tcpdump', ['-nn', '-A', '-r', file]);
    // Each request in the client's connection, and in the server's where it was repeated into it.
    assert.ok(stdout.split('seen-in-capture').length - 1 >= 40 + (grown['http_requests_fast'] ?? 0), stdout.slice(0, 500));
    assert.match(stdout, /HTTP\/1\.1 200 OK/);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    await waitFor('the log to say that it has ended', () => begun('capture of a pod\'s payload has ended') === 1, { timeoutMs: 60_000, everyMs: 50 });
    assert.match(world.agentLog(), /"pod":"fast\/client".*"by":"\w+, process \d+"/);
    // What is over the rate is left out, and said.
    const slow = spawn(process.execPath, [CLI, 'capture', 'fast/client', '-w', file, '--rate', '2k', '--instance', world.name], { stdio: 'ignore' });
    await waitFor('the next one to begin', () => begun('capture of a pod\'s payload begins') === 2, { timeoutMs: 60_000, everyMs: 50 });
    await load(200);
    slow.kill('SIGINT');
    await once(slow, 'exit');
    await waitFor('its end', () => begun('capture of a pod\'s payload has ended') === 2, { timeoutMs: 60_000, everyMs: 50 });
    const [, cut = '0'] = /"bytesCut":(\d+)[^\n]*has ended[^]*$/.exec(world.agentLog().slice(world.agentLog().lastIndexOf('"bytesCut"'))) ?? [];
    assert.ok(Number(cut) > 0, world.agentLog().slice(-1500));
    assert.match(await world.agentMetrics(), /^underpass_captures_total 2$/m);
  } finally {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  }
});

test('explain says of each route whether the kernel repeats it, and ps and the metrics how the whole is', async () => {
  const { http } = await world.explain('fast/client', 'web', 80);
  assert.equal(http?.isLive, true, JSON.stringify(http));
  assert.deepEqual(http?.routes.map(({ name, isFast }) => [/#\d (\w+)$/.exec(name)?.[1], isFast]), [['canary', true], ['rest', true]], JSON.stringify(http));
  const { stdout } = await run(process.execPath, [CLI, 'ps', '--instance', world.name]);
  assert.match(stdout, /^HTTP fast path on; 4 pods live/m);
  assert.match(stdout, / client .* l7 /);
  const status = await run(process.execPath, [CLI, 'fast-path', '--instance', world.name]);
  assert.match(status.stdout, /^requests +[1-9]\d* without Envoy; through it: .*not learnt yet \d+/m);
  const ofWorkload = await run(process.execPath, [CLI, 'explain', 'fast/web', 'web:80', '--instance', world.name]);
  assert.match(ofWorkload.stdout, /^fast\/web-v1 -> web = /m);
  const metrics = await world.agentMetrics();
  assert.match(metrics, /^underpass_http_fast_path_on 1$/m);
  assert.match(metrics, /^underpass_kernel_http_requests_fast_total [1-9]/m);
});

test('a canary by weight gets its share, of requests that the kernel draws', async () => {
  await world.apply('mesh', routed('v2', { v1: 75, v2: 25 }));
  await live(4);
  const { statuses, versions, counters: grown } = await counted(() => load(2_000));
  assert.deepEqual(statuses, { 200: 2_000 });
  // Five standard deviations of a binomial distribution.
  assert.ok(Math.abs((versions['v2'] ?? 0) - 500) < 5 * Math.sqrt(2_000 * 0.25 * 0.75), JSON.stringify(versions));
  assert.ok(fastOf(grown) >= 1_900, JSON.stringify(grown));
});

test('a canary of 1 % gets 1 %, however many requests a connection has: 5, 50 or 5,000', async (t) => {
  await world.apply('mesh', routed('v2', { v1: 99, v2: 1 }));
  await live(4);
  for (const [each, count] of [[5, 3_000], [50, 4_000], [5_000, 5_000]] as const) {
    // The bounds of 99.9 % of a binomial distribution; one run in a thousand is outside by chance, two in a row are not.
    const [mean, bound] = [count * 0.01, 3.29 * Math.sqrt(count * 0.01 * 0.99)];
    const tries: unknown[] = [];
    for (let attempt = 0; attempt < 2; attempt++) {
      const { statuses, versions, counters: grown } = await counted(() => load(count, { each }));
      assert.deepEqual(statuses, { 200: count });
      tries.push([versions, grown]);
      if (Math.abs((versions['v2'] ?? 0) - mean) <= bound) break;
      assert.equal(attempt, 0, JSON.stringify(tries));
    }
    t.diagnostic(`${each} requests a connection: ${JSON.stringify(tries)}`);
  }
});

test('switches: for all by the agent, for a pod by its label, on a connection that lives on', async () => {
  await world.apply('mesh', routed('v2', { v1: 100 }));
  await live(4);
  const stream = await Stream.start();
  try {
    await stream.fast(true);
    await switchTo(false);
    assert.deepEqual({ ...(await fastPath()), pods: undefined }.on, false);
    await stream.fast(false);
    await switchTo(true);
    await stream.fast(true);
    await world.lab.label({ kind: 'Pod', namespace: 'fast', name: 'client', labels: { 'underpass.io/acceleration': 'l4' } });
    await waitFor('the label to be in force', async () => (await world.agentStatus()).pods.some(({ name, acceleration, settled }) => name === 'client' && acceleration === 'l4' && settled), { timeoutMs: 60_000, everyMs: 50 });
    await stream.fast(false);
    await world.lab.label({ kind: 'Pod', namespace: 'fast', name: 'client', labels: { 'underpass.io/acceleration': null } });
    await live(4);
    await stream.fast(true);
  } finally {
    const { versions, failed } = await stream.stop();
    assert.deepEqual([Object.keys(versions), failed], [['v1'], []]);
  }
});

/** One of those that take each other's place: no two that follow each other answer alike. */
interface Configuration {
  canary: string;
  rest: Record<string, number>;
  isSecretDenied: boolean;
}
const WEIGHTS: Record<string, number>[] = [{ v1: 100 }, { v2: 50, v3: 50 }, { v1: 100 }, { v3: 100 }, { v1: 75, v2: 25 }, { v3: 100 }];
const configuration = (n: number): Configuration => ({ canary: `v${n % 3 + 1}`, rest: WEIGHTS[n % WEIGHTS.length]!, isSecretDenied: n % 4 === 2 });
/** What each kind of request may be answered under a configuration. */
const ANSWERED: Record<'canary' | 'rest' | 'secret', (by: Configuration) => string[]> = {
  canary: ({ canary }) => [canary],
  rest: ({ rest }) => Object.keys(rest),
  secret: ({ rest, isSecretDenied }) => (isSecretDenied ? ['403'] : Object.keys(rest)),
};
/** While one takes the other's place; routes and policies are resources of their own, of which either may come first. */
const between = (kind: keyof typeof ANSWERED, then: Configuration, now: Configuration): string[] =>
  [then, now, ...(kind === 'secret' ? [{ ...now, isSecretDenied: then.isSecretDenied }, { ...then, isSecretDenied: now.isSecretDenied }] : [])].flatMap(ANSWERED[kind]);

test(`${CHANGES} changes of weights, of a header's route and of a policy under load: each answer is of the configuration before or after, none of a third, none fails, and none is late`, async (t) => {
  const apply = ({ canary, rest, isSecretDenied }: Configuration): Promise<void> => world.apply('mesh', routed(canary, rest) + (isSecretDenied ? DENY_SECRET : ''));
  let now = configuration(0);
  await apply(now);
  await live(4);
  const streams = { canary: await Stream.start({ 'x-canary': 'yes' }), rest: await Stream.start(), secret: await Stream.start({}, '/secret') };
  const { http_requests_fast: before = 0 } = await counters();
  const started = performance.now();
  let judged = 0;
  try {
    await streams.canary.fast(true);
    for (let change = 1; change <= CHANGES; change++) {
      const [then, from] = [now, mapped(streams, (stream) => stream.marked())];
      now = configuration(change);
      await apply(now);
      const allowed = mapped(ANSWERED, (of) => ({ before: of(then), after: of(now) }));
      // A policy may come to be in force later than the routes, and at each of its pods by itself.
      if (now.isSecretDenied !== then.isSecretDenied) await streams.secret.until((version) => allowed.secret.after.includes(version));
      // All proxies have acknowledged it: from the second request on, since one may have been under way, all answers are new.
      const done = mapped(streams, (stream) => stream.marked());
      await Promise.all(Object.values(streams).map((stream) => stream.more(20)));
      for (const kind of ['canary', 'rest', 'secret'] as const) {
        const [stream, { before: old, after }] = [streams[kind], allowed[kind]];
        const said = `change ${change}, ${kind}: ${old.join()} to ${after.join()}: ${stream.runs(from[kind])}`;
        assert.ok(stream.versions(from[kind]).every((version) => between(kind, then, now).includes(version)), `an answer of a third: ${said}`);
        assert.ok(stream.versions(done[kind] + 1).every((version) => after.includes(version)), `a late one: ${said}`);
        if (kind !== 'secret' && !old.some((version) => after.includes(version))) assert.ok(stream.isOnceFor(from[kind], after), `there and back: ${said}`);
        judged += stream.marked() - from[kind];
      }
    }
    const { http_requests_fast: end = 0 } = await counters();
    t.diagnostic(`${CHANGES} changes in ${Math.round((performance.now() - started) / 1_000)} s, ${judged} answers judged, ${end - before} requests without Envoy`);
    assert.ok(end - before >= CHANGES, `${end - before} fast requests while routes changed`);
    await live(4);
    await streams.canary.fast(true);
  } finally {
    const stopped = await Promise.all(Object.values(streams).map((stream) => stream.stop()));
    assert.deepEqual(stopped.flatMap(({ failed }) => failed), []);
  }
});

test('a policy that forbids a path takes effect on the next request of a connection that was fast, and one that allows it again too', async () => {
  await world.apply('mesh', routed('v2', { v1: 100 }));
  await live(4);
  const stream = await Stream.start({}, '/secret');
  try {
    await stream.fast(true);
    await world.apply('mesh', routed('v2', { v1: 100 }) + DENY_SECRET);
    await waitFor('callers to be led through the policy', async () => {
      const from = stream.marked();
      await stream.more(5);
      return stream.versions(from + 1).join() === '403';
    }, { timeoutMs: 60_000, everyMs: 5 });
    const from = stream.marked();
    await stream.more(300);
    assert.deepEqual(stream.versions(from), ['403']);
    // What it does not forbid goes on without Envoy.
    await live(4);
    const open = await Stream.start({}, '/open');
    try {
      await open.fast(true);
    } finally {
      assert.deepEqual((await open.stop()).failed, []);
    }
    await world.apply('mesh', routed('v2', { v1: 100 }));
    await stream.fast(true);
  } finally {
    assert.deepEqual((await stream.stop()).failed, []);
  }
});

test('upstream connections end with their client, although Envoy keeps them for ever', async () => {
  await world.apply('mesh', routed('v2', { v1: 100 }));
  await live(4);
  const atServer = async (): Promise<number> => (await tcpSockets(world.lab.pod('fast', 'web-v1').netns)).filter(({ listening, localPort }) => !listening && localPort === 8080).length;
  const { statuses } = await load(60, { fresh: true });
  assert.deepEqual(statuses, { 200: 60 });
  await waitFor('the connections of clients that are gone to end', async () => (await atServer()) <= 8, { timeoutMs: 60_000, everyMs: 100 }).catch(async (error: unknown) => {
    throw new Error(`${String(error)}: ${await atServer()} ${JSON.stringify(await fastPath())}`);
  });
  assert.ok((await fastPath()).upstreamsEnded >= 40, JSON.stringify(await fastPath()));
});

test('an agent that is killed: requests go on, by Envoy after a second, and are fast again with the next agent', async () => {
  await live(4);
  const stream = await Stream.start();
  try {
    await stream.fast(true);
    await world.stopAgent('node-1', 'SIGKILL');
    await sleep(1_500);
    await stream.more(200);
    await world.startAgent('node-1');
    await world.enrolled();
    await live(4);
    await stream.fast(true);
  } finally {
    const { failed, versions } = await stream.stop();
    assert.deepEqual([failed, Object.keys(versions)], [[], ['v1']]);
  }
});

test('an Envoy that dies: connections are opened anew, and fast again with the next one', async () => {
  await world.apply('mesh', routed('v2', { v1: 100 }));
  await live(4);
  const streams = await Promise.all(Array.from({ length: 6 }, (_, index) => Stream.start(index % 2 === 0 ? {} : { 'x-canary': 'yes' })));
  try {
    for (const stream of streams) await stream.fast(true);
    const { pid } = (await world.agentStatus()).proxy.envoy;
    process.kill(pid!, 'SIGKILL');
    await waitFor('another Envoy', async () => {
      const { envoy } = (await world.agentStatus()).proxy;
      return envoy.pid !== undefined && envoy.pid !== pid && envoy.connected;
    }, { timeoutMs: 120_000, everyMs: 50 });
    await world.settled();
    await live(4);
    for (const stream of streams) await stream.fast(true);
  } finally {
    const results = await Promise.all(streams.map((stream) => stream.stop()));
    results.forEach(({ versions, failed }, index) => {
      assert.deepEqual(Object.keys(versions), [index % 2 === 0 ? 'v1' : 'v2'], 'nobody is answered for another route');
      assert.ok(failed.every((code) => ['ECONNRESET', 'ECONNREFUSED', 'EPIPE', 'ECONNABORTED', '503'].includes(code)), failed.join());
    });
  }
});

test('a server that closes its connection instead of a fast answer: its client hears of it, though Envoy does not see it', async () => {
  await world.apply('mesh', routed('v2', { v1: 100 }));
  await live(4);
  const { stdout } = await world.lab.exec('fast/client', [process.execPath, '-e', `
    const http = require('node:http'); const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const get = (path) => new Promise((resolve) => { const started = Date.now(); const r = http.get('http://web' + path, { agent }, (a) => { a.on('error', (e) => resolve(e.code)); a.resume().on('end', () => resolve(a.statusCode)); }); r.on('error', (e) => resolve(e.code)); });
    (async () => { for (let i = 0; i < 20; i++) await get('/'); console.log(JSON.stringify(await get('/reset'))); process.exit(); })();`], { timeoutMs: 30_000 });
  assert.equal(JSON.parse(stdout), 'ECONNRESET');
  const { endings } = await fastPath();
  assert.ok(endings.clientsReset >= 1, JSON.stringify(endings));
});

function mapped<K extends string, T, U>(of: Record<K, T>, change: (value: T) => U): Record<K, U> {
  return Object.fromEntries(Object.entries<T>(of).map(([key, value]) => [key, change(value)])) as Record<K, U>;
}

/** Requests over one connection after another as long as it lives, one at a time. */
class Stream {
  readonly #answers: { version: string; at: number }[] = [];
  readonly #failed: string[] = [];
  #text = '';

  private constructor(readonly child: ChildProcess) {
    child.stdout!.on('data', (data: Buffer) => {
      const lines = (this.#text + data.toString()).split('\n');
      this.#text = lines.pop() ?? '';
      for (const line of lines) {
        if (line.startsWith('!')) this.#failed.push(line.slice(1));
        else this.#answers.push({ version: line, at: performance.now() });
      }
    });
  }

  static async start(headers: Record<string, string> = {}, path = '/'): Promise<Stream> {
    const script = `const http = require('node:http'); const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      const one = () => new Promise((resolve) => {
        const request = http.get('http://web${path}', { agent, headers: ${JSON.stringify(headers)}, timeout: 30000 }, (answer) => {
          answer.on('error', (error) => { console.log('!' + error.code); resolve(); });
          answer.resume().on('end', () => { console.log(answer.statusCode === 200 ? answer.headers['x-version'] : answer.statusCode === 403 ? '403' : '!' + answer.statusCode); resolve(); });
        });
        request.on('timeout', () => request.destroy(new Error('timeout'))).on('error', (error) => { console.log('!' + (error.code ?? error.message)); resolve(); });
      });
      (async () => { for (;;) { await one(); await new Promise((r) => setTimeout(r, 1)); } })();`;
    const stream = new Stream(world.lab.spawnIn('fast/client', [process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] }));
    await stream.more(1);
    return stream;
  }

  marked(): number {
    return this.#answers.length;
  }

  versions(from: number): string[] {
    return [...new Set(this.#answers.slice(from).map(({ version }) => version))];
  }

  /** The answers in their order, those that follow each other alike taken together. */
  runs(from: number): string {
    const runs: [string, number][] = [];
    for (const { version } of this.#answers.slice(from)) {
      const last = runs.at(-1);
      if (last?.[0] === version) last[1]++;
      else runs.push([version, 1]);
    }
    return runs.map(([version, count]) => `${count} × ${version}`).join(', ');
  }

  /** Whether, once there was one of these, there were no others. */
  isOnceFor(from: number, versions: readonly string[]): boolean {
    const answers = this.#answers.slice(from);
    const first = answers.findIndex(({ version }) => versions.includes(version));
    return first < 0 || answers.slice(first).every(({ version }) => versions.includes(version));
  }

  /** Until thirty answers in a row are such. */
  async until(is: (version: string) => boolean): Promise<void> {
    const from = this.marked();
    await waitFor('answers of the new configuration', () => this.marked() >= from + 30 && this.#answers.slice(-30).every(({ version }) => is(version)), { timeoutMs: 60_000, everyMs: 2 }).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${this.#failed.join()}`);
    });
  }

  async more(count: number): Promise<void> {
    const wanted = this.#answers.length + count;
    await waitFor(`${count} more answers`, () => this.#answers.length >= wanted, { timeoutMs: 60_000, everyMs: 2 }).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${this.#failed.join()}`);
    });
  }

  /** Until requests are fast, or until none is any more. */
  async fast(wanted: boolean): Promise<void> {
    let last: unknown;
    await waitFor(`requests ${wanted ? '' : 'not '}to be fast`, async () => {
      const { counters: grown } = await counted(async () => {
        await this.more(30);
        return { versions: {}, statuses: {} };
      });
      last = grown;
      return wanted ? (grown['http_requests_fast'] ?? 0) >= 25 : grown['http_requests_fast'] === undefined;
    }, { timeoutMs: 60_000, everyMs: 1 }).catch(async (error: unknown) => {
      throw new Error(`${String(error)} ${JSON.stringify(last)} ${JSON.stringify(await fastPath())}`);
    });
  }

  async stop(): Promise<{ versions: Record<string, number>; failed: string[] }> {
    this.child.kill('SIGKILL');
    await once(this.child, 'exit');
    const versions: Record<string, number> = {};
    for (const { version } of this.#answers) versions[version] = (versions[version] ?? 0) + 1;
    return { versions, failed: this.#failed };
  }
}
