/**
 * Whom an application sees that the node's Envoy stands before: the caller itself, whichever way it came. By HBONE from an
 * independent client and from pods of another node, through policies and without, from pods of its own node, and in plaintext
 * from outside the mesh.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { projectRoot } from '../common/paths.js';
import { waitFor } from '../common/retry.js';
import type { Input, Outcome } from './hbone-client.js';
import { MeshWorld } from './mesh/world.js';

/** Answers what it is sent with whom it sees, in 64 bytes: on one port each for both families, IPv4 alone and IPv6 alone. */
const SAYS = "const net = require('node:net'); const says = (s) => { const who = () => s.remoteAddress + ' ' + s.remotePort; const first = who(); s.on('error', () => {}).once('data', () => s.end((first === who() && s.remotePort > 0 ? s.remoteAddress : 'no longer ' + first).padEnd(64))); }; for (const [port, host, ipv6Only] of [[7000, '::', false], [7004, '0.0.0.0', false], [7006, '::', true]]) net.createServer(says).listen({ port, host, ipv6Only });";
const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}]';
const pod = (namespace: string, name: string, node: string, containers: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}}}
spec: {nodeName: ${node}, serviceAccountName: caller, containers: [${containers}]}
---
`;
const CURL = '{name: curl, image: curl}';

const world = new MeshWorld('node-hbone-source', {
  nodes: 2,
  outside: `${pod('node', 'far', 'node-2', `{${ECHO}}, {name: says, image: node, command: [node, -e, ${JSON.stringify(SAYS)}]}`)}apiVersion: v1
