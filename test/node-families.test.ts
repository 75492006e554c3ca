/**
 * Pods of one family of addresses and of both, on a node whose own addresses are IPv4 alone and on one with IPv6 alone: the
 * kernel's services, HBONE between the nodes, policy and probes do not depend on what the node has.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { sleep, waitFor } from '../common/retry.js';
import { FAMILIES_ANNOTATION } from '../lab/families.js';
import { MeshWorld } from './mesh/world.js';

const PORT = 7000;
/** Answers the first bytes with its pod's name and who it was called by, and closes. */
const SERVER = `
const { createServer } = require('node:net');
const serve = (host) => createServer((s) => { s.on('error', () => {}); s.once('data', () => s.end(process.env.POD + ' ' + s.remoteAddress)); }).on('error', () => host === '::' && serve('0.0.0.0')).listen(${PORT}, host);
serve('::');`;
/** [[ADDRESS, PORT] …]: what each says, and whom the application took for its peer. */
const CLIENT = `
const net = require('node:net');
const one = ([host, port]) => new Promise((resolve) => {
  const s = net.connect({ host, port, timeout: 6000 }); let text = '', peer = '', error;
  s.on('connect', () => { peer = s.remoteAddress; s.write('hello'); }).on('timeout', () => { error = 'silence'; s.destroy(); });
  s.on('data', (d) => (text += d)).on('error', ({ code }) => (error = code)).on('close', () => resolve(error ?? (text ? text + ' ' + peer : 'closed')));
});
Promise.all(JSON.parse(process.argv[1]).map(one)).then((out) => console.log(JSON.stringify(out)));`;

type Kind = 'four' | 'six' | 'dual';
const FAMILIES: Record<Kind, string[]> = { four: ['IPv4'], six: ['IPv6'], dual: ['IPv4', 'IPv6'] };
const KINDS = Object.keys(FAMILIES) as Kind[];
const NAMES = [1, 2].flatMap((node) => KINDS.map((kind) => `${kind}-${node}`));
const kindOf = (name: string): Kind => name.split('-')[0] as Kind;
const nodeOf = (name: string): string => `node-${name.split('-')[1]}`;

const pod = (name: string, namespace = 'node'): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}, all: "true"}, annotations: {${FAMILIES_ANNOTATION}: "${FAMILIES[kindOf(name)].join(',')}"}}
spec:
  nodeName: ${nodeOf(name)}
  serviceAccountName: ${kindOf(name)}
  containers:
    - name: app
      image: node
      command: [node, -e, ${JSON.stringify(SERVER)}]
      env: [{name: POD, value: ${name}}]
      ports: [{name: tcp, containerPort: ${PORT}}]
      readinessProbe: {tcpSocket: {port: ${PORT}}, periodSeconds: 1}
---`;
const service = (name: string, families: readonly string[], selector = `app: ${name}`): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: node}
spec: {selector: {${selector}}, ipFamilies: [${families.join(', ')}], ipFamilyPolicy: ${families.length > 1 ? 'RequireDualStack' : 'SingleStack'}, ports: [{name: tcp, port: 80, targetPort: ${PORT}}]}
---`;
const host = (name: string, family: string): string => `
apiVersion: v1
kind: Node
metadata: {name: ${name}, annotations: {${FAMILIES_ANNOTATION}: ${family}}}
---`;

const world = new MeshWorld('families', {
  nodes: 2,
  bare: true,
  outside: [
    host('node-1', 'IPv4'), host('node-2', 'IPv6'),
    ...NAMES.map((name) => pod(name)), pod('dual-1', 'outside'), pod('dual-2', 'outside'),
    ...NAMES.map((name) => service(name, FAMILIES[kindOf(name)])),
    service('all4', ['IPv4'], 'all: "true"'), service('all6', ['IPv6'], 'all: "true"'), service('all', ['IPv4', 'IPv6'], 'all: "true"'),
    service('near', ['IPv4', 'IPv6'], 'all: "true"').replace('spec: {', 'spec: {trafficDistribution: PreferSameNode, '),
  ].join(''),
});
before(async () => {
  await world.up();
  await waitFor('HBONE to be announced', () => NAMES.every((name) => world.lab.pod('node', name).annotations['ambient.istio.io/redirection'] === 'enabled'), { timeoutMs: 120_000 });
  await world.settled();
});
after(() => world.down());

const isSix = (address: string): boolean => address.includes(':');
const ips = (name: string): string[] => world.lab.pod('node', name).ips;
const vips = (name: string): string[] => (world.pilot.object(`/Service/node/${name}`) as unknown as { spec: { clusterIPs: string[] } }).spec.clusterIPs;
const shared = (addresses: readonly string[], name: string): string[] => addresses.filter((address) => ips(name).some((own) => isSix(own) === isSix(address)));
const own = (name: string, like: string): string => ips(name).find((each) => isSix(each) === isSix(like)) ?? 'none';

interface Answer {
  pod: string;
  /** Whom the server took for its client. */
  caller: string;
  /** Whom the client took for its server. */
  peer: string;
}

async function ask(from: string, targets: readonly (readonly [string, number])[]): Promise<(Answer | string)[]> {
  const { stdout, stderr } = await world.lab.exec(from.includes('/') ? from : `node/${from}`, ['node', '-e', CLIENT, JSON.stringify(targets)], { timeoutMs: 120_000 });
  assert.ok(stdout, stderr);
  return (JSON.parse(stdout) as string[]).map((text) => {
    const [name = '', caller, peer] = text.split(' ');
    return caller === undefined || peer === undefined ? text : { pod: name, caller: caller.replace('::ffff:', ''), peer };
  });
}

