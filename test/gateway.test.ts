// Gateways with real traffic: ingress by host, path and SNI, certificates from Secrets that rotate, egress through a gateway.
import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { MeshWorld, MODES, type Answer, type CurlOptions } from './mesh/world.js';
import { siteCertificates, type SiteCertificates } from './gateway-certificates.js';

const GATEWAY = 'ingress.edge.svc.cluster.local';
const gatewayPod = (name: string, service: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: edge, labels: {istio: ${name}, app: ${name}}}
spec:
  serviceAccountName: ${name}
  containers: [{name: istio-proxy, image: auto, args: [proxy, router]}]
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: edge}
spec:
  type: LoadBalancer
  selector: {istio: ${name}}
  ports: [${service}]
---
`;

const mesh = new MeshWorld('gateway', {
  yaml: (namespace) => ['a', 'b'].map((name) => `apiVersion: v1
kind: Pod
metadata: {name: tls-${name}, namespace: ${namespace}, labels: {app: tls-${name}, version: ${name}}}
spec: {containers: [{name: tls, image: tls-echo, env: [{name: TLS_HOSTS, value: "${name}.example.com"}], ports: [{name: tls, containerPort: 8443}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: tls-${name}, namespace: ${namespace}}
spec: {selector: {app: tls-${name}}, ports: [{name: tls, port: 443, targetPort: 8443}]}
`).join('---\n'),
  outside:
    'apiVersion: v1\nkind: Namespace\nmetadata: {name: edge}\n---\n' +
    gatewayPod('ingress', '{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}, {name: tls, port: 15443, targetPort: 15443}, {name: tcp, port: 31400, targetPort: 31400}') +
    gatewayPod('egress', '{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}'),
});
let certificates: SiteCertificates;

before(async () => {
  certificates = await siteCertificates();
  await mesh.up();
});
after(async () => {
  certificates?.remove();
  await mesh.down();
});

/** A request from outside of the mesh to the ingress gateway, whatever the URL's host is. */
function viaGateway(url: string, options: CurlOptions = {}): Promise<Answer> {
  const { hostname, port, protocol } = new URL(url);
  const number = port || (protocol === 'https:' ? '443' : '80');
  return mesh.curl('outside', url, { ...options, args: ['--connect-to', `${hostname}:${number}:${GATEWAY}:${number}`, ...(options.args ?? [])] });
}

const server = (hosts: string, port = '{number: 80, name: http, protocol: HTTP}', tls = ''): string => `{hosts: [${hosts}], port: ${port}${tls === '' ? '' : `, tls: ${tls}`}}`;
const gateway = (name: string, ...servers: string[]): string => `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ${name}, namespace: edge}
spec: {selector: {istio: ingress}, servers: [${servers.join(', ')}]}
---
`;
const toWeb = (name: string, hosts: string, gateways: string, namespace: string, more = ''): string => `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ${name}, namespace: ${namespace}}
spec:
  hosts: [${hosts}]
  gateways: [${gateways}]
  http:
    ${more}
    - route: [{destination: {host: web.${namespace}.svc.cluster.local, port: {number: 80}}}]
---
`;
const HTTPS = '{number: 443, name: https, protocol: HTTPS}';
const secret = (name: string, data: Record<string, string>): string => `apiVersion: v1\nkind: Secret\nmetadata: {name: ${name}, namespace: edge}\ndata: ${JSON.stringify(Object.fromEntries(Object.entries(data).map(([key, value]) => [key, Buffer.from(value).toString('base64')])))}\n---\n`;

for (const mode of MODES) {
  test(`ingress: hosts and paths lead to the mesh, other hosts to 404, with rewrite, wildcard and short gateway names (backends in mode ${mode})`, async () => {
    await mesh.apply('mesh', gateway('shop', server('shop.example.com, "*.wild.example.com"')) +
      toWeb('shop', 'shop.example.com, "*.wild.example.com"', 'edge/shop', mode, '- match: [{uri: {prefix: /old/}}]\n      rewrite: {uri: /new/}\n      route: [{destination: {host: web.' + mode + '.svc.cluster.local}}]\n    - match: [{uri: {exact: /teapot}}]\n      directResponse: {status: 418}'));
    const answer = await viaGateway('http://shop.example.com/x');
    assert.equal(answer.status, 200);
    assert.equal(answer.body['path'], '/x');
    assert.equal((await viaGateway('http://shop.example.com/old/y')).body['path'], '/new/y');
    assert.equal((await viaGateway('http://shop.example.com/teapot')).status, 418);
    assert.equal((await viaGateway('http://a.wild.example.com/')).status, 200);
    assert.equal((await viaGateway('http://other.example.com/')).status, 404);
    assert.equal((await viaGateway('http://shop.example.com:80/x')).status, 200);
    assert.deepEqual(await mesh.nacks(), []);
  });

  test(`ingress: HTTPS by SNI, a certificate of its own for each host, httpsRedirect for plaintext (backends in mode ${mode})`, async () => {
    const { one, two, ca } = certificates;
    await mesh.apply('mesh',
      secret('one', { 'tls.crt': one.certificate, 'tls.key': one.key }) + secret('two', { cert: two.certificate, key: two.key }) +
      gateway('sites', server('one.example.com, two.example.com', undefined, '{httpsRedirect: true}'), server('one.example.com', HTTPS, '{mode: SIMPLE, credentialName: one}'), server('two.example.com', '{number: 443, name: https-two, protocol: HTTPS}', '{mode: SIMPLE, credentialName: two, minProtocolVersion: TLSV1_3}')) +
      toWeb('sites', 'one.example.com, two.example.com', 'edge/sites', mode));
    for (const name of ['one', 'two']) {
      const answer = await viaGateway(`https://${name}.example.com/`, { args: ['--cacert', ca] });
      assert.deepEqual([answer.status, answer.body['path']], [200, '/']);
    }
    const redirected = await viaGateway('http://one.example.com/a?b');
    assert.deepEqual([redirected.status, redirected.headers['location']], [301, 'https://one.example.com/a?b']);
    const { code } = await mesh.tryCurl('outside', 'https://two.example.com/', { args: ['--cacert', ca, '--tls-max', '1.2', '--connect-to', `two.example.com:443:${GATEWAY}:443`] });
    assert.equal(code, 35, 'TLS 1.2 is refused where 1.3 is asked for');
    const unknown = await mesh.tryCurl('outside', 'https://three.example.com/', { args: ['--cacert', ca, '--connect-to', `three.example.com:443:${GATEWAY}:443`] });
    assert.notEqual(unknown.code, 0, 'a name that no server has gets no handshake');
    assert.deepEqual(await mesh.nacks(), []);
  });
}

