/** Authorization in the kernel, with real connections between pods: who gets in, who is refused, and what a change ends. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { inspect } from 'node:util';
import { Action, Authorization, Scope, type Match } from '../../proto/generated/istio/security/authorization.js';
import { Address } from '../../proto/generated/istio/workload/workload.js';
import type { PodRecord } from '../../common/lab-api.js';
import { logger } from '../../common/log.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { pack } from '../../common/xds/any.js';
import { BpfObject, type BpfMap } from '../../native/index.js';
import type { TestPod } from '../../native/testing.js';
import { compilePolicy } from '../policy/compile.js';
import type { PodPolicies, WorkloadView } from '../policy/workload-policies.js';
import { AddressType, AuthorizationType } from '../xds/resource-types.js';
import { encodeAddress } from './kernel-codec.js';
import { KernelWorld, TEST_BPFFS } from './kernel-testing.js';
import type { PodPolicy, PolicyAnswer } from './kernel-policies.js';
import { narrows, PolicyEnforcer } from './policy-enforcer.js';

/** `a` is alice, `b` the server, `c` bob, of another namespace, `d` is not in the mesh, `e` another server. */
const ACCOUNTS: Record<string, { namespace: string; serviceAccount: string }> = {
  a: { namespace: 'shop', serviceAccount: 'alice' }, b: { namespace: 'shop', serviceAccount: 'server' },
  c: { namespace: 'bank', serviceAccount: 'bob' }, e: { namespace: 'shop', serviceAccount: 'other' },
};

let w: KernelWorld;
let enforcer: PolicyEnforcer;
let servers: ChildProcess[];
let settled = true;
before(async () => {
  w = await KernelWorld.create('policy', { pods: 5 });
  w.put({ acceleration: 'off' }, w.world.pods.filter(({ name }) => name in ACCOUNTS));
  enforcer = new PolicyEnforcer({ kernel: w.kernel, proxySettled: () => settled, proxyFirstMs: 0, requestsEndMs: 500, proxyCgroupPath: w.world.proxyCgroup, logger: logger('test.policy').child({}, { level: 'silent' }) });
  enforcer.setPods(w.world.pods.filter(({ name }) => name in ACCOUNTS).map(record));
  servers = await Promise.all([B(), E()].map((pod) => serve(pod)));
});
after(async () => {
  enforcer.close();
  for (const server of servers) server.kill('SIGKILL');
  await Promise.all(servers.map((server) => server.exitCode ?? server.signalCode ?? once(server, 'exit')));
  await w.close();
});

const byName = (name: string): TestPod => w.world.pods.find((pod) => pod.name === name)!;
const [A, B, C, D, E] = ['a', 'b', 'c', 'd', 'e'].map((name) => () => byName(name)) as [() => TestPod, () => TestPod, () => TestPod, () => TestPod, () => TestPod];

function record(pod: TestPod): PodRecord {
  const { namespace, serviceAccount } = ACCOUNTS[pod.name]!;
  return {
    uid: `${w.world.name}-${pod.name}`, name: pod.name, namespace, serviceAccount, labels: {}, annotations: {}, namespaceLabels: {}, nodeName: 'n', ips: [pod.ipv4, pod.ipv6],
    netns: pod.netns, cgroup: pod.cgroup, hostNetwork: false, phase: 'Running', ready: true, terminating: false, hasSidecar: false, containers: [],
  };
}

/** Echoes on both ports, over both families. */
async function serve(pod: TestPod): Promise<ChildProcess> {
  const script = `
const net = require('node:net');
let open = 0;
for (const port of [8080, 9000]) net.createServer((socket) => socket.on('error', () => {}).pipe(socket)).listen(port, '::', () => ++open === 2 && console.log('listening'));`;
  const [command, ...args] = w.world.inPod(pod, [process.execPath, '-e', script]);
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout!, 'data');
  return child;
}

const CLIENT = `
const net = require('node:net');
const [host, port, waitMs, keep, local] = JSON.parse(process.argv[1]);
const socket = net.connect({ host, port, ...local });
const end = (word) => { console.log(word); if (!keep || word !== 'echoed') process.exit(); };
const timer = setTimeout(() => end('silence'), waitMs);
socket.on('error', ({ code }) => end(code)).on('end', () => end('end')).on('connect', () => socket.write('ping'));
socket.on('data', () => { clearTimeout(timer); end('echoed'); });`;

/** Of whom no answer is expected: long enough for the SYN that is sent again after a second. */
const SILENT_MS = 1_300;
const ANSWER_MS = 50_000;

