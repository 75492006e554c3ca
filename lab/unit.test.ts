import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { nodeAddresses, PodAddresses, ServiceAddresses } from './addresses.js';
import { applyWritten } from './cluster.js';
import { resolve } from './dns.js';
import { EnvoyProxy } from './envoy-proxy.js';
import { ImageTable } from './images.js';
import { podsOf, serviceFamilies, targetPort, type KubeObject } from './kube.js';
import { LogFile } from './log-file.js';
import { LabNames } from './names.js';
import { configData, environment, expand } from './environment.js';
import { preflight } from './preflight.js';
import { parseAddress } from './relay.js';
import { serviceRules } from './service-proxy.js';
import { parseObjects, Sources } from './sources.js';

function inDirectory(work: (directory: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), 'underpass-lab-unit-'));
  try {
    work(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const deployment = (replicas: number, image = 'nginx'): KubeObject => ({
  apiVersion: 'apps/v1',
  kind: 'Deployment',
  metadata: { name: 'web', namespace: 'shop' },
  spec: { replicas, template: { metadata: { labels: { app: 'web' } }, spec: { containers: [{ name: 'web', image }] } } },
});

test('podsOf: a Deployment has as many pods as replicas, of stable and distinct names, owned by a ReplicaSet', () => {
  const three = podsOf(deployment(3), []);
  assert.equal(new Set(three.map(({ name }) => name)).size, 3);
  assert.deepEqual(
    podsOf(deployment(2), []).map(({ name }) => name),
    three.slice(0, 2).map(({ name }) => name),
  );
  assert.match(three[0]?.name ?? '', /^web-[0-9a-f]{10}-[0-9a-f]{5}$/);
  assert.equal(three[0]?.ownerReferences[0]?.kind, 'ReplicaSet');
  assert.equal(three[0]?.ownerReferences[0]?.name, `web-${three[0]?.labels['pod-template-hash']}`);
});

test('podsOf: a changed template gives other names, a StatefulSet counts, a DaemonSet has one per node', () => {
  assert.notEqual(podsOf(deployment(1), [])[0]?.name, podsOf(deployment(1, 'echo'), [])[0]?.name);
  assert.deepEqual(
    podsOf({ ...deployment(2), kind: 'StatefulSet' }, []).map(({ name }) => name),
    ['web-0', 'web-1'],
  );
  assert.deepEqual(
    podsOf({ ...deployment(1), kind: 'DaemonSet' }, ['a', 'b']).map(({ spec }) => spec.nodeName),
    ['a', 'b'],
  );
});

test('targetPort: number, name of a container port, default', () => {
  const spec = { containers: [{ name: 'web', image: 'x', ports: [{ name: 'http', containerPort: 8080 }] }] };
  assert.equal(targetPort({ port: 80 }, spec), 80);
  assert.equal(targetPort({ port: 80, targetPort: 81 }, spec), 81);
  assert.equal(targetPort({ port: 80, targetPort: 'http' }, spec), 8080);
  assert.equal(targetPort({ port: 80, targetPort: 'other' }, spec), undefined);
});

test('serviceFamilies: one family unless more is asked for', () => {
  assert.deepEqual(serviceFamilies({}), ['IPv4']);
  assert.deepEqual(serviceFamilies({ ipFamilyPolicy: 'PreferDualStack' }), ['IPv4', 'IPv6']);
  assert.deepEqual(serviceFamilies({ ipFamilies: ['IPv6'] }), ['IPv6']);
  assert.deepEqual(serviceFamilies({ ipFamilies: ['IPv6'], ipFamilyPolicy: 'RequireDualStack' }), ['IPv6', 'IPv4']);
});

test('PodAddresses: distinct, not at once used again, and refused when there are no more', () => {
  const pool = new PodAddresses(nodeAddresses(0));
  const first = pool.allocate();
  assert.deepEqual([first.ipv4, first.ipv6], ['10.244.0.2', 'fd00:10:244:1::2']);
  pool.release(first.host);
  assert.equal(pool.allocate().ipv4, '10.244.0.3');
  for (let count = 1; count < 250; count++) pool.allocate();
  assert.throws(() => pool.allocate(), /250 addresses are in use/);
});

test('PodAddresses: a given address is honoured, not given twice, and refused when it is not of the node', () => {
  const pool = new PodAddresses(nodeAddresses(1));
  const given = pool.allocate('10.244.1.2');
  assert.deepEqual([given.ipv4, given.ipv6], ['10.244.1.2', 'fd00:10:244:2::2']);
  assert.equal(pool.allocate().ipv4, '10.244.1.3');
  assert.throws(() => pool.allocate('10.244.1.2'), /lab\.underpass\.io\/ip: 10\.244\.1\.2 is another pod's/);
  for (const other of ['10.244.0.9', '10.244.1.1', '10.244.1.255', 'fd00::1', '10.244.1.x']) assert.throws(() => pool.allocate(other), /expected an address of the pod's node: 10\.244\.1\.0\/24/);
});

test('ServiceAddresses: a service keeps its own, a given one is honoured and not given twice', () => {
  const pool = new ServiceAddresses();
  const given = pool.allocate('a/x', ['10.96.0.11']);
  assert.equal(given.ipv4, '10.96.0.11');
  const other = pool.allocate('a/y', []);
  assert.notEqual(other.ipv4, given.ipv4);
  assert.deepEqual(pool.allocate('a/y', []), other);
});

test('applyWritten: what changed in the file changes, what was set live stays', () => {
  const state = { written: { app: 'a', old: '1' }, labels: { app: 'a', old: '1', mode: 'node' } as Record<string, string> };
  applyWritten(state, { app: 'b' });
  assert.deepEqual(state.labels, { app: 'b', mode: 'node' });
});

test('resolve: A, AAAA, NXDOMAIN, alias, names above a name', () => {
  const zone = new Map([
    ['nginx.shop.svc.cluster.local', { ips: ['10.96.0.11', 'fd00::1'] }],
    ['out.shop.svc.cluster.local', { ips: [], alias: 'example.org' }],
  ]);
  const ask = (name: string, type: 'A' | 'AAAA' | 'MX'): unknown => {
    const { code, answers } = resolve(zone, { name, type, class: 'IN' });
    return [code, answers.map((answer) => (answer as { data: unknown }).data)];
  };
  assert.deepEqual(ask('nginx.shop.svc.cluster.local', 'A'), ['NOERROR', ['10.96.0.11']]);
  assert.deepEqual(ask('NGINX.shop.svc.cluster.local.', 'AAAA'), ['NOERROR', ['fd00::1']]);
  assert.deepEqual(ask('nginx.shop.svc.cluster.local', 'MX'), ['NOERROR', []]);
  assert.deepEqual(ask('out.shop.svc.cluster.local', 'A'), ['NOERROR', ['example.org']]);
  assert.deepEqual(ask('shop.svc.cluster.local', 'A'), ['NOERROR', []]);
  assert.deepEqual(ask('nginx.shop', 'A'), ['NXDOMAIN', []]);
});

test('serviceRules: one endpoint, many, none', () => {
  const base = { service: 'shop/web:http', port: 80, protocol: 'tcp' as const };
  const rules = serviceRules([
    { ...base, ip: '10.96.0.1', endpoints: [{ ip: '10.244.0.2', port: 8080 }] },
    {
      ...base,
      ip: 'fd00::1',
      endpoints: [
        { ip: 'fd00::2', port: 1 },
        { ip: 'fd00::3', port: 2 },
      ],
    },
    { ...base, ip: '10.96.0.3', endpoints: [] },
  ]);
  assert.match(rules, /ip daddr 10\.96\.0\.1 tcp dport 80 dnat ip to 10\.244\.0\.2:8080 /);
  assert.match(
    rules,
    /ip6 daddr fd00::1 tcp dport 80 dnat ip6 addr \. port to numgen random mod 2 map \{ 0 : fd00::2 \. 1, 1 : fd00::3 \. 2 \}/,
  );
  assert.match(rules, /ip daddr 10\.96\.0\.3 tcp dport 80 reject /);
});

test('ImageTable: by full name, last part, without tag; the user wins; an unknown one lists the known', () => {
  const table = new ImageTable();
  assert.ok(table.find('docker.io/library/nginx:1.27@sha256:abc'));
  assert.ok(table.find('localhost:5000/curl'));
  table.setUserImages([{ name: 'nginx', entry: { command: ['mine'], ports: [1] }, dir: '/tmp' }]);
  const context = { podName: 'p', namespace: 'n', labels: {}, ports: [], env: {}, dir: '/tmp', ipv6: true };
  assert.deepEqual(table.require('nginx')(context).entrypoint, ['mine']);
  assert.throws(() => table.require('no/such:1'), /no program for it; it knows .*echo/);
});

test('expand: variables that exist, $$ as escape', () => {
  assert.equal(expand('$(A)-$(B)-$$(A)', { A: '1' }), '1-$(B)-$(A)');
});

test('environment: fields, ConfigMaps, Secrets, prefixes, references to earlier ones; what is missing is named', () => {
  const config = (kind: string, name: string): Record<string, string> | undefined =>
    name === 'c' ? { key: `${kind}-value` } : undefined;
  const spec = {
    name: 'a',
    envFrom: [{ prefix: 'P_', configMapRef: { name: 'c' } }, { secretRef: { name: 'none', optional: true } }],
    env: [
      { name: 'A', value: '$(BASE)/$(P_key)' },
      { name: 'B', valueFrom: { secretKeyRef: { name: 'c', key: 'key' } } },
      { name: 'C', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } },
    ],
  };
  assert.deepEqual(
    environment(spec, { BASE: 'b' }, (path) => `<${path}>`, config),
    { BASE: 'b', P_key: 'ConfigMap-value', A: 'b/ConfigMap-value', B: 'Secret-value', C: '<status.podIP>' },
  );
  const missing = { name: 'a', env: [{ name: 'X', valueFrom: { configMapKeyRef: { name: 'c', key: 'other' } } }] };
  assert.throws(() => environment(missing, {}, String, config), /variable X needs key other of ConfigMap c/);
  const secret = {
    apiVersion: 'v1',
    kind: 'Secret',
    metadata: { name: 's' },
    data: { a: Buffer.from('x').toString('base64') },
    stringData: { b: 'y' },
  };
  assert.deepEqual(configData(secret), { a: 'x', b: 'y' });
});

test('parseAddress: host and port, IPv6, unix socket, nonsense', () => {
  assert.deepEqual(parseAddress('127.0.0.1:15010'), { host: '127.0.0.1', port: 15010 });
  assert.deepEqual(parseAddress('[::1]:1'), { host: '::1', port: 1 });
  assert.deepEqual(parseAddress('unix:/a/b'), { path: '/a/b' });
  assert.throws(() => parseAddress('nonsense'), /expected host:port/);
});

test('LabNames: names that would leave the folder are refused', () => {
  for (const name of ['../x', 'a/b', '', '-a', 'A', 'a'.repeat(33)])
    assert.throws(() => new LabNames(name), /naming a lab/, name);
});

test('EnvoyProxy: a lab\'s name that is too long for its sockets is said, where Envoy would only end', () => {
  const proxy = (name: string): EnvoyProxy => new EnvoyProxy({ dir: new LabNames(name).podDir('0'.repeat(36)), container: { name: 'istio-proxy' } } as never);
  assert.throws(() => proxy('x'.repeat(32)), /a socket's path has 107 bytes at most; give the lab a shorter name/);
  proxy('x'.repeat(20));
});

test('preflight: names what is missing and how to get it', () => {
  const failure = (options: Parameters<typeof preflight>[1]): { message: string; hint?: string } => {
    try {
      preflight('starting lab x', options);
    } catch (error) {
      return error as { message: string; hint?: string };
    }
    return { message: '' };
  };
  assert.match(failure({ uid: 1000 }).message, /^starting lab x: needs root/);
  const tools = failure({ uid: 0, path: '/no-such' });
  assert.match(tools.message, /not found in PATH: ip, nft, unshare, umount/);
  assert.match(tools.hint ?? '', /iproute2 nftables/);
  assert.match(failure({ uid: 0, helper: '/no-such' }).hint ?? '', /make build/);
  assert.equal(failure({ uid: 0 }).message, '');
});

test('LogFile: keeps to its size and the newest lines', () => {
  inDirectory((directory) => {
    const path = join(directory, 'log');
    const log = new LogFile(path, 100);
    for (let line = 0; line < 50; line++) log.write(`line ${line}\n`);
    log.close();
    const [now, before] = [readFileSync(path, 'utf8'), readFileSync(`${path}.1`, 'utf8')];
    assert.ok(now.length <= 100 && before.length <= 100);
    assert.match(now, /line 49\n$/);
  });
});

test('parseObjects: what is wrong is said with file, line, column and field; Istio kinds are left to pilot', () => {
  const pod = (container: string): string =>
    `apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n    - ${container}\n`;
  assert.deepEqual(parseObjects(pod('{name: a, image: nginx}'), 'f.yaml').errors, []);
  const [twice] = parseObjects(pod('{name: a, image: nginx}\n    - {name: a, image: nginx}'), 'f.yaml').errors;
  assert.match(twice ?? '', /^f\.yaml:8:\d+: Pod default\/p: spec\.containers\[1\]\.name: /);
  assert.match(parseObjects('a: [1\n', 'f.yaml').errors[0] ?? '', /^f\.yaml:\d+:\d+: not YAML/);
  const istio = 'apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: v\nspec:\n  nonsense: 1\n';
  assert.deepEqual(parseObjects(istio, 'f.yaml').errors, []);
});

test('Sources: an object that becomes wrong keeps its last good version, others change', () => {
  inDirectory((directory) => {
    const file = join(directory, 'a.yaml');
    const service = (name: string, port: unknown): string =>
      `apiVersion: v1\nkind: Service\nmetadata: {name: ${name}}\nspec: {ports: [{port: ${String(port)}}]}\n`;
    writeFileSync(file, `${service('x', 80)}---\n${service('y', 80)}`);
    const sources = new Sources([directory]);
    assert.deepEqual(sources.refresh(), { changed: true, errors: [] });
    assert.deepEqual(sources.refresh(), { changed: false, errors: [] });
    writeFileSync(file, `${service('x', 'nonsense')}---\n${service('y', 8081)}`);
    const { errors } = sources.refresh();
    assert.equal(errors.length, 1);
    assert.match(errors[0] ?? '', /a\.yaml:4:\d+: Service default\/x: spec\.ports\[0\]\.port/);
    const port = (name: string): unknown =>
      (sources.objects().get(`/Service/default/${name}`)?.spec as { ports: { port: number }[] }).ports[0]?.port;
    assert.deepEqual([port('x'), port('y')], [80, 8081]);
    writeFileSync(file, 'kind: [');
    assert.equal(sources.refresh().errors.length > 0, true);
    assert.deepEqual([port('x'), port('y')], [80, 8081]);
    rmSync(file);
    sources.refresh();
    assert.equal(sources.objects().size, 0);
  });
});