kind: Service
metadata: {name: far, namespace: node}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-says, port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: far-six, namespace: node}
spec: {selector: {app: far}, ipFamilies: [IPv6], ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-says, port: 7006}]}
---
${['one', 'two'].map((name) => pod('node', name, 'node-1', CURL)).join('')}${['near-one', 'near-two'].map((name) => pod('node', name, 'node-2', CURL)).join('')}${['out-one', 'out-two'].map((name) => pod('outside', name, 'node-1', CURL)).join('')}`,
});
const HTTP_POLICY = 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: by-path, namespace: node}\nspec: {selector: {matchLabels: {app: far}}, action: DENY, rules: [{to: [{operation: {paths: ["/forbidden"], ports: ["8080"]}}]}]}\n';
const TCP_POLICY = 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: by-account, namespace: node}\nspec: {selector: {matchLabels: {app: far}}, action: DENY, rules: [{from: [{source: {principals: ["cluster.local/ns/nobody/sa/nobody"]}}]}]}\n';

before(async () => {
  await world.up();
  await waitFor('HBONE to be announced', () => world.lab.pod('node', 'far').annotations['ambient.istio.io/redirection'] === 'enabled', { timeoutMs: 60_000 });
  await world.settled();
});
after(() => world.down());

const ips = (namespace: string, name: string): [string, string] => world.lab.pod(namespace, name).ips as [string, string];

/** By an independent HBONE client, from a pod outside the mesh on the other node. */
async function tunnel(tunnels: Input['tunnels'], options: { from?: string; address?: string } = {}): Promise<Outcome[]> {
  const { chainPem, privateKeyPem } = await world.ca.issue({ namespace: 'sidecar', serviceAccount: 'caller' });
  const input: Input = { ca: world.ca.rootPem, cert: chainPem, key: privateKeyPem, address: options.address ?? ips('node', 'far')[0], port: 15_008, tunnels };
  const { stdout, stderr } = await world.lab.exec(`outside/${options.from ?? 'out-one'}`, [process.execPath, join(projectRoot, 'dist', 'test', 'hbone-client.js')], { input: JSON.stringify(input), timeoutMs: 60_000 });
  const outcomes = stdout.split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Outcome).map((outcome) => ({ ...outcome, ...(outcome.body === undefined ? {} : { body: outcome.body.trim() }) }));
  assert.equal(outcomes.length, tunnels.length, stderr);
  return outcomes;
}

const says = (authority: string, connect: Record<string, string> = {}): Input['tunnels'][number] => ({ authorities: [authority], connect, raw: '?'.repeat(64) });
const remoteOf = ({ body = '{}' }: Outcome): string => hostOf((JSON.parse(body) as { remote?: string }).remote);
const hostOf = (remote = ''): string => remote.replace(/:\d+$/, '').replace(/^::ffff:/, '');

/** Whom the echo server saw, by HTTP. */
async function seenBy(from: string, url: string): Promise<{ host: string; port: string }> {
  const { stdout, stderr } = await world.lab.exec(from, ['curl', '-sS', '--max-time', '30', url]);
  const { remote } = (stdout.startsWith('{') ? JSON.parse(stdout) : assert.fail(`${url}: ${stdout} ${stderr}`)) as { remote: string };
  return { host: hostOf(remote), port: /\d+$/.exec(remote)![0] };
}

/** Whom the other program saw, by TCP. */
async function dial(from: string, host: string, port: number): Promise<string> {
  const script = `const s = require('node:net').connect(${JSON.stringify({ host, port })}).on('data', (d) => process.stdout.write(d)).on('error', (error) => console.log(error.code)); s.write('?'.repeat(64))`;
  return (await world.lab.exec(from, [process.execPath, '-e', script])).stdout.trim();
}

const ways: [string, string][] = [['no policy', ''], ['a policy about HTTP', HTTP_POLICY], ['a policy about accounts', TCP_POLICY]];
async function under(yaml: string): Promise<void> {
  if (yaml === '') await world.clear('mesh');
  else await world.apply('mesh', yaml);
  await world.settled();
}

for (const [name, yaml] of ways) {
  test(`by HBONE from an independent client the application sees the client's address: IPv4, IPv6, IPv4 at a socket for both, HTTP and TCP (${name})`, async () => {
    await under(yaml);
    const [four, six] = ips('node', 'far');
    const [own4, own6] = ips('outside', 'out-one');
    const answers = async (authorities: string[], address: string): Promise<(string | undefined)[]> => (await tunnel(authorities.map((authority) => says(authority)), { address })).map(({ body, error }) => body ?? error);
    assert.deepEqual(await answers([`${four}:7000`, `${four}:7004`], four), [`::ffff:${own4}`, own4]);
    assert.deepEqual(await answers([`[${six}]:7000`, `[${six}]:7006`], six), [own6, own6]);
    assert.deepEqual((await tunnel([{ authorities: [`${four}:8080`], path: '/' }])).map(remoteOf), [own4]);
    assert.deepEqual((await tunnel([{ authorities: ['far.node.svc.cluster.local:80'], path: '/' }])).map(remoteOf), [own4]);
  });

  test(`an address of the other family than the client's own shows the pod itself, and is reached all the same (${name})`, async () => {
    await under(yaml);
    const [four, six] = ips('node', 'far');
    assert.deepEqual((await tunnel([says(`[${six}]:7006`)], { address: four })).map(({ body }) => body), [six]);
    assert.deepEqual((await tunnel([says(`${four}:7004`)], { address: six })).map(({ body }) => body), [four]);
  });

  test(`no header of a tunnel's makes its client somebody else (${name})`, async () => {
    await under(yaml);
    const [four] = ips('node', 'far');
    const [own] = ips('outside', 'out-one');
    const forged = { 'x-forwarded-for': '198.51.100.9', forwarded: 'for=198.51.100.9', 'x-envoy-external-address': '198.51.100.9', 'x-real-ip': '198.51.100.9' };
    assert.deepEqual((await tunnel([says(`${four}:7004`, forged)])).map(({ body }) => body), [own]);
  });

  test(`pods of another node and of its own are seen by the application of a service as themselves, also when they call in turn (${name})`, async () => {
    await under(yaml);
    for (let round = 0; round < 3; round++) {
      for (const caller of ['one', 'two', 'near-one', 'near-two']) {
        assert.equal((await seenBy(`node/${caller}`, 'http://far.node/')).host, ips('node', caller)[0], caller);
        assert.equal((await dial(`node/${caller}`, 'far.node', 7000)).replace('::ffff:', ''), ips('node', caller)[0], `${caller} by TCP`);
      }
    }
  });

  test(`the same of a service with IPv6 addresses alone (${name})`, async () => {
    await under(yaml);
    for (const caller of ['one', 'near-one']) {
      assert.equal((await seenBy(`node/${caller}`, 'http://far-six.node/')).host, ips('node', caller)[1], caller);
      assert.equal(await dial(`node/${caller}`, 'far-six.node', 7006), ips('node', caller)[1], `${caller} by TCP`);
    }
  });

  test(`who comes in plaintext from outside the mesh is seen as itself, by IPv4 and IPv6 (${name})`, async () => {
    await under(yaml);
    for (let round = 0; round < 2; round++) {
      for (const caller of ['out-one', 'out-two']) {
        for (const [index, address] of ips('node', 'far').entries()) {
          const { host } = await seenBy(`outside/${caller}`, `http://${address.includes(':') ? `[${address}]` : address}:8080/`);
          assert.equal(host, ips('outside', caller)[index], `${caller} to ${address}`);
        }
      }
    }
  });
}