/** `echoed`, the error's code, or `silence`; what the kernel's own table says when it is asked from here must be the same. */
async function call(from: TestPod, to: TestPod, port = 8080, family: 'ipv4' | 'ipv6' = 'ipv4', local: { localPort?: number; localAddress?: string } = {}): Promise<string> {
  const caller = w.kernel.pods().find(({ netnsCookie }) => netnsCookie === from.netnsCookie)?.uid ?? '';
  const said = w.kernel.policies.judge(caller, to.netnsCookie, local.localAddress ?? from[family], to[family], port);
  const waitMs = said?.allowed === false ? SILENT_MS : ANSWER_MS;
  const [command, ...args] = w.world.inPod(from, [process.execPath, '-e', CLIENT, JSON.stringify([to[family], port, waitMs, false, local])]);
  const word = (await run(command!, args, { timeoutMs: 60_000 })).stdout.trim();
  if (from !== to) assert.equal(word === 'echoed', said?.allowed ?? true, `${word}, and judged from here: ${inspect(said)}`);
  return word;
}

interface Held {
  words: string[];
  ended: Promise<string>;
  child: ChildProcess;
}

/** A connection that stays; what it is told afterwards. */
async function hold(from: TestPod, to: TestPod, port = 8080, family: 'ipv4' | 'ipv6' = 'ipv4'): Promise<Held> {
  const [command, ...args] = w.world.inPod(from, [process.execPath, '-e', CLIENT, JSON.stringify([to[family], port, ANSWER_MS, true])]);
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const words: string[] = [];
  child.stdout!.on('data', (chunk: Buffer) => words.push(...chunk.toString().trim().split('\n')));
  await waitFor('the connection to be there', () => words.length > 0, { everyMs: 5 });
  return { words, child, ended: once(child, 'exit').then(() => words.at(-1)!) };
}

const match = (about: Partial<Match>): Match => ({
  namespaces: [], not_namespaces: [], principals: [], not_principals: [], source_ips: [], not_source_ips: [], destination_ips: [], not_destination_ips: [],
  destination_ports: [], not_destination_ports: [], service_accounts: [], not_service_accounts: [], ...about,
});
const exact = (value: string): Match['principals'][number] => ({ match_type: { $case: 'exact', value } });
const PRESENT: Match['principals'][number] = { match_type: { $case: 'presence', value: {} } };
const ALICE = match({ principals: [exact('cluster.local/ns/shop/sa/alice')] });
const policy = (action: Action, ...matches: Match[]): Authorization => Authorization.fromPartial({ action, scope: Scope.WORKLOAD_SELECTOR, namespace: 'shop', groups: matches.map((one) => ({ rules: [{ matches: [one] }] })) });
const allow = (...matches: Match[]): Authorization => policy(Action.ALLOW, ...matches);
const deny = (...matches: Match[]): Authorization => policy(Action.DENY, ...matches);

let versions = 0;

/** What the control plane would have sent: these policies for `b`, none for others. */
async function apply(policies: Authorization[], rejected: Record<string, string> = {}, to = enforcer): Promise<void> {
  const named = policies.map((one, i) => new AuthorizationType().decode(`shop/p${i}`, `${++versions}`, pack(Authorization, { ...one, name: `p${i}` })));
  const workload = new AddressType().decode('Kubernetes//Pod/shop/b', '', pack(Address, Address.fromPartial({ type: { $case: 'workload', value: { uid: 'Kubernetes//Pod/shop/b', name: 'b', namespace: 'shop', authorization_policies: [...named.map(({ name }) => name), ...Object.keys(rejected)] } } })));
  const view = { addresses: new Map([[workload.name, workload]]), authorizations: new Map(named.map((one) => [one.name, one])), rejectedAuthorizations: new Map(Object.entries(rejected)), synced: true } as unknown as WorkloadView;
  to.setWorkloads(view);
  // The enforcer waits less for more of the same.
  await new Promise((resolve) => setTimeout(resolve, 60));
}

const REFUSED = 'ECONNREFUSED';