test('ingress: MUTUAL asks for a certificate of the given authority, the server hears of it; OPTIONAL_MUTUAL takes none as well', async () => {
  const { one, client, stranger, ca } = certificates;
  const world = (mode: string): string =>
    secret('mutual', { 'tls.crt': one.certificate, 'tls.key': one.key, 'ca.crt': certificates.caPem }) + gateway('mutual', server('one.example.com', HTTPS, `{mode: ${mode}, credentialName: mutual}`)) + toWeb('mutual', 'one.example.com', 'edge/mutual', 'sidecar');
  await mesh.apply('mesh', world('MUTUAL'));
  const with_ = ({ certificateFile, keyFile }: { certificateFile: string; keyFile: string }): string[] => ['--cacert', ca, '--cert', certificateFile, '--key', keyFile];
  const to = ['--connect-to', `one.example.com:443:${GATEWAY}:443`];
  const answer = await viaGateway('https://one.example.com/', { args: with_(client), headers: { 'x-forwarded-client-cert': 'Subject="forged"' } });
  assert.equal(answer.status, 200);
  assert.match(answer.body['headers']['x-forwarded-client-cert'], /Subject="CN=client"/);
  assert.doesNotMatch(answer.body['headers']['x-forwarded-client-cert'], /forged/);
  for (const args of [['--cacert', ca], with_(stranger)]) assert.notEqual((await mesh.tryCurl('outside', 'https://one.example.com/', { args: [...args, ...to] })).code, 0);
  await mesh.apply('mesh', world('OPTIONAL_MUTUAL'));
  assert.equal((await viaGateway('https://one.example.com/', { args: ['--cacert', ca] })).status, 200);
  assert.notEqual((await mesh.tryCurl('outside', 'https://one.example.com/', { args: [...with_(stranger), ...to] })).code, 0);
});

test('ingress: a rotated Secret is in force for new connections, an open one lives on, a broken pair changes nothing', async () => {
  const { one, renewed, ca } = certificates;
  const world = (certificate: string, key: string): string => secret('turning', { 'tls.crt': certificate, 'tls.key': key }) + gateway('turning', server('one.example.com', HTTPS, '{mode: SIMPLE, credentialName: turning}')) + toWeb('turning', 'one.example.com', 'edge/turning', 'sidecar');
  await mesh.apply('mesh', world(one.certificate, one.key));
  const serial = async (): Promise<string> => {
    const script = `const s = require('node:tls').connect({ host: ${JSON.stringify(GATEWAY)}, port: 443, servername: 'one.example.com', ca: require('node:fs').readFileSync(${JSON.stringify(ca)}) }, () => { console.log(s.getPeerCertificate().serialNumber); s.destroy(); });`;
    const { code, stdout, stderr } = await mesh.lab.exec('outside/client', [process.execPath, '-e', script]);
    assert.equal(code, 0, stderr);
    return stdout.trim().toLowerCase();
  };
  assert.equal(await serial(), one.serial);
  // One connection with a request before the rotation, and one after it for each line that it is given.
  const child = mesh.lab.spawnIn('outside/client', [process.execPath, '-e', KEPT, GATEWAY, ca]);
  const answers = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const first = JSON.parse((await answers.next()).value as string) as { status: number; port: number };
  assert.equal(first.status, 200);
  await mesh.apply('mesh', world(renewed.certificate, renewed.key));
  await waitFor('the new certificate', async () => (await serial()) === renewed.serial, { timeoutMs: 10_000, everyMs: 50 });
  child.stdin!.write('\n');
  assert.deepEqual(JSON.parse((await answers.next()).value as string), first, 'the same connection, answered');
  child.stdin!.end();
  await mesh.apply('mesh', world(one.certificate, renewed.key)).catch(() => undefined);
  assert.equal(await serial(), renewed.serial, 'certificate and key that do not match are not taken');
  await mesh.clear('mesh');
});