test('the lab: pods and nodes have the families that they are given, and no other', async () => {
  const global = async (where: string): Promise<string[]> => {
    const { stdout } = await world.lab.exec(where, ['ip', '-j', 'addr', 'show', 'dev', 'eth0', 'scope', 'global']);
    return (JSON.parse(stdout) as { addr_info?: { local?: string }[] }[]).flatMap(({ addr_info = [] }) => addr_info.flatMap(({ local }) => local ?? []));
  };
  const seen = await Promise.all(NAMES.map((name) => global(`node/${name}`)));
  NAMES.forEach((name, index) => {
    assert.deepEqual(ips(name).map((address) => (isSix(address) ? 'IPv6' : 'IPv4')), FAMILIES[kindOf(name)], name);
    assert.deepEqual(seen[index], ips(name), name);
  });
  assert.deepEqual(world.lab.info().nodes.map((node) => node.ips.map(isSix)), [[false], [true]]);
});

for (const node of [1, 2]) {
  test(`pods of node ${node} reach each pod with which they share a family, by its address and by its service, from their own address, within the node and by HBONE`, async () => {
    const all = async (from: string): Promise<void> => {
      const targets = NAMES.filter((name) => name !== from).flatMap((to) => [
        ...shared(ips(to), from).map((address) => ({ to, address, port: PORT })), ...shared(vips(to), from).map((address) => ({ to, address, port: 80 })),
      ]);
      assert.ok(targets.length > 0);
      const answers = await ask(from, targets.map(({ address, port }) => [address, port] as const));
      const expected = targets.map(({ to, address }): Answer => ({ pod: to, peer: address, caller: own(from, address) }));
      const seen = answers.map((answer, index) => {
        const { to, address } = targets[index]!;
        // As a sidecar, Envoy takes a pod of both families by either address, whichever the service was called by.
        return typeof answer !== 'string' && nodeOf(to) !== nodeOf(from) && ips(from).includes(answer.caller) ? { ...answer, caller: own(from, address) } : answer;
      });
      assert.deepEqual(seen.map((answer, index) => [from, targets[index]!.address, answer]), expected.map((answer, index) => [from, targets[index]!.address, answer]));
    };
    await Promise.all(NAMES.filter((name) => nodeOf(name) === `node-${node}`).map(all));
  });
}

test('a service of one family leads to endpoints of that family, one of both to what the client can reach, and to the own node where it prefers that', async () => {
  const all = async (from: string): Promise<void> => {
    const targets = ['all4', 'all6', 'all', 'near'].flatMap((name) => shared(vips(name), from).flatMap((vip) => Array.from({ length: 12 }, () => ({ name, vip }))));
    const answers = await ask(from, targets.map(({ vip }) => [vip, 80] as const));
    for (const [index, { name, vip }] of targets.entries()) {
      const answer = answers[index]!;
      // What has the kernel's decision is of the address's own family; Envoy has one cluster for both.
      const families = name === 'all' ? ips(from) : [vip];
      const wanted = NAMES.filter((to) => shared(families, to).length > 0 && (name !== 'near' || nodeOf(to) === nodeOf(from)));
      assert.ok(typeof answer !== 'string' && wanted.includes(answer.pod), `${from} by ${name} ${vip}: ${JSON.stringify(answer)}, expected one of ${wanted.join()}`);
    }
  };
  await Promise.all(NAMES.map(all));
});

test('what a service prefers to have on the node is decided by the kernel for each family', async () => {
  for (const from of NAMES) {
    for (const vip of shared(vips('near'), from)) {
      const { addresses } = await world.explain(`node/${from}`, vip, 80);
      assert.deepEqual(addresses.map(({ way }) => way), ['endpoint'], `${from} to ${vip}: ${JSON.stringify(addresses)}`);
    }
  }
});

test('an address of a family that the pod does not have is out of its reach at once, as it is without a mesh', async () => {
  await Promise.all(([['four-1', 'six-2'], ['six-1', 'four-2'], ['four-2', 'six-2'], ['six-2', 'four-2']] as const).map(async ([from, to]) => {
    const answers = await ask(from, [[ips(to)[0]!, PORT], [vips(to)[0]!, 80]]);
    for (const answer of answers) assert.ok(typeof answer === 'string' && answer !== 'silence', `${from} to ${to}: ${JSON.stringify(answer)}`);
  }));
});

test('under STRICT probes of a node that has not the pod\'s family pass, strangers are refused in both, and pods go on', async () => {
  await world.apply('mesh', 'apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: node}\nspec: {mtls: {mode: STRICT}}\n');
  for (const node of ['node-1', 'node-2']) await waitFor('the policy to be in force', async () => ((await world.agentStatus(node)).policies?.settling ?? 0) === 0, { timeoutMs: 60_000 });
  // Three of the probe's periods, and the tries that it may fail.
  const probed = sleep(5_000);
  await Promise.all(['outside/dual-1', 'outside/dual-2'].map(async (stranger) => {
    const answers = await ask(stranger, NAMES.flatMap((to) => ips(to).map((address) => [address, PORT] as const)));
    assert.deepEqual(answers.filter((answer) => typeof answer !== 'string'), [], `${stranger}: ${JSON.stringify(answers)}`);
  }));
  const [from, to] = ['dual-1', 'dual-2'];
  const answers = await ask(from, [...vips(to).map((address) => [address, 80] as const), ...[...ips('six-1'), ...ips('four-1')].map((address) => [address, PORT] as const)]);
  assert.deepEqual(answers.filter((answer) => typeof answer === 'string'), []);
  await probed;
  assert.deepEqual(NAMES.map((name) => [name, world.lab.pod('node', name).ready]), NAMES.map((name) => [name, true]));
});