for (const family of ['ipv4', 'ipv6'] as const) {
  test(`ALLOW by principal: its pod gets in, another is refused at connect(), who is not in the mesh gets no answer (${family})`, async () => {
    await apply([allow(ALICE)]);
    const { result, counters } = await w.counted(() => Promise.all([call(A(), B(), 8080, family), call(C(), B(), 8080, family), call(D(), B(), 8080, family)]));
    assert.deepEqual(result, ['echoed', REFUSED, 'silence']);
    assert.equal(counters['policy_connect_refused'], 1);
    assert.ok((counters['policy_arrival_refused'] ?? 0) >= 1, JSON.stringify(counters));
    assert.equal(await call(C(), E(), 8080, family), 'echoed', 'a pod without policy takes all');
    const judged = (from: TestPod): PolicyAnswer | undefined => w.kernel.policies.judge(record(from).uid, B().netnsCookie, from[family], B()[family], 8080);
    assert.deepEqual([A(), C()].map((pod) => judged(pod)!.term), [0, -1]);
    assert.equal(enforcer.policyOf(record(B()).uid, { version: judged(A())!.version, term: 0 }), 'shop/p0');
    assert.equal(enforcer.policyOf(record(B()).uid, { version: 1n, term: 0 }), undefined, 'of another version nothing is known');
  });
}

test('DENY by namespace comes before ALLOW, and not-forms turn round', async () => {
  await apply([allow(match({ principals: [PRESENT] })), deny(match({ namespaces: [exact('bank')] }))]);
  assert.deepEqual(await Promise.all([call(A(), B()), call(C(), B())]), ['echoed', REFUSED]);
  await apply([deny(match({ not_namespaces: [exact('bank')] }))]);
  assert.deepEqual(await Promise.all([call(A(), B()), call(C(), B()), call(D(), B())]), [REFUSED, 'echoed', 'silence']);
  await apply([deny(match({ not_principals: [PRESENT] }))]);
  assert.deepEqual(await Promise.all([call(A(), B()), call(C(), B()), call(D(), B())]), ['echoed', 'echoed', 'silence'], 'STRICT: no identity, no way in');
});

test('ports and addresses are looked at for everybody, with identity or without', async () => {
  await apply([allow(match({ destination_ports: [9000] }), match({ source_ips: [{ address: Buffer.from([10, 77, 0, 1]), length: 32 }] }))]);
  assert.deepEqual(await Promise.all([call(A(), B(), 8080), call(C(), B(), 8080), call(C(), B(), 9000), call(D(), B(), 9000), call(D(), B(), 8080)]), ['echoed', REFUSED, 'echoed', 'echoed', 'silence']);
  await apply([deny(match({ source_ips: [{ address: Buffer.from([10, 77, 0, 0]), length: 24 }], not_source_ips: [{ address: Buffer.from([10, 77, 0, 4]), length: 32 }], not_destination_ports: [9000] }))]);
  assert.deepEqual(await Promise.all([call(A(), B()), call(D(), B()), call(A(), B(), 9000), call(A(), B(), 8080, 'ipv6')]), [REFUSED, 'echoed', 'echoed', 'echoed']);
});

test('a service that is decided at connect() leads past no policy of the endpoint that is drawn', async () => {
  const vip = { ipv4: '198.51.100.20', ipv6: '2001:db8::20' };
  const enrolled = w.world.pods.filter(({ name }) => name in ACCOUNTS);
  w.put({ acceleration: 'off', capture: true }, enrolled);
  w.kernel.services.apply((['ipv4', 'ipv6'] as const).map((family) => ({ address: vip[family], port: 8080, entry: { kind: 'tcp', endpoints: [{ address: B()[family], port: 8080, weight: 1 }] } })));
  await apply([allow(ALICE)]);
  const to = { ...B(), ...vip };
  const { result, counters } = await w.counted(() => Promise.all([call(A(), to), call(C(), to), call(A(), to, 8080, 'ipv6'), call(C(), to, 8080, 'ipv6')]));
  assert.deepEqual(result, ['echoed', REFUSED, 'echoed', REFUSED]);
  assert.deepEqual([counters['policy_connect_refused'], counters['connections_resolved']], [2, 2]);
  w.put({ acceleration: 'off', capture: false }, enrolled);
});

test('an ALLOW without rules lets nobody in; without any policy all get in again', async () => {
  await apply([allow()]);
  assert.deepEqual(await Promise.all([call(A(), B()), call(C(), B()), call(B(), B())]), [REFUSED, REFUSED, 'echoed'], 'a pod talks to itself');
  await apply([]);
  assert.deepEqual(await Promise.all([call(A(), B()), call(D(), B())]), ['echoed', 'echoed']);
});