test('callers of one account do not share what Envoy opens for one of them: each of many tunnels at once shows its own client', async () => {
  for (const [, yaml] of ways) {
    await under(yaml);
    const [four] = ips('node', 'far');
    const all = await Promise.all(['out-one', 'out-two'].map(async (from) => (await tunnel(Array.from({ length: 20 }, () => says(`${four}:7004`)), { from })).map(({ body }) => body === ips('outside', from)[0])));
    assert.deepEqual(new Set(all.flat()), new Set([true]));
  }
});

test('HTTP of one caller goes on using the connection that was opened for it, and no other caller does', async () => {
  await under(HTTP_POLICY);
  const [four] = ips('node', 'far');
  const url = `http://${four}:8080/`;
  const ports = new Map<string, Set<string>>();
  for (let round = 0; round < 6; round++) {
    for (const caller of ['out-one', 'out-two']) {
      const { host, port } = await seenBy(`outside/${caller}`, url);
      ports.set(host, (ports.get(host) ?? new Set()).add(port));
    }
  }
  const [one, two] = ['out-one', 'out-two'].map((caller) => ports.get(ips('outside', caller)[0])!);
  assert.equal(ports.size, 2);
  assert.deepEqual([...one!].filter((port) => two!.has(port)), []);
  // Each of Envoy's workers has connections of its own.
  assert.ok(one!.size < 6 && two!.size < 6, JSON.stringify([[...one!], [...two!]]));
});

test('a policy about the caller\'s address holds for it and for no address that a header says', async () => {
  const [four] = ips('node', 'far');
  const [own] = ips('outside', 'out-one');
  const deny = (block: string): string => `apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: by-address, namespace: node}\nspec: {selector: {matchLabels: {app: far}}, action: DENY, rules: [{from: [{source: {ipBlocks: ["${block}"]}}]}]}\n`;
  for (const [block, taken] of [[own, false], ['198.51.100.9', true]] as const) {
    await under(deny(block));
    for (const headers of [{}, { 'x-forwarded-for': '198.51.100.9' }] as Record<string, string>[]) {
      await waitFor(`a tunnel to be ${taken ? 'taken' : 'refused'} with ${block} denied and ${JSON.stringify(headers)}`, async () => (await tunnel([says(`${four}:7004`, headers)]))[0]!.body === (taken ? own : undefined) || undefined, { timeoutMs: 120_000 });
    }
  }
  await under('');
});

test('where rules redirect what comes to the pod, callers are seen as well', async () => {
  const key = { kind: 'Pod', namespace: 'node', name: 'far' } as const;
  const way = async (): Promise<string | undefined> => (await world.agentStatus('node-2')).pods.find(({ name }) => name === 'far')?.way;
  await under(HTTP_POLICY);
  await world.lab.label({ ...key, labels: { 'underpass.io/redirection': 'iptables' } });
  try {
    await waitFor('rules', async () => (await way()) === 'iptables', { timeoutMs: 60_000 });
    await world.settled();
    for (const [index, address] of ips('node', 'far').entries()) {
      assert.equal((await seenBy('outside/out-one', `http://${address.includes(':') ? `[${address}]` : address}:8080/`)).host, ips('outside', 'out-one')[index], address);
      assert.equal((await tunnel([says(`${address.includes(':') ? `[${address}]:7006` : `${address}:7004`}`)], { address }))[0]!.body, ips('outside', 'out-one')[index]);
    }
    assert.equal((await seenBy('node/near-one', 'http://far.node/')).host, ips('node', 'near-one')[0]);
  } finally {
    await world.lab.label({ ...key, labels: { 'underpass.io/redirection': null } });
  }
  await waitFor('hooks again', async () => (await way()) === 'bpf', { timeoutMs: 60_000 });
});

test('after all this Envoy has refused nothing', async () => {
  assert.deepEqual(await world.nacks(), []);
});
