// ServiceEntries, TLS origination and Sidecars with real traffic through real Envoys, by sidecars and by the node's proxy.
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Pod } from '../common/kube/types.js';
import { waitFor } from '../common/retry.js';
import { ServerCertificates } from '../lab/server-certificates.js';
import { MeshWorld, MODES, type CurlOptions, type Mode } from './mesh/world.js';

const folder = mkdtempSync(join(tmpdir(), 'underpass-entries-'));
// A sidecar runs as a user of its own.
chmodSync(folder, 0o755);
const authority = await ServerCertificates.create({ commonName: 'outside CA' });
const { certificatePem, privateKeyPem } = await authority.issue({ dnsNames: ['secure.example'] });
const client = await authority.issue({ dnsNames: ['client.example'] });
const FILES = { 'ca.pem': authority.rootPem, 'cert.pem': certificatePem, 'key.pem': privateKeyPem, 'client.pem': client.certificatePem, 'client-key.pem': client.privateKeyPem };
for (const [name, pem] of Object.entries(FILES)) writeFileSync(join(folder, name), pem);

const TLS_SERVER = `apiVersion: v1
kind: Pod
metadata: {name: secure, namespace: outside, labels: {app: secure}}
spec: {containers: [{name: tls, image: tls-echo, env: [{name: TLS_CERT_FILE, value: ${join(folder, 'cert.pem')}}, {name: TLS_KEY_FILE, value: ${join(folder, 'key.pem')}}], ports: [{name: tls, containerPort: 8443}]}]}
`;
/** Lets in only who has a certificate of that CA. */
const MUTUAL_SERVER = TLS_SERVER.replaceAll('secure', 'mutual').replace(`{name: TLS_KEY_FILE`, `{name: TLS_CLIENT_CA_FILE, value: ${join(folder, 'ca.pem')}}, {name: TLS_KEY_FILE`);
const mesh = new MeshWorld('entries', { outside: `${TLS_SERVER}---\n${MUTUAL_SERVER}` });

before(() => mesh.up());
after(async () => {
  await mesh.down();
  rmSync(folder, { recursive: true, force: true });
});