test('a policy that can not be read lets nobody new in and says so; connections that are there, and other pods, go on', async () => {
  await apply([allow(ALICE)]);
  const held = await hold(A(), B());
  await apply([allow(ALICE)], { 'shop/broken': 'AUTHZ "shop/broken": action: is 7, expected 0 (allow) or 1 (deny)' });
  assert.deepEqual(await Promise.all([call(A(), B()), call(D(), B()), call(A(), E())]), [REFUSED, 'silence', 'echoed']);
  assert.deepEqual(enforcer.status().unreadable, [{ pod: 'shop/b', reasons: ['AUTHZ "shop/broken": action: is 7, expected 0 (allow) or 1 (deny)'] }]);
  await apply([allow(ALICE)]);
  assert.equal(await call(A(), B()), 'echoed');
  assert.deepEqual(enforcer.status().unreadable, []);
  assert.deepEqual(held.words, ['echoed']);
  held.child.kill();
  await held.ended;
});

test('a policy that the workload names and nobody sent counts as one that can not be read', async () => {
  const workload = new AddressType().decode('Kubernetes//Pod/shop/b', '', pack(Address, Address.fromPartial({ type: { $case: 'workload', value: { uid: 'Kubernetes//Pod/shop/b', name: 'b', namespace: 'shop', authorization_policies: ['shop/gone'] } } })));
  enforcer.setWorkloads({ addresses: new Map([[workload.name, workload]]), authorizations: new Map(), rejectedAuthorizations: new Map(), synced: true });
  await waitFor('the policy to be missed', () => enforcer.status().unreadable.length === 1, { everyMs: 10 });
  assert.match(enforcer.status().unreadable[0]!.reasons[0]!, /AUTHZ "shop\/gone": the workload has this policy, and the control plane did not send it/);
  assert.equal(await call(A(), B()), REFUSED);
  await apply([]);
  assert.equal(await call(A(), B()), 'echoed');
});

for (const family of ['ipv4', 'ipv6'] as const) {
  test(`what a change forbids is ended at once and counted, and nothing else (${family})`, async () => {
    await apply([]);
    const [alice, bob, stranger, elsewhere] = await Promise.all([hold(A(), B(), 8080, family), hold(C(), B(), 8080, family), hold(D(), B(), 8080, family), hold(C(), E(), 8080, family)]);
    // A connection that the server's own pod opened is nobody's to judge.
    const outgoing = await hold(B(), E(), 8080, family);
    const before = enforcer.status().connectionsClosed;
    await apply([allow(ALICE)]);
    assert.deepEqual(await Promise.all([bob.ended, stranger.ended]), ['ECONNRESET', 'ECONNRESET']);
    assert.equal(enforcer.status().connectionsClosed - before, 2);
    await apply([deny(ALICE)]);
    assert.equal(await alice.ended, 'ECONNRESET');
    assert.equal(enforcer.status().connectionsClosed - before, 3);
    for (const { words, child, ended } of [elsewhere, outgoing]) {
      assert.deepEqual(words, ['echoed']);
      child.kill();
      await ended;
    }
  });
}

/** A connection from a port that the pod's own loopback listens on as well, after it was made. */
const CLIENT_AND_LISTENER = `
const net = require('node:net');
const socket = net.connect({ host: process.argv[1], port: 8080 });
socket.on('connect', () => net.createServer().listen({ host: '127.0.0.1', port: socket.localPort }, () => socket.write('ping')));
socket.on('data', () => console.log('echoed')).on('error', ({ code }) => { console.log(code); process.exit(); });`;

test('a connection that the pod itself opened goes on, also when its port is listened on at another address', async () => {
  await apply([]);
  const [command, ...args] = w.world.inPod(B(), [process.execPath, '-e', CLIENT_AND_LISTENER, E().ipv4]);
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const words: string[] = [];
  child.stdout!.on('data', (chunk: Buffer) => words.push(chunk.toString().trim()));
  await waitFor('the connection', () => words.length > 0, { everyMs: 5 });
  const held = await hold(C(), B());
  await apply([allow()]);
  await held.ended;
  // The second look at the sockets comes a quarter of a second after the first.
  await new Promise((resolve) => setTimeout(resolve, 500));
  child.kill();
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  assert.deepEqual(words, ['echoed']);
  await apply([]);
});

test('policies that the kernel did not take are written again, and end what got in meanwhile', async () => {
  await apply([]);
  let failures = 1;
  const flaky = new PolicyEnforcer({
    kernel: {
      pods: () => w.kernel.pods(),
      policyVersions: () => w.kernel.policyVersions(),
      setPolicies: (policies) => {
        if (policies.size > 0 && failures-- > 0) throw new Error('no memory');
        w.kernel.setPolicies(policies);
      },
    },
    proxySettled: () => true, proxyFirstMs: 0, retryMs: 1_000, logger: logger('test.policy').child({}, { level: 'silent' }),
  });
  try {
    flaky.setPods(w.world.pods.filter(({ name }) => name in ACCOUNTS).map(record));
    await apply([deny(ALICE)], {}, flaky);
    assert.match(flaky.status().problem ?? '', /no memory/);
    await waitFor('the second try', () => flaky.status().problem === undefined, { everyMs: 10 });
    assert.equal(await call(A(), B()), REFUSED);
  } finally {
    flaky.close();
  }
});