for (const mode of MODES) {
  test(`ingress: TLS passes through by SNI and TCP by port (backends in mode ${mode})`, async () => {
    await mesh.apply('mesh', gateway('raw', server('"*"', '{number: 31400, name: tcp, protocol: TCP}'), server('a.example.com, b.example.com', '{number: 15443, name: tls, protocol: TLS}', '{mode: PASSTHROUGH}')) + `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: raw, namespace: ${mode}}
spec:
  hosts: ["*"]
  gateways: [edge/raw]
  tcp: [{match: [{port: 31400}], route: [{destination: {host: web.${mode}.svc.cluster.local, port: {number: 9000}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-name, namespace: ${mode}}
spec:
  hosts: [a.example.com, b.example.com]
  gateways: [edge/raw]
  tls:
    - {match: [{port: 15443, sniHosts: [a.example.com]}], route: [{destination: {host: tls-a.${mode}.svc.cluster.local, port: {number: 443}}}]}
    - {match: [{port: 15443, sniHosts: [b.example.com]}], route: [{destination: {host: tls-b.${mode}.svc.cluster.local, port: {number: 443}}}]}
`);
    for (const name of ['a', 'b']) {
      const seen = `const s = require('node:tls').connect({ host: ${JSON.stringify(GATEWAY)}, port: 15443, servername: '${name}.example.com', rejectUnauthorized: false }, () => { console.log(s.getPeerCertificate().subject.CN); s.destroy(); }); s.setTimeout(8000, () => process.exit(1)); s.on('error', (e) => { console.error(e.message); process.exit(1); });`;
      const { code, stdout, stderr } = await mesh.lab.exec('outside/client', [process.execPath, '-e', seen]);
      assert.deepEqual([code, stdout.trim()], [0, `${name}.example.com`], stderr);
    }
    const script = `const s = require('node:net').connect(31400, ${JSON.stringify(GATEWAY)}, () => s.write('hello\\n')); s.on('data', (d) => { console.log(String(d).trim()); s.destroy(); }); s.setTimeout(8000, () => process.exit(1)); s.on('error', () => process.exit(1));`;
    const { code, stdout } = await mesh.lab.exec('outside/client', [process.execPath, '-e', script]);
    assert.deepEqual([code, stdout.includes('hello')], [0, true]);
  });
}

for (const mode of MODES) {
  test(`egress: a host outside of the mesh is reached through the egress gateway, by Istio's recipe (clients in mode ${mode})`, async () => {
    await mesh.apply('mesh', `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: ${mode}}
spec:
  hosts: [ext.example.com]
  addresses: [10.250.0.1]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints: [{address: ${await ipOf('outside/web')}, ports: {http: 8080}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress, namespace: ${mode}}
spec: {selector: {istio: egress}, servers: [{hosts: [ext.example.com], port: {number: 80, name: http, protocol: HTTP}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ext, namespace: ${mode}}
spec:
  hosts: [ext.example.com]
  gateways: [egress, mesh]
  http:
    - match: [{gateways: [mesh], port: 80}]
      headers: {request: {set: {x-first-hop: "yes"}}}
      route: [{destination: {host: egress.edge.svc.cluster.local, port: {number: 80}}}]
    - match: [{gateways: [egress], port: 80}]
      headers: {request: {set: {x-second-hop: "yes"}}}
      route: [{destination: {host: ext.example.com, port: {number: 80}}}]
`);
    const answer = await mesh.curl(mode, 'http://ext.example.com/way', { args: ['--connect-to', 'ext.example.com:80:10.250.0.1:80'] });
    assert.equal(answer.status, 200);
    assert.deepEqual([answer.version, answer.body['headers']['x-first-hop'], answer.body['headers']['x-second-hop']], ['out', 'yes', 'yes']);
    assert.deepEqual(await mesh.nacks(), []);
  });
}

/** Requests over one TLS connection: one at once, one for each line of input. */
const KEPT = `
const https = require('node:https');
const [host, ca] = process.argv.slice(1);
const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
const get = () => new Promise((resolve, reject) => https.get({ agent, host, servername: 'one.example.com', ca: require('node:fs').readFileSync(ca), headers: { host: 'one.example.com' } }, (response) => {
  const port = response.socket.localPort;
  response.resume().on('end', () => resolve(JSON.stringify({ status: response.statusCode, port })));
}).on('error', reject));
(async () => {
  console.log(await get());
  for await (const line of require('node:readline').createInterface({ input: process.stdin })) console.log(await get() + line);
  process.exit(0);
})();`;

async function ipOf(pod: string): Promise<string> {
  const { stdout } = await mesh.lab.exec(pod, ['sh', '-c', "ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'"]);
  return stdout.trim();
}