const ip = (pod: string): string => (mesh.pilot.object(`/Pod/${pod}`) as Pod).status!.podIP!;
const entry = (name: string, spec: string): string => `---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ${name}}\nspec: ${spec}\n`;
const sidecar = (spec: string): string => `---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default}\nspec: ${spec}\n`;
/** What a TCP echo server sends back. */
async function echoed(pod: string, host: string, port: number): Promise<string> {
  const program = `const s = require('node:net').connect(${port}, '${host}', () => s.write('hello')); s.setTimeout(5000, () => process.exit(1)); s.on('error', (e) => { console.error(e.message); process.exit(1); }); s.on('data', (d) => { console.log(String(d)); process.exit(0); });`;
  const { stdout, stderr } = await mesh.lab.exec(pod, [process.execPath, '-e', program]);
  return stdout.trim() || stderr;
}
const HTTP = 'ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]';
for (const mode of MODES) {
  const vip = (last: number): string => `10.78.${mode === 'node' ? 1 : 2}.${last}`;
  const at = (host: string, address: string, port = 80): CurlOptions => ({ args: ['--resolve', `${host}:${port}:${address}`] });

  test(`ServiceEntry STATIC: its address leads to its endpoints, on their own port (${mode})`, async () => {
    await mesh.apply(mode, entry('static', `{hosts: [static.example], addresses: [${vip(1)}], resolution: STATIC, ${HTTP}, endpoints: [{address: ${ip('outside/web')}}]}`));
    const { status, version, body } = await mesh.curl(mode, 'http://static.example/x', at('static.example', vip(1)));
    assert.deepEqual([status, version, body['path']], [200, 'out', '/x']);
  });

  test(`ServiceEntry STATIC: plain TCP by its address (${mode})`, async () => {
    await mesh.apply(mode, entry('tcp', `{hosts: [tcp.example], addresses: [${vip(2)}], resolution: STATIC, ports: [{number: 9100, name: tcp, protocol: TCP, targetPort: 9000}], endpoints: [{address: ${ip('outside/web')}}]}`));
    assert.equal(await echoed(`${mode}/client`, vip(2), 9100), 'hello');
  });

  test(`ServiceEntry DNS: Envoy looks the endpoint's name up itself (${mode})`, async () => {
    await mesh.apply(mode, entry('dns', `{hosts: [dns.example], addresses: [${vip(3)}], resolution: DNS, ${HTTP.replace('8080', '80')}, endpoints: [{address: web.outside.svc.cluster.local}]}`));
    assert.deepEqual(await mesh.nacks(), []);
    const answer = await mesh.curl(mode, 'http://dns.example/', at('dns.example', vip(3)));
    assert.deepEqual([answer.status, answer.version], [200, 'out']);
    await mesh.apply(mode, entry('dns', `{hosts: [once.example], addresses: [${vip(4)}], resolution: DNS_ROUND_ROBIN, ports: [{number: 8000, name: http, protocol: HTTP, targetPort: 80}], endpoints: [{address: web.outside.svc.cluster.local}]}`));
    assert.equal((await mesh.curl(mode, 'http://once.example:8000/', at('once.example', vip(4), 8000))).version, 'out');
    assert.deepEqual(await mesh.nacks(), []);
  });

  test(`ServiceEntry STATIC at a Unix socket: a sidecar speaks to it, the node's Envoy has no business with sockets of the node (${mode})`, async () => {
    const path = join(folder, `${mode}.sock`);
    const asked: (string | undefined)[] = [];
    const server = createServer((request, response) => {
      asked.push(request.url);
      response.end('by a socket');
    });
    await new Promise<void>((resolve) => server.listen({ path, writableAll: true }, resolve));
    try {
      await mesh.apply(mode, entry('socket', `{hosts: [socket.example], addresses: [${vip(8)}], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: "unix://${path}"}]}`));
      assert.deepEqual(await mesh.nacks(), []);
      const { status, text } = await mesh.curl(mode, 'http://socket.example/x', at('socket.example', vip(8)));
      assert.deepEqual([status, asked], mode === 'sidecar' ? [200, ['/x']] : [503, []], text);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  test(`ServiceEntry workloadSelector: pods of the namespace and WorkloadEntries, by weight; one that goes is gone (${mode})`, async () => {
    const selected = entry('both', `{hosts: [both.example], addresses: [${vip(5)}], location: MESH_INTERNAL, resolution: STATIC, ${HTTP}, workloadSelector: {labels: {app: web}}}`);
    const workload = `---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm}\nspec: {address: ${ip('outside/web')}, labels: {app: web}, weight: 2}\n`;
    const rule = '---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: both}\nspec: {host: both.example, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}\n';
    const versions = async (count: number): Promise<Record<string, number>> => {
      const found: Record<string, number> = {};
      for (let i = 0; i < count; i++) {
        const { version } = await mesh.curl(mode, 'http://both.example/', at('both.example', vip(5)));
        found[version] = (found[version] ?? 0) + 1;
      }
      return found;
    };
    await mesh.apply(mode, selected + rule + workload);
    assert.deepEqual(await versions(16), { v1: 4, v2: 4, out: 8 });
    await mesh.apply(mode, selected + rule);
    assert.deepEqual(await versions(8), { v1: 4, v2: 4 });
  });

  test(`ServiceEntry NONE with a wildcard: on to where the client meant, even where nothing else may leave (${mode})`, async () => {
    const target = ip('outside/web');
    const wild = entry('wild', '{hosts: ["*.wild.example"], resolution: NONE, ports: [{number: 8080, name: http, protocol: HTTP}]}');
    await mesh.apply(mode, wild);
    assert.equal((await mesh.curl(mode, 'http://a.wild.example:8080/', at('a.wild.example', target, 8080))).version, 'out');
    if (mode !== 'sidecar') return;
    await mesh.apply(mode, wild + sidecar('{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}'));
    assert.equal((await mesh.curl(mode, 'http://b.wild.example:8080/', at('b.wild.example', target, 8080))).version, 'out');
    assert.equal((await mesh.curl(mode, 'http://a.tame.example:8080/', at('a.tame.example', target, 8080))).status, 502);
  });

  test(`outboundTrafficPolicy: ALLOW_ANY lets strangers through, REGISTRY_ONLY does not (${mode})`, async () => {
    const stranger = at('stranger.example', ip('outside/web'), 8080);
    await mesh.clear(mode);
    assert.equal((await mesh.curl(mode, 'http://stranger.example:8080/', stranger)).version, 'out');
    await mesh.apply(mode, sidecar('{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}'));
    assert.equal((await mesh.curl(mode, 'http://web/')).status, 200);
    // In namespaces without sidecars the kernel refuses the connection, before there is a request.
    const { code, answer } = await mesh.tryCurl(mode, 'http://stranger.example:8080/', stranger);
    assert.ok(code !== 0 || answer!.status === 502, `${code} ${answer?.status} ${answer?.version}`);
    if (mode === 'sidecar') assert.equal((await mesh.curl(mode, 'http://stranger.example/', at('stranger.example', ip('outside/web'), 80))).status, 502);
  });

  test(`TLS origination: SIMPLE checks the server's certificate against the CA and the names (${mode})`, async () => {
    const rule = (tls: string): string => `---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: secure}\nspec: {host: secure.example, trafficPolicy: {tls: ${tls}}}\n`;
    const secure = entry('secure', `{hosts: [secure.example], addresses: [${vip(6)}], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}], endpoints: [{address: ${ip('outside/secure')}}]}`);
    const get = (): ReturnType<MeshWorld['curl']> => mesh.curl(mode, 'http://secure.example/', at('secure.example', vip(6)));
    const ca = `caCertificates: ${join(folder, 'ca.pem')}`;
    await mesh.apply(mode, secure + rule(`{mode: SIMPLE, ${ca}}`));
    assert.deepEqual(await mesh.nacks(), []);
    const { status, body } = await get();
    assert.deepEqual([status, body['sni']], [200, 'secure.example']);
    assert.match(body['tls'], /^TLSv1\.[23]$/);
    await mesh.apply(mode, secure + rule(`{mode: SIMPLE, ${ca}, sni: secure.example, subjectAltNames: [secure.example]}`));
    assert.equal((await get()).status, 200);
    await mesh.apply(mode, secure + rule(`{mode: SIMPLE, ${ca}, subjectAltNames: [other.example]}`));
    assert.equal((await get()).status, 503);
    await mesh.apply(mode, secure + rule('{mode: SIMPLE}'));
    assert.equal((await get()).status, 503);
    await mesh.apply(mode, secure + rule('{mode: SIMPLE, insecureSkipVerify: true}'));
    assert.equal((await get()).status, 200);
  });
}

for (const mode of MODES) {
  test(`TLS origination: MUTUAL shows a certificate, from files or from a Secret (${mode})`, async () => {
    const address = `10.78.${mode === 'node' ? 1 : 2}.7`;
    const rule = (tls: string): string => `---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: mutual}\nspec: {host: secure.example, trafficPolicy: {tls: {${tls}}}}\n`;
    const server = entry('mutual', `{hosts: [secure.example], addresses: [${address}], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}], endpoints: [{address: ${ip('outside/mutual')}}]}`);
    const get = (): ReturnType<MeshWorld['curl']> => mesh.curl(mode, 'http://secure.example/', { args: ['--resolve', `secure.example:80:${address}`] });
    const file = (name: string): string => join(folder, name);
    await mesh.apply(mode, server + rule(`mode: SIMPLE, caCertificates: ${file('ca.pem')}`));
    assert.equal((await get()).status, 503);
    await mesh.apply(mode, server + rule(`mode: MUTUAL, caCertificates: ${file('ca.pem')}, clientCertificate: ${file('client.pem')}, privateKey: ${file('client-key.pem')}`));
    const { status, body } = await get();
    assert.deepEqual([status, body['client']], [200, 'DNS:client.example']);
    // The node's Envoy gets no Secrets of Kubernetes.
    if (mode === 'node') return;
    const secret = { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'outside' }, stringData: { 'tls.crt': client.certificatePem, 'tls.key': client.privateKeyPem, 'ca.crt': authority.rootPem } };
    await mesh.apply(mode, `${server + rule('mode: MUTUAL, credentialName: outside')}---\n${JSON.stringify(secret)}\n`);
    assert.equal((await get()).status, 200);
  });
}

/** Of the client's own Envoy. */
async function clusters(mode: Mode): Promise<string[]> {
  const dump = JSON.parse(await mesh.lab.proxyAdmin(`${mode}/client`, '/config_dump?resource=dynamic_active_clusters')) as { configs: { cluster: { name: string } }[] };
  return dump.configs.map(({ cluster }) => cluster.name).filter((name) => name.startsWith('outbound|')).sort();
}

test('Sidecar: the egress hosts are all that a sidecar is told of', async () => {
  await mesh.clear('sidecar');
  assert.ok((await clusters('sidecar')).includes('outbound|80||web.outside.svc.cluster.local'));
  await mesh.apply('sidecar', sidecar('{workloadSelector: {labels: {app: client}}, egress: [{hosts: ["./web.sidecar.svc.cluster.local"]}]}'));
  assert.deepEqual(await clusters('sidecar'), ['outbound|80||web.sidecar.svc.cluster.local', 'outbound|9000||web.sidecar.svc.cluster.local']);
  assert.equal((await mesh.curl('sidecar', 'http://web/')).status, 200);
});

test('Sidecar: an egress listener that captures nothing is a socket of its own; the node\'s Envoy has none, and says so', async () => {
  const egress = (mode: Mode): string => sidecar(`{workloadSelector: {labels: {app: client}}, egress: [{port: {number: 9000, protocol: TCP, name: tcp}, captureMode: NONE, hosts: ["./web.${mode}.svc.cluster.local"]}, {hosts: ["*/*"]}]}`);
  await mesh.apply('sidecar', egress('sidecar'));
  assert.deepEqual(await mesh.nacks(), []);
  assert.equal(await echoed('sidecar/client', '127.0.0.1', 9000), 'hello');
  await mesh.apply('node', egress('node'));
  assert.match((await mesh.nacks()).join(), /LDS 127\.0\.0\.1_9000: a socket in the pod that programs are to dial/);
  assert.equal((await mesh.curl('node', 'http://web/')).status, 200);
  await mesh.clear('node');
  assert.deepEqual(await mesh.nacks(), []);
});

for (const mode of MODES) {
  const ingress = (listeners: string): string => sidecar(`{workloadSelector: {labels: {app: other}}, ingress: [${listeners}]}`).replace('name: default', 'name: other');
  test(`Sidecar: an ingress listener delivers where it says, whoever calls (${mode})`, async () => {
    await mesh.apply(mode, ingress('{port: {number: 8080, protocol: HTTP, name: http}, defaultEndpoint: "127.0.0.1:8080"}'));
    assert.deepEqual(await mesh.nacks(), []);
    for (const from of [mode, 'outside'] as const) {
      let local = '';
      await waitFor('the listener', async () => (local = String((await mesh.curl(from, `http://other.${mode}/`)).body['local']).replace('::ffff:', '')) === '127.0.0.1:8080', { timeoutMs: 120_000, everyMs: 50 }).catch(() => assert.equal(local, '127.0.0.1:8080'));
    }
    // Its port need not be one that the application has.
    const elsewhere = ip(`${mode}/other`);
    await mesh.apply(mode, ingress('{port: {number: 8090, protocol: HTTP, name: http}, defaultEndpoint: "127.0.0.1:8080"}, {port: {number: 9090, protocol: TCP, name: tcp}, defaultEndpoint: "0.0.0.0:9000"}'));
    await waitFor('the listeners', async () => (await mesh.tryCurl('outside', `http://${elsewhere}:8090/`)).answer?.status === 200 && (await echoed('outside/client', elsewhere, 9090)) === 'hello', { timeoutMs: 120_000, everyMs: 50 });
    await mesh.clear(mode);
  });

  test(`Sidecar: an ingress listener with TLS of its own ends it where the mesh's is switched off, SIMPLE and MUTUAL (${mode})`, async () => {
    const file = (name: string): string => join(folder, name);
    const https = (tls: string): string => ingress(`{port: {number: 8443, protocol: HTTPS, name: https}, defaultEndpoint: "127.0.0.1:8080", tls: {serverCertificate: ${file('cert.pem')}, privateKey: ${file('key.pem')}, ${tls}}}`) + `---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: other}\nspec: {selector: {matchLabels: {app: other}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8443: {mode: DISABLE}}}\n`;
    const address = ip(`${mode}/other`);
    const ask = async (from: Mode | 'outside', ...args: string[]): Promise<string> => {
      const { code, answer } = await mesh.tryCurl(from, 'https://secure.example:8443/', { args: ['--resolve', `secure.example:8443:${address}`, '--cacert', file('ca.pem'), ...args] });
      return answer ? `${answer.status} ${String(answer.body['local']).replace('::ffff:', '')}` : code > 0 ? 'refused' : '';
    };
    const both = async (...args: string[]): Promise<string[]> => [await ask(mode, ...args), await ask('outside', ...args)];
    const becomes = async (expected: string[], get: () => Promise<string[]>): Promise<void> => {
      let found: string[] = [];
      await waitFor('TLS', async () => String((found = await get())) === String(expected), { timeoutMs: 120_000, everyMs: 50 }).catch(() => assert.deepEqual(found, expected));
    };
    await mesh.apply(mode, https('mode: SIMPLE'));
    assert.deepEqual(await mesh.nacks(), []);
    await becomes(['200 127.0.0.1:8080', '200 127.0.0.1:8080'], () => both());
    await mesh.apply(mode, https(`mode: MUTUAL, caCertificates: ${file('ca.pem')}`));
    await becomes(['refused', 'refused'], () => both());
    await becomes(['200 127.0.0.1:8080', '200 127.0.0.1:8080'], () => both('--cert', file('client.pem'), '--key', file('client-key.pem')));
    await mesh.clear(mode);
  });
}

for (const mode of MODES) {
  test(`Sidecar: an egress proxy gets what is no service (${mode})`, async () => {
    await mesh.apply(mode, sidecar(`{workloadSelector: {labels: {app: client}}, outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: other.${mode}.svc.cluster.local, port: {number: 80}}}}`));
    assert.deepEqual(await mesh.nacks(), []);
    const { status, body } = await mesh.curl(mode, 'http://stranger.example/', { args: ['--resolve', `stranger.example:80:${ip('outside/web')}`] });
    assert.deepEqual([status, body['pod']], [200, 'other']);
    assert.equal((await mesh.curl(mode, 'http://web/')).body['pod'].slice(0, 4), 'web-');
    await mesh.clear(mode);
  });
}

test('DestinationRule: PROXY protocol and unusual balancers are taken by Envoy', async () => {
  const rules = ['{proxyProtocol: {version: V2}}', '{loadBalancer: {simple: PASSTHROUGH}}', '{loadBalancer: {simple: RANDOM, localityLbSetting: {failoverPriority: [topology.kubernetes.io/region, "version=v1"]}}, outlierDetection: {consecutive5xxErrors: 5}}', '{tls: {mode: ISTIO_MUTUAL}, loadBalancer: {consistentHash: {httpQueryParameterName: q, maglev: {tableSize: 101}}, localityLbSetting: {distribute: [{from: "*", to: {"*": 100}}]}}}'];
  for (const policy of rules) {
    await mesh.apply('sidecar', `apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, trafficPolicy: ${policy}}\n`);
    assert.deepEqual(await mesh.nacks(), [], policy);
  }
  assert.equal((await mesh.curl('sidecar', 'http://web/?q=1')).status, 200);
});