test('short-circuited connections end in the same way', async () => {
  await apply([]);
  w.put({ acceleration: 'force' }, [A(), B()]);
  const { result: held, counters } = await w.counted(() => hold(A(), B()));
  assert.equal(counters['connections_short_circuited'], 1);
  await apply([deny(ALICE)]);
  assert.equal(await held.ended, 'ECONNRESET');
  w.put({ acceleration: 'off' }, [A(), B()]);
});

const proxyHolds = (port = 8080): Promise<Held> => hold({ ...B(), cgroup: w.world.proxyCgroup }, B(), port);

test('what the proxy holds open to a pod ends once, when nothing is led to the former policy any more; what it opens after that goes on', async () => {
  await apply([allow(ALICE)]);
  const { uid } = record(B());
  const before = enforcer.status().connectionsClosed;
  const old = await proxyHolds();
  settled = false;
  await apply([allow(match({ namespaces: [exact('bank')] }))]);
  await enforcer.proxyNarrows(uid, 'opened');
  settled = true;
  assert.deepEqual(old.words, ['echoed'], 'callers are not led to the new policy yet');
  const http = await proxyHolds(9000);
  enforcer.proxyNarrowed(uid, new Set([9000]));
  assert.equal(await old.ended, 'ECONNABORTED', 'it is the proxy\'s end that is taken away');
  await waitFor('the end of it', () => enforcer.status().settling === 0);
  assert.deepEqual(http.words, ['echoed'], 'requests that came meanwhile met the new policy');
  const later = await proxyHolds();
  for (settled of [false, true]) await new Promise((resolve) => setTimeout(resolve, 300));
  assert.deepEqual([later.words, http.words], [['echoed'], ['echoed']], 'the proxy takes something else in');
  assert.equal(enforcer.status().connectionsClosed - before, 1);
  for (const { child } of [later, http]) child.kill();
});

test('requests of the former policy have time to end; what may not be requests has none', async () => {
  await apply([allow(ALICE)]);
  const { uid } = record(B());
  const [request, other] = await Promise.all([proxyHolds(9000), proxyHolds(8080)]);
  await enforcer.proxyNarrows(uid, 'opened');
  enforcer.proxyNarrowed(uid, new Set([9000]));
  await other.ended;
  assert.deepEqual(request.words, ['echoed']);
  assert.equal(await request.ended, 'ECONNABORTED');
});

test('a pod that gets its first policy is left as it is until the proxy has taken it over', async () => {
  await apply([]);
  const patient = new PolicyEnforcer({ kernel: w.kernel, proxySettled: () => settled, proxyFirstMs: 600_000, logger: logger('test.policy').child({}, { level: 'silent' }) });
  patient.setPods(w.world.pods.filter(({ name }) => name in ACCOUNTS).map(record));
  await apply([deny(ALICE)], {}, patient);
  const held = await hold(A(), B());
  patient.setBehindProxy(record(B()).uid, true);
  assert.equal(await held.ended, 'ECONNRESET');
  assert.equal(await call(A(), B()), 'silence');
  patient.close();
});

test('a first policy waits longer for a proxy that is still busy with what it was told', async () => {
  await apply([]);
  settled = false;
  const patient = new PolicyEnforcer({ kernel: w.kernel, proxySettled: () => settled, proxyFirstMs: 0, logger: logger('test.policy').child({}, { level: 'silent' }) });
  try {
    patient.setPods(w.world.pods.filter(({ name }) => name in ACCOUNTS).map(record));
    await apply([deny(ALICE)], {}, patient);
    assert.deepEqual([await call(A(), B()), patient.status().settling], ['echoed', 1]);
    settled = true;
    await waitFor('the kernel to judge', () => patient.status().settling === 0);
    assert.equal(await call(A(), B()), REFUSED);
  } finally {
    settled = true;
    patient.close();
  }
});

