/**
 * Policy in the kernel for pods that share their node's Envoy, with real traffic: what a change forbids is ended, whichever
 * way it came, a kubelet's probes get through, and pods are steered to Envoy where there is no iptables.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import type { Explanation } from '../agent/index.js';
import { waitFor } from '../common/retry.js';
import { MeshWorld } from './mesh/world.js';

const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';
/** As a kubelet asks: from the node's namespace, over plain HTTP. */
const PROBE = 'readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1, failureThreshold: 1}';
const echo = (name: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: node, labels: {app: ${name}}}
spec: {serviceAccountName: ${name}, containers: [{${ECHO}, ${PROBE}}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: node}
spec: {selector: {app: ${name}}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
---
`;
const client = (name: string, l7 = 'auto'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: node, labels: {app: ${name}, underpass.io/l7: ${l7}}, annotations: {lab.underpass.io/service-proxy: none}}
spec: {serviceAccountName: ${name}, containers: [{name: curl, image: curl}]}
---
`;
const PODS = `${echo('near')}${echo('aside')}${client('alice')}${client('bob')}${client('carol', 'always')}apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside, labels: {app: client}}
spec: {containers: [{name: curl, image: curl}]}
`;
const policy = (kind: string, name: string, spec: string): string => `apiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: {name: ${name}, namespace: node}\nspec: ${spec}\n`;
const NEAR = 'selector: {matchLabels: {app: near}}';
const STRICT = policy('PeerAuthentication', 'near', `{${NEAR}, mtls: {mode: STRICT}}`);
const from = (action: string, pod: string): string => policy('AuthorizationPolicy', `${action.toLowerCase()}-${pod}`, `{${NEAR}, action: ${action}, rules: [{from: [{source: {principals: ["cluster.local/ns/node/sa/${pod}"]}}]}]}`);
const [ALICE, BOB, CAROL, STRANGER] = ['node/alice', 'node/bob', 'node/carol', 'outside/client'] as const;

/** A client that says a line ten times a second, until it has no connection any more, or so many answers, or is told to stop. */
const TALKER = `
const net = require('node:net');
const [host, port, seconds, enough] = JSON.parse(process.argv[1]);
const http = 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n';
let answers = 0;
const socket = net.connect({ host, port });
const end = (word) => { console.log(JSON.stringify({ word, answers, at: Date.now() })); process.exit(); };
const talk = () => socket.write(port === 9000 ? 'ping\\n' : http);
socket.on('connect', () => { talk(); setInterval(talk, 100); });
socket.on('data', () => ++answers === enough && end('open')).on('error', ({ code }) => end(code)).on('end', () => end('end'));
setTimeout(() => end('open'), seconds * 1000);`;

/** Connections one after the other, each with one request, for so long; how often each answer came: a status, or an error's code. */
const CALLER = `
const http = require('node:http');
const net = require('node:net');
const [host, port, seconds, path] = JSON.parse(process.argv[1]);
const until = Date.now() + seconds * 1000;
const counts = {};
const ask = () => new Promise((resolve) => http.get({ host, port, path, agent: false, timeout: 5000 }, (answer) => answer.resume().on('end', () => resolve(answer.statusCode))).on('timeout', function () { this.destroy(new Error('silence')); }).on('error', (error) => resolve(error.code ?? error.message)));
const say = () => new Promise((resolve) => { const socket = net.connect({ host, port, timeout: 5000 }, () => socket.write('ping\\n')); socket.on('data', () => { resolve('echoed'); socket.destroy(); }).on('timeout', () => { resolve('silence'); socket.destroy(); }).on('error', ({ code }) => resolve(code)).on('end', () => resolve('end')); });
(async () => { while (Date.now() < until) { const answer = await (path === null ? say() : ask()); counts[answer] = (counts[answer] ?? 0) + 1; } console.log(JSON.stringify(counts)); })();`;

/** Requests over connections that are kept, several at a time, each after an answer of its own length; how often each status or error came in the first and the second half. */
const KEEPER = `
const http = require('node:http');
const [host, port, seconds, paths] = JSON.parse(process.argv[1]);
const agent = new http.Agent({ keepAlive: true });
const [start, halves] = [Date.now(), [{}, {}]];
const ask = (path) => new Promise((resolve) => http.get({ host, port, path, agent, timeout: 5000 }, (answer) => answer.resume().on('end', () => resolve(answer.statusCode))).on('timeout', function () { this.destroy(new Error('silence')); }).on('error', (error) => resolve(error.code ?? error.message)));
const keep = async (path) => { for (;;) { const forMs = Date.now() - start; if (forMs > seconds * 1000) return; const half = halves[forMs * 2 > seconds * 1000 ? 1 : 0]; const answer = await ask(path); half[answer] = (half[answer] ?? 0) + 1; await new Promise((resolve) => setTimeout(resolve, 10)); } };
Promise.all(paths.map(keep)).then(() => { console.log(JSON.stringify(halves)); process.exit(); });`;

/** Two requests over one connection, the second after so long; what came of each. */
const PAUSER = `
const net = require('node:net');
const [host, port, seconds, header] = JSON.parse(process.argv[1]);
const heard = [];
const end = (word) => { heard.push(word); console.log(JSON.stringify(heard)); process.exit(); };
const socket = net.connect({ host, port });
const ask = () => socket.write('GET /open HTTP/1.1\\r\\nHost: ' + host + '\\r\\n' + header + '\\r\\n\\r\\n');
socket.on('connect', ask).on('error', ({ code }) => end(code)).on('end', () => end('end'));
socket.on('data', (data) => { const [, status] = /^HTTP\\/1.1 (\\d+)/.exec(data) ?? []; if (!status) return; if (heard.length > 0) end(status); heard.push(status); setTimeout(ask, seconds * 1000); });
setTimeout(() => end('silence'), seconds * 1000 + 10000);`;

interface Talk {
  /** `open` when it was there to the last; a connection that ends says `end` or an error's code. */
  word: string;
  answers: number;
  /** When it ended, in milliseconds since the epoch. */
  at: number;
}

class World extends MeshWorld {
  address(name: string): string {
    return this.lab.pod('node', name).ips[0]!;
  }

  async talk(pod: string, host: string, port: number, seconds: number, enough?: number): Promise<Talk> {
    const { stdout, stderr } = await this.lab.exec(pod, [process.execPath, '-e', TALKER, JSON.stringify([host, port, seconds, enough])], { timeoutMs: 60_000 });
    assert.ok(stdout, stderr);
    return JSON.parse(stdout) as Talk;
  }

  /** `echoed`; `refused`, at once; `silence`. */
  async line(pod: string, host: string, port = 9000): Promise<string> {
    const { word, answers } = await this.talk(pod, host, port, 2, 1);
    return answers > 0 ? 'echoed' : word === 'ECONNREFUSED' || word === 'ECONNRESET' || word === 'end' ? 'refused' : 'silence';
  }

  /** Waits until all say what is expected: Envoy hears of a policy later than the kernel. */
  async becomes(expected: Record<string, [Promise<string> | (() => Promise<string>), string]>): Promise<void> {
    const wanted = Object.fromEntries(Object.entries(expected).map(([name, [, answer]]) => [name, answer]));
    let found: Record<string, string> = {};
    const look = async (): Promise<boolean> => {
      found = Object.fromEntries(await Promise.all(Object.entries(expected).map(async ([name, [probe]]) => [name, await (typeof probe === 'function' ? probe() : probe)] as const)));
      return isDeepStrictEqual(found, wanted);
    };
    await waitFor('the policies to be in force', look, { timeoutMs: 120_000, everyMs: 100 }).catch(() => assert.deepEqual(found, wanted));
  }

  /** The pod's probes get through and find it ready. */
  async isProbed(): Promise<void> {
    const count = async (): Promise<number> => Number(/^underpass_kernel_policy_host_let_in_total (\d+)/m.exec(await this.agentMetrics())![1]);
    // Who took the node's address had the answers to its probes.
    await waitFor('the pod to be ready', () => this.lab.pod('node', 'near').ready, { timeoutMs: 120_000, everyMs: 20 });
    const [before, ready] = [await count(), new Set<boolean>()];
    await waitFor('the probes of three periods', async () => {
      ready.add(this.lab.pod('node', 'near').ready);
      return (await count()) >= before + 6;
    }, { timeoutMs: 60_000, everyMs: 100 });
    assert.deepEqual([...ready], [true]);
  }

  /** What a pod hears that takes the node's address, and all that is answered to it. */
  async asNode(pod: string): Promise<string> {
    const [near, gateway, at] = [this.address('near'), this.lab.info().nodes[0]!.dns[0]!, { timeoutMs: 60_000 }];
    const [{ address: mac }] = JSON.parse((await this.lab.exec(pod, ['ip', '-j', 'link', 'show', 'eth0'], at)).stdout) as [{ address: string }];
    const run = async (where: string, ...args: string[]): Promise<void> => {
      const { code, stderr } = await this.lab.exec(where, ['ip', ...args], at);
      assert.equal(code, 0, stderr);
    };
    await run(pod, 'addr', 'add', `${gateway}/32`, 'dev', 'eth0');
    await run('node/near', 'neigh', 'replace', gateway, 'lladdr', mac, 'dev', 'eth0', 'nud', 'permanent');
    try {
      const curl = await this.lab.exec(pod, ['curl', '-sSf', '-o', '/dev/null', '--interface', gateway, '--max-time', '2', `http://${near}:8080/healthz`], at);
      return curl.code === 0 ? 'answered' : 'refused';
    } finally {
      await run('node/near', 'neigh', 'del', gateway, 'dev', 'eth0');
      await run(pod, 'addr', 'del', `${gateway}/32`, 'dev', 'eth0');
    }
  }

  /** @param path null: TCP alone */
  async calls(pod: string, host: string, port: number, seconds: number, path: string | null = null): Promise<Record<string, number>> {
    const { stdout, stderr } = await this.lab.exec(pod, [process.execPath, '-e', CALLER, JSON.stringify([host, port, seconds, path])], { timeoutMs: 60_000 });
    assert.ok(stdout, stderr);
    return JSON.parse(stdout) as Record<string, number>;
  }

  /** The first half and the second. */
  async keeps(pod: string, host: string, port: number, seconds: number, paths: string[]): Promise<[Record<string, number>, Record<string, number>]> {
    const { stdout, stderr } = await this.lab.exec(pod, [process.execPath, '-e', KEEPER, JSON.stringify([host, port, seconds, paths])], { timeoutMs: 60_000 });
    assert.ok(stdout, stderr);
    return JSON.parse(stdout) as [Record<string, number>, Record<string, number>];
  }

  async pauses(pod: string, host: string, port: number, seconds: number, header: string): Promise<string[]> {
    const { stdout, stderr } = await this.lab.exec(pod, [process.execPath, '-e', PAUSER, JSON.stringify([host, port, seconds, header])], { timeoutMs: 60_000 });
    assert.ok(stdout, stderr);
    return JSON.parse(stdout) as string[];
  }

  async explained(pod: string, host: string, port: number): Promise<Explanation['addresses'][number]> {
    const [found] = (await this.explain(pod, host, port)).addresses;
    return found!;
  }

  async counter(name: string): Promise<number> {
    return Number(new RegExp(`^underpass_kernel_${name}_total (\\d+)`, 'm').exec(await this.agentMetrics())?.[1]);
  }

  /** Waits until callers of the pod's address are not led to Envoy any more. */
  async straight(pod: string): Promise<void> {
    const look = async (): Promise<boolean> => {
      const steered = await this.counter('inbound_steered');
      return (await this.line(pod, this.address('near'), 8080)) === 'echoed' && (await this.counter('inbound_steered')) === steered;
    };
    await waitFor('the end of the steering', look, { timeoutMs: 60_000 });
  }

  async closed(): Promise<number> {
    return (await this.agentStatus()).policies!.connectionsClosed;
  }
}

describe('with Envoy in the way', () => {
  const world = new World('polenvoy', { bare: true, outside: PODS });
  before(() => world.up());
  after(() => world.down());

  test('connections straight to a pod that are older than a policy go on if it allows them, end if not, and are counted', async (context) => {
    await world.clear('mesh');
    const before = await world.closed();
    const near = world.address('near');
    // Nothing listens for the mesh on 8080: these pass no proxy.
    const talks = [world.talk(ALICE, near, 8080, 8), world.talk(BOB, near, 8080, 30), world.talk(STRANGER, near, 8080, 30), world.talk(BOB, world.address('aside'), 8080, 8)];
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const changedAt = Date.now();
    await world.apply('mesh', from('ALLOW', 'alice'));
    const [alice, bob, stranger, aside] = await Promise.all(talks);
    assert.deepEqual([alice!.word, bob!.word, stranger!.word, aside!.word], ['open', 'ECONNRESET', 'ECONNRESET', 'open']);
    context.diagnostic(`ended ${bob!.at - changedAt} and ${stranger!.at - changedAt} ms after the policy was written`);
    assert.ok(talks.length === 4 && [alice, bob, stranger, aside].every((talk) => talk!.answers > 0), JSON.stringify([alice, bob, stranger, aside]));
    assert.ok((await world.closed()) - before >= 2);
    assert.match(await world.agentMetrics(), /^underpass_policy_connections_closed_total [1-9]/m);
    await world.becomes({ bob: [() => world.line(BOB, 'near.node'), 'refused'], alice: [() => world.line(ALICE, 'near.node'), 'echoed'] });
  });

  test('a connection that Envoy passes on ends when a policy that forbids it comes; the workload beside it has its own', async (context) => {
    await world.apply('mesh', from('ALLOW', 'alice') + '---\n' + from('ALLOW', 'bob'));
    await world.becomes({ alice: [() => world.line(ALICE, 'near.node'), 'echoed'], bob: [() => world.line(BOB, 'near.node'), 'echoed'] });
    const talks = [world.talk(BOB, 'near.node', 9000, 30), world.talk(BOB, 'aside.node', 9000, 8)];
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const changedAt = Date.now();
    await world.apply('mesh', from('ALLOW', 'alice'));
    const [bob, aside] = await Promise.all(talks);
    context.diagnostic(`ended ${bob!.at - changedAt} ms after the policy was written`);
    assert.notEqual(bob!.word, 'open');
    assert.ok(bob!.answers > 0);
    assert.equal(aside!.word, 'open');
    await world.becomes({ alice: [() => world.line(ALICE, 'near.node'), 'echoed'], bob: [() => world.line(BOB, 'near.node'), 'refused'] });
  });

  test('STRICT ends the plaintext connections that outsiders had before it, and those alone', async (context) => {
    await world.clear('mesh');
    await world.becomes({ stranger: [() => world.line(STRANGER, 'near.node'), 'echoed'] });
    await world.straight(ALICE);
    const talks = [world.talk(STRANGER, 'near.node', 9000, 30), world.talk(ALICE, world.address('near'), 8080, 8)];
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const changedAt = Date.now();
    await world.apply('mesh', STRICT);
    const [stranger, alice] = await Promise.all(talks);
    context.diagnostic(`ended ${stranger!.at - changedAt} ms after the policy was written`);
    assert.deepEqual([stranger!.word, alice!.word], ['ECONNRESET', 'open']);
    assert.ok(stranger!.answers > 0 && alice!.answers > 0);
    await world.becomes({ stranger: [() => world.line(STRANGER, 'near.node'), 'refused'], alice: [() => world.line(ALICE, 'near.node'), 'echoed'] });
    assert.match(await world.agentMetrics(), /^underpass_kernel_inbound_steered_total [1-9]/m, 'Envoy refused, and no rule led there');
    assert.deepEqual((await world.lab.exec('node/near', ['iptables-nft-save', '-t', 'nat'])).stdout.match(/UNDERPASS_INBOUND/g), null);
    assert.deepEqual((await world.agentStatus()).policies!.unreadable, []);
    assert.equal((await world.agentStatus()).policies!.problem, undefined);
  });

  test("a kubelet's probes pass STRICT and a policy by principal; a pod that takes the node's address does not", async () => {
    await world.clear('mesh');
    await world.becomes({ 'as the node': [() => world.asNode(STRANGER), 'answered'] });
    for (const [name, policy, stranger] of [['STRICT', STRICT, 'refused'], ['ALLOW', from('ALLOW', 'alice'), 'refused']] as const) {
      await world.apply('mesh', policy);
      await world.becomes({ [name]: [() => world.line(STRANGER, world.address('near')), stranger] });
      await world.isProbed();
      assert.equal(await world.asNode(STRANGER), 'refused', name);
    }
    await world.isProbed();
  });

  test('Envoy is killed: a pod whose callers are steered to it lets nobody in meanwhile, and finds the next one', async () => {
    await world.apply('mesh', from('ALLOW', 'alice'));
    const near = world.address('near');
    await world.becomes({ stranger: [() => world.line(STRANGER, near), 'refused'], alice: [() => world.line(ALICE, 'near.node'), 'echoed'] });
    const steered = async (): Promise<number> => Number(/^underpass_kernel_inbound_steered_total (\d+)/m.exec(await world.agentMetrics())![1]);
    const { pid } = (await world.agentStatus()).proxy.envoy;
    process.kill(pid!, 'SIGKILL');
    const [before, heard] = [await steered(), new Set<string>()];
    await waitFor('the next Envoy to be asked', async () => {
      heard.add(await world.line(STRANGER, near));
      return (await steered()) > before;
    }, { timeoutMs: 120_000, everyMs: 1 });
    assert.deepEqual([...heard], ['refused']);
    assert.notEqual((await world.agentStatus()).proxy.envoy.pid, pid);
    await world.becomes({ alice: [() => world.line(ALICE, 'near.node'), 'echoed'] });
    await world.isProbed();
  });

  test('what a policy forbids that came while the agent was away ends when the next one hears of it, straight or through Envoy', async () => {
    await world.clear('mesh');
    await world.becomes({ bob: [() => world.line(BOB, world.address('near'), 8080), 'echoed'] });
    await world.straight(BOB);
    const direct = [world.talk(BOB, world.address('near'), 8080, 45), world.talk(ALICE, world.address('near'), 8080, 20)];
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const both = `${from('ALLOW', 'alice')}---\n${from('ALLOW', 'bob')}`;
    await world.apply('mesh', both);
    await world.becomes({ bob: [() => world.line(BOB, 'near.node'), 'echoed'], stranger: [() => world.line(STRANGER, 'near.node'), 'refused'] });
    const throughEnvoy = world.talk(BOB, 'near.node', 9000, 45);
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    const node = world.lab.info().nodes[0]!.name;
    await world.stopAgent(node);
    // Nobody is there to acknowledge it.
    await world.apply('mesh', from('ALLOW', 'alice')).catch(() => undefined);
    await world.startAgent(node);
    const [bob, alice, bobThroughEnvoy] = await Promise.all([...direct, throughEnvoy]);
    assert.deepEqual([bob!.word, alice!.word], ['ECONNRESET', 'open']);
    assert.notEqual(bobThroughEnvoy!.word, 'open');
    assert.ok(bob!.answers > 20 && bobThroughEnvoy!.answers > 0, JSON.stringify([bob, bobThroughEnvoy]));
    await world.enrolled();
    await world.becomes({ alice: [() => world.line(ALICE, 'near.node'), 'echoed'], bob: [() => world.line(BOB, 'near.node'), 'refused'] });
  });
});

describe('requests, as a policy grows stricter', () => {
  const world = new World('polkeep', { bare: true, outside: PODS });
  before(() => world.up());
  after(() => world.down());

  test('whom it allows meets no error, nor when it is the first one, nor when something else changes right after; kept connections of whom it forbids are of no use any more', async (context) => {
    const open = policy('AuthorizationPolicy', 'open', `{${NEAR}, action: ALLOW, rules: [{to: [{operation: {paths: ["/open", "/delay/*"]}}]}]}`);
    const mallory = policy('AuthorizationPolicy', 'mallory', `{${NEAR}, action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/node/sa/bob"]}}]}, {when: [{key: "request.headers[x-who]", values: [mallory]}]}]}`);
    const other = (mode: string): string => policy('PeerAuthentication', 'aside', `{selector: {matchLabels: {app: aside}}, mtls: {mode: ${mode}}}`);
    const near = world.address('near');
    // Envoy leads her requests to the pod itself as long as that has no policy.
    const carol = world.keeps(CAROL, 'near.node', 80, 16, ['/open', '/delay/1', '/delay/1', '/delay/1']);
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    await world.apply('mesh', open);
    await world.becomes({ bob: [async () => JSON.stringify(await world.calls(BOB, 'near.node', 80, 0.01, '/')), '{"403":1}'], stranger: [async () => JSON.stringify(await world.calls(STRANGER, near, 8080, 0.01, '/')), '{"403":1}'] });
    const paths = ['/open', '/open', '/delay/0.1', '/delay/0.25'];
    const kept = [world.keeps(ALICE, 'near.node', 80, 16, paths), world.keeps(STRANGER, near, 8080, 16, paths), world.keeps(BOB, 'near.node', 80, 16, ['/open', '/open'])];
    const paused = [world.pauses(STRANGER, near, 8080, 8, 'x-who: mallory'), world.pauses(BOB, 'near.node', 80, 8, 'x-who: bob')];
    await new Promise((resolve) => setTimeout(resolve, 2_000));
    await world.apply('mesh', `${open}---\n${mallory}`);
    // What is written here ends nobody's connection to this pod.
    for (const mode of ['STRICT', 'PERMISSIVE', 'STRICT']) await world.apply('mesh', `${open}---\n${mallory}---\n${other(mode)}`);
    const [alice, stranger, bob] = await Promise.all(kept);
    context.diagnostic(JSON.stringify([alice, stranger, bob]));
    assert.deepEqual([...alice!, ...stranger!].flatMap((half) => Object.keys(half)), ['200', '200', '200', '200']);
    assert.deepEqual((await carol).flatMap((half) => Object.keys(half)), ['200', '200'], JSON.stringify(await carol));
    assert.deepEqual(Object.keys(bob![1]), ['403']);
    for (const [first, second] of await Promise.all(paused)) assert.deepEqual([first, ['403', 'ECONNRESET', 'end'].includes(second!)], ['200', true], second);
    assert.ok((await world.closed()) > 0);
  });
});

describe('what the kernel judges whole', () => {
  const world = new World('poljudged', { bare: true, outside: PODS });
  before(() => world.up());
  after(() => world.down());
  const TCP = ['near.node', 9000] as const;
  const HTTP = ['near.node', 80] as const;

  test('an ALLOW by principal is judged at connect(): whom it names is short-circuited past Envoy, nobody else gets in', async () => {
    await world.apply('mesh', from('ALLOW', 'alice'));
    await world.becomes({ alice: [async () => (await world.explained(ALICE, ...TCP)).way, 'endpoint'], bob: [async () => (await world.explained(BOB, ...TCP)).way, 'refused'] });
    assert.deepEqual((await world.explained(ALICE, ...TCP)).destinations?.map(({ pod, port, policy: { answer, judge } }) => [pod, port, answer, judge]), [['node/near', 9000, 'allow', 'kernel']]);
    assert.match((await world.explained(BOB, ...TCP)).reasons.join('\n'), /the policy of node\/near: no ALLOW policy fits/);
    assert.match((await world.explained(ALICE, ...HTTP)).reasons.join('\n'), /its requests are judged or changed one by one/);
    const [near] = (await world.agentStatus()).policies!.inbound;
    assert.deepEqual([near?.pod, near?.kernel, Object.keys(near!.envoy)], ['node/near', [9000], ['8080']]);
    const names = ['policy_connect_let_past', 'connections_resolved', 'connections_captured', 'connections_short_circuited'];
    const counters = async (): Promise<number[]> => Promise.all(names.map((name) => world.counter(name)));
    const before_ = await counters();
    const [alice, bob, stranger] = await Promise.all([world.calls(ALICE, ...TCP, 2), world.calls(BOB, ...TCP, 2), world.calls(STRANGER, ...TCP, 2)]);
    const [past, resolved, captured, short] = (await counters()).map((value, index) => value - before_[index]!);
    assert.deepEqual(Object.keys(alice), ['echoed']);
    assert.deepEqual(Object.keys(bob), ['ECONNREFUSED']);
    assert.equal(stranger['echoed'], undefined, JSON.stringify(stranger));
    assert.deepEqual([past, resolved, captured], [alice['echoed'], alice['echoed'], 0]);
    // All but those that both programs' probation takes.
    assert.ok(alice['echoed']! > 40 && short! >= alice['echoed']! - 20, `${short} of ${alice['echoed']}`);
  });

  test('other policies of the same kind are the kernel\'s from one moment to the next; who is in none of them never gets a byte', async () => {
    const outsiders = [world.calls(STRANGER, ...TCP, 8), world.calls(STRANGER, world.address('near'), 9000, 8)];
    const alice = world.calls(ALICE, ...TCP, 8);
    await world.apply('mesh', from('ALLOW', 'alice') + '---\n' + from('ALLOW', 'bob'));
    await world.becomes({ bob: [() => world.line(BOB, ...TCP), 'echoed'] });
    await world.apply('mesh', from('ALLOW', 'alice'));
    await world.becomes({ bob: [() => world.line(BOB, ...TCP), 'refused'], alice: [async () => (await world.explained(ALICE, ...TCP)).way, 'endpoint'] });
    for (const answers of await Promise.all(outsiders)) assert.equal(answers['echoed'], undefined, JSON.stringify(answers));
    assert.deepEqual(Object.keys(await alice), ['echoed']);
  });

  test('a rule about HTTP brings Envoy back without an open moment, and its end the kernel; connections that Envoy has go on', async () => {
    await world.apply('mesh', STRICT);
    await world.becomes({ bob: [async () => (await world.explained(BOB, ...HTTP)).way, 'endpoint'] });
    const stranger = world.calls(STRANGER, ...HTTP, 16, '/');
    const alice = world.calls(ALICE, ...HTTP, 16, '/open');
    const http = policy('AuthorizationPolicy', 'open', `{${NEAR}, action: ALLOW, rules: [{to: [{operation: {paths: ["/open"]}}]}]}`);
    await world.apply('mesh', `${STRICT}---\n${http}`);
    await world.becomes({ bob: [async () => JSON.stringify(await world.calls(BOB, ...HTTP, 0.01, '/')), '{"403":1}'] });
    assert.match((await world.explained(BOB, ...HTTP)).reasons.join('\n'), /its requests are judged or changed one by one/);
    const [refused, direct] = await Promise.all([world.calls(BOB, ...HTTP, 2, '/'), world.calls(BOB, world.address('near'), 8080, 2, '/')]);
    assert.deepEqual([Object.keys(refused), direct['200']], [['403'], undefined], JSON.stringify(direct));
    const throughEnvoy = world.talk(ALICE, 'near.node', 80, 8);
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    await world.apply('mesh', STRICT);
    await world.becomes({ bob: [async () => (await world.explained(BOB, ...HTTP)).way, 'endpoint'] });
    assert.deepEqual(Object.keys(await world.calls(BOB, ...HTTP, 1, '/')), ['200']);
    assert.equal((await throughEnvoy).word, 'open');
    const { 200: answered = 0, ...others } = await alice;
    assert.ok(answered > 100, `${answered} answered`);
    assert.deepEqual(others, {});
    assert.equal((await stranger)['200'], undefined);
  });

  test('a DENY of requests by principal is not got round by the address of the pod, whatever listens for its port, nor by a bound device', async () => {
    const near = world.address('near');
    const deny = policy('AuthorizationPolicy', 'deny-get', `{${NEAR}, action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/node/sa/alice"]}}], to: [{operation: {methods: [GET], ports: ["8080"]}}]}]}`);
    const asked = async (pod: string, ...to: [string, number]): Promise<string> => Object.keys(await world.calls(pod, ...to, 0.01, '/')).join();
    const other = 'apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: node}\nspec: {selector: {app: aside}, ports: [{name: http, port: 8080}]}\n';
    for (const [name, more] of [['no listener of the mesh asks for the port', ''], ['HTTP of another service has the port', `---\n${other}`]] as const) {
      await world.apply('mesh', `${deny}${more}`);
      await world.becomes({ alice: [() => asked(ALICE, ...HTTP), '403'], bob: [() => asked(BOB, ...HTTP), '200'], 'alice by address': [() => asked(ALICE, near, 8080), '403'], 'bob by address': [() => asked(BOB, near, 8080), '200'] });
      const [alice, bob] = await Promise.all([world.calls(ALICE, near, 8080, 2, '/'), world.calls(BOB, near, 8080, 2, '/')]);
      assert.deepEqual([Object.keys(alice), Object.keys(bob)], [['403'], ['200']], name);
      const explained = await Promise.all([ALICE, BOB].map((pod) => world.explained(pod, near, 8080)));
      assert.deepEqual(explained.map(({ way, destinations }) => [way, destinations?.[0]?.policy.judge]), [['envoy', 'envoy'], ['envoy', 'envoy']], name);
      assert.match(explained[0]!.reasons.join(), /whose policy Envoy judges/);
      // Where no hook can lead it to Envoy it is refused.
      const bound = await world.lab.exec(ALICE, ['curl', '-sS', '-o', '/dev/null', '-w', '%{http_code}', '--interface', 'if!eth0', '--max-time', '3', `http://${near}:8080/`]);
      assert.notEqual(bound.code, 0, bound.stdout);
    }
    await world.apply('mesh', `${STRICT}---\n${deny}`);
    await world.becomes({ 'a stranger': [async () => String((await world.calls(STRANGER, near, 8080, 0.01, '/'))['200']), 'undefined'], alice: [() => asked(ALICE, near, 8080), '403'], bob: [() => asked(BOB, near, 8080), '200'] });
    const allow = policy('AuthorizationPolicy', 'allow-get', `{${NEAR}, action: ALLOW, rules: [{from: [{source: {principals: ["cluster.local/ns/node/sa/alice"]}}], to: [{operation: {methods: [GET]}}]}]}`);
    await world.apply('mesh', allow);
    await world.becomes({ alice: [() => asked(ALICE, near, 8080), '200'], bob: [() => asked(BOB, near, 8080), '403'] });
    await world.clear('mesh');
    await world.becomes({ alice: [async () => (await world.explained(ALICE, near, 8080)).way, 'pod'] });
  });
});

describe('on a node without iptables', () => {
  /** All programs of this machine but those that make such rules. */
  const folder = mkdtempSync(join(tmpdir(), 'up-policy-path-'));
  for (const place of ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']) {
    for (const name of readdirSync(place)) {
      if (/tables|^nft$/.test(name)) continue;
      try {
        symlinkSync(join(place, name), join(folder, name));
      } catch {
        // The same program at another place.
      }
    }
  }
  const world = new World('polbare', { bare: true, outside: PODS, agentEnv: { PATH: folder } });
  before(() => world.up());
  after(async () => {
    await world.down();
    rmSync(folder, { recursive: true, force: true });
  });

  test('a pod\'s callers are led to Envoy all the same, which decides by principal; the node\'s probes are not', async () => {
    const near = world.address('near');
    await world.becomes({ bob: [() => world.line(BOB, near), 'echoed'], stranger: [() => world.line(STRANGER, near), 'echoed'] });
    await world.apply('mesh', from('ALLOW', 'alice'));
    await world.becomes({
      bob: [() => world.line(BOB, near), 'refused'], stranger: [() => world.line(STRANGER, near), 'refused'],
      'alice by name': [() => world.line(ALICE, 'near.node'), 'echoed'], 'bob by name': [() => world.line(BOB, 'near.node'), 'refused'],
      'another workload': [() => world.line(BOB, world.address('aside'), 8080), 'echoed'],
    });
    assert.match(await world.agentMetrics(), /^underpass_kernel_inbound_steered_total [1-9]/m);
    await world.isProbed();
    assert.equal(await world.asNode(STRANGER), 'refused');
  });
});