for (const requestsEndMs of [600_000, 500]) {
  test(`a first policy: the proxy's own requests to the pod's program ${requestsEndMs > 500 ? 'end by themselves' : 'that do not end are ended'}, all else that it forbids ends at once`, async () => {
    await apply([]);
    const { uid } = record(B());
    const patient = new PolicyEnforcer({ kernel: w.kernel, proxySettled: () => true, proxyFirstMs: 0, requestsEndMs, proxyCgroupPath: w.world.proxyCgroup, logger: logger('test.policy').child({}, { level: 'silent' }) });
    patient.setPods(w.world.pods.filter(({ name }) => name in ACCOUNTS).map(record));
    patient.setInboundNeeds(new Map([[uid, new Map([[9000, { rules: [], isHttp: true }]])]]));
    const proxy = { ...A(), cgroup: w.world.proxyCgroup };
    const [request, ofTcp, ofProgram] = await Promise.all([hold(proxy, B(), 9000), hold(proxy, B(), 8080), hold(A(), B(), 9000)]);
    try {
      await apply([deny(ALICE)], {}, patient);
      assert.deepEqual(await Promise.all([ofTcp.ended, ofProgram.ended]), ['ECONNRESET', 'ECONNRESET']);
      assert.deepEqual([request.words, patient.status().settling, patient.status().connectionsClosed], [['echoed'], 1, 2]);
      if (requestsEndMs > 500) request.child.kill();
      else assert.equal(await request.ended, 'ECONNRESET');
      await waitFor('the end of it', () => patient.status().settling === 0);
      assert.equal(patient.status().connectionsClosed, requestsEndMs > 500 ? 2 : 3);
    } finally {
      patient.close();
      for (const { child } of [request, ofTcp, ofProgram]) child.kill();
    }
  });
}

test('a pod behind the proxy is left to it at connect(), and still refuses what reaches it without', async () => {
  await apply([allow(match({ destination_ports: [9000] }))]);
  const uid = record(B()).uid;
  enforcer.setBehindProxy(uid, true);
  const { result, counters } = await w.counted(() => call(A(), B()));
  assert.equal(result, 'silence');
  assert.equal(counters['policy_connect_refused'], undefined);
  enforcer.setBehindProxy(uid, false);
  assert.equal(await call(A(), B()), REFUSED);
});

test('pods that call from one and the same port are told apart, at connect() and at arrival', async () => {
  await apply([allow(ALICE)]);
  const both = (localPort: number): Promise<string[]> => Promise.all([call(A(), B(), 8080, 'ipv4', { localPort }), call(C(), B(), 8080, 'ipv4', { localPort }), call(A(), B(), 8080, 'ipv6', { localPort })]);
  assert.deepEqual(await both(40_001), ['echoed', REFUSED, 'echoed']);
  const uid = record(B()).uid;
  enforcer.setBehindProxy(uid, true);
  assert.deepEqual(await both(40_002), ['echoed', 'silence', 'echoed']);
  enforcer.setBehindProxy(uid, false);
});

test('a pod with several addresses of a family is judged by the one that it calls from, and by its account from each', async () => {
  const more = { ipv4: '10.77.0.77', ipv6: 'fd77::77' };
  for (const [family, address] of [['ipv4', `${more.ipv4}/32`], ['ipv6', `${more.ipv6}/128`]] as const) {
    const [command, ...args] = w.world.inPod(A(), ['ip', 'address', 'add', address, 'dev', 'lo', ...(family === 'ipv6' ? ['nodad'] : [])]);
    await run(command!, args);
    const [back, ...rest] = w.world.inPod(B(), ['ip', 'route', 'add', address, 'via', A()[family]]);
    await run(back!, rest);
  }
  w.put({ acceleration: 'off', addresses: [A().ipv4, A().ipv6, more.ipv4, more.ipv6] }, [A()]);
  for (const family of ['ipv4', 'ipv6'] as const) {
    const block = (address: string, length: number): Match['source_ips'] => [{ address: encodeAddress(address).subarray(family === 'ipv4' ? 12 : 0), length }];
    const length = family === 'ipv4' ? 32 : 128;
    const calls = (): Promise<string[]> => Promise.all([call(A(), B(), 8080, family), call(A(), B(), 8080, family, { localAddress: more[family] })]);
    await apply([deny(match({ source_ips: block(A()[family], length) }))]);
    assert.deepEqual(await calls(), ['silence', 'echoed'], family);
    await apply([deny(match({ source_ips: block(more[family], length) }))]);
    assert.deepEqual(await calls(), ['echoed', 'silence'], family);
    await apply([allow(ALICE)]);
    assert.deepEqual(await calls(), ['echoed', 'echoed'], family);
  }
  w.put({ acceleration: 'off' }, [A()]);
});

test('a policy that the kernel has no room for is an error, and keeps no other from being in force', async () => {
  const small = await KernelWorld.create('policy', { pods: 3, maxEntries: { policies: 1 } });
  try {
    const [other, first, second] = small.world.pods.map((pod) => small.podRecord(pod).uid) as [string, string, string];
    const nobody = (version: bigint): PodPolicy => ({ compiled: undefined, behindProxy: false, version });
    small.put({ acceleration: 'off' });
    small.kernel.setPolicies(new Map([[second, nobody(1n)]]));
    assert.throws(() => small.kernel.setPolicies(new Map([[first, nobody(2n)], [second, nobody(3n)]])), /E2BIG|no space|too/i);
    assert.deepEqual([...small.kernel.policyVersions()], [[second, 3n]]);
    for (const uid of [other, first]) small.kernel.removePod(uid);
    small.put({ acceleration: 'off' }, [small.world.pod(0)]);
    assert.throws(() => small.put({ acceleration: 'off' }, [small.world.pod(1)]), /E2BIG/);
    assert.deepEqual(small.kernel.pods().map(({ uid }) => uid).sort(), [other, second].sort(), 'who has no policy comes in, who can not have its own does not');
    small.kernel.setPolicies(new Map());
    small.put({ acceleration: 'off' });
    small.kernel.setPolicies(new Map([[first, nobody(4n)]]));
  } catch (error) {
    await small.close();
    throw error;
  }
  await small.close();
});

test('a pod that comes later is judged by its own account from its first connection, and its place tells the next one nothing', async () => {
  await apply([allow(ALICE)]);
  const records = w.world.pods.filter(({ name }) => name in ACCOUNTS).map(record);
  const newcomer = { ...record(A()), uid: `${w.world.name}-late`, name: 'late', ips: [D().ipv4, D().ipv6], netns: D().netns, cgroup: D().cgroup };
  enforcer.setPods([...records, newcomer]);
  w.put({ acceleration: 'off', uid: newcomer.uid }, [D()]);
  assert.equal(await call(D(), B()), 'echoed');
  w.kernel.removePod(newcomer.uid);
  const stranger = { ...newcomer, uid: `${w.world.name}-stranger`, serviceAccount: 'mallory' };
  w.put({ acceleration: 'off', uid: stranger.uid }, [D()]);
  assert.equal(await call(D(), B()), REFUSED, 'of a pod that is not known yet nothing is taken');
  enforcer.setPods([...records, stranger]);
  assert.equal(await call(D(), B()), REFUSED);
  w.kernel.removePod(stranger.uid);
  assert.equal(await call(D(), B()), 'silence', 'a pod that left the mesh has no identity');
  enforcer.setPods(records);
});

test('policies outlive the agent, and hold until the next one has heard of its own', async () => {
  const pinned = await KernelWorld.create('policy', { pinned: true });
  try {
    const [client, server] = [pinned.world.pod(0), pinned.world.pod(1)];
    pinned.put({ acceleration: 'off' });
    pinned.kernel.setPolicies(new Map([[pinned.podRecord(server).uid, { compiled: undefined, behindProxy: false, version: 7n }]]));
    await pinned.kernel.close();
    pinned.kernel = await pinned.open(TEST_BPFFS);
    pinned.put({ acceleration: 'off' });
    assert.deepEqual([...pinned.kernel.policyVersions()], [[pinned.podRecord(server).uid, 7n]]);
    const churn = async (): Promise<boolean> => (await pinned.world.probe('churn', { pod: server, address: server.ipv4 }, { pod: client }, ['--count', '3'])).ok;
    assert.equal(await churn().catch(() => false), false);
    pinned.kernel.setPolicies(new Map([[pinned.podRecord(server).uid, 'as it is']]));
    assert.equal(await churn().catch(() => false), false);
    const next = new PolicyEnforcer({ kernel: pinned.kernel, proxySettled: () => true, proxyFirstMs: 0, logger: logger('test.policy').child({}, { level: 'silent' }) });
    try {
      const pod = { ...record(B()), uid: pinned.podRecord(server).uid, netns: server.netns, ips: [server.ipv4, server.ipv6] };
      next.setPods([pod]);
      let known = false;
      void next.whenKnown(pod.uid, AbortSignal.timeout(30_000)).then(() => (known = true));
      const hear = async (workload: boolean, ...policies: Authorization[]): Promise<void> => {
        await apply(policies, {}, { setWorkloads: (view: WorkloadView) => next.setWorkloads(workload ? view : { ...view, addresses: new Map() }) } as PolicyEnforcer);
      };
      await hear(false);
      assert.deepEqual([await churn().catch(() => false), known], [false, false], 'the control plane has not named the pod: what held holds');
      await hear(true);
      assert.deepEqual([await churn(), known], [true, true]);
      await hear(true, allow());
      assert.equal(await churn().catch(() => false), false);
      await hear(false, allow());
      assert.equal(await churn().catch(() => false), false, 'its workload is taken away: it keeps what that named last');
      await hear(true);
    } finally {
      next.close();
    }
    pinned.kernel.setPolicies(new Map());
    assert.equal(await churn(), true);
  } finally {
    await pinned.close();
  }
});

/** Two servers that allow all and nobody; what a former agent left, and the map itself. */
async function withPinnedPolicies(body: (pinned: KernelWorld, policies: BpfMap, call: (from: number, to: number) => Promise<boolean>) => Promise<void>): Promise<void> {
  const pinned = await KernelWorld.create('policy', { pinned: true, pods: 4 });
  try {
    pinned.put({ acceleration: 'off' });
    const object = BpfObject.open({ pinDir: join(TEST_BPFFS, pinned.world.name), programs: [] });
    const call = async (from: number, to: number): Promise<boolean> => {
      const [client, server] = [pinned.world.pod(from), pinned.world.pod(to)];
      return (await pinned.world.probe('churn', { pod: server, address: server.ipv4 }, { pod: client }, ['--count', '3']).catch(() => ({ ok: false }))).ok;
    };
    try {
      await body(pinned, object.map('policies'), call);
    } finally {
      object.close();
    }
  } finally {
    await pinned.close();
  }
}

const cookieKey = (pod: TestPod): Buffer => {
  const key = Buffer.alloc(8);
  key.writeBigUInt64LE(pod.netnsCookie);
  return key;
};

test('a value that was written for another pod is not judged by, whatever memory the kernel finds it in', async () => {
  await withPinnedPolicies(async (pinned, policies, pass) => {
    const [client, open, shut] = [0, 1, 2].map((i) => pinned.world.pod(i)) as [TestPod, TestPod, TestPod];
    const identities = new Map([[pinned.podRecord(client).uid, { trustDomain: 't', namespace: 'n', serviceAccount: 'a' }]]);
    const of = (...messages: Authorization[]): PodPolicy => ({ compiled: compilePolicy(messages, identities), behindProxy: false, version: 1n });
    pinned.kernel.setPolicies(new Map([[pinned.podRecord(open).uid, of()], [pinned.podRecord(shut).uid, of(allow())]]));
    assert.deepEqual([await pass(0, 1), await pass(0, 2)], [true, false]);
    policies.set(cookieKey(shut), policies.get(cookieKey(open))!);
    assert.equal(await pass(0, 2), false);
  });
});

test('a pod that gets the place of a former one before policies are known again does not get its identity', async () => {
  await withPinnedPolicies(async (pinned, _policies, pass) => {
    const [server, alice] = [pinned.world.pod(1), pinned.world.pod(3)];
    const [uid, former] = [pinned.podRecord(server).uid, pinned.podRecord(alice).uid];
    const identities = new Map([[former, { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'alice' }]]);
    pinned.kernel.setPolicies(new Map([[uid, { compiled: compilePolicy([allow(ALICE)], identities), behindProxy: false, version: 1n }]]));
    assert.equal(await pass(3, 1), true);
    // One agent sees the pod go, the next one another come, and neither hears from the control plane.
    await pinned.kernel.close();
    pinned.kernel = await pinned.open(TEST_BPFFS);
    pinned.kernel.removePod(former);
    await pinned.kernel.close();
    pinned.kernel = await pinned.open(TEST_BPFFS);
    pinned.put({ acceleration: 'off', uid: `${former}-mallory` }, [alice]);
    assert.equal(await pass(3, 1), false);
  });
});

test('which changes may forbid what was allowed', () => {
  const of = (...policies: [name: string, action: Action][]): PodPolicies => ({ policies: policies.map(([name, action]) => ({ name, hash: name, message: { action } })) as never, problems: [] });
  const [a, b, d]: readonly [[string, Action], [string, Action], [string, Action]] = [['a', Action.ALLOW], ['b', Action.ALLOW], ['d', Action.DENY]];
  assert.deepEqual([narrows(of(), of(a)), narrows(of(a), of(a, b)), narrows(of(a, b), of(a)), narrows(of(a), of())], [true, false, true, false]);
  assert.deepEqual([narrows(of(), of(d)), narrows(of(d), of()), narrows(of(a, d), of(a)), narrows(of(a), of(a, d)), narrows(of(a), of(b))], [true, false, false, true, true]);
  assert.equal(narrows(of(a), { policies: [], problems: ['it can not be read'] }), false);
});
