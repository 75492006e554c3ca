// Gateways with real traffic: ingress by host, path and SNI, certificates from Secrets that rotate, egress through a gateway.
import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { PEER_HEADER } from '../common/telemetry/peer-header.js';
import { seriesOf, type Series } from './mesh/series.js';
import { MODES } from './mesh/world.js';
import { GatewayWorld, hostOf, istioGateway, istioGatewayYaml, secret, server, tlsServers } from './gateway-world.js';

const INGRESS = istioGateway('ingress', '{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}, {name: tls, port: 15443, targetPort: 15443}, {name: tcp, port: 31400, targetPort: 31400}');
const EGRESS = istioGateway('egress', '{name: http2, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}');
/** Behind a load balancer that speaks the PROXY protocol, and a proxy that has checked clients' certificates. */
const BEHIND = { ...istioGateway('behind', '{name: http2, port: 80, targetPort: 8080}'), metadata: { PROXY_CONFIG: { gatewayTopology: { proxyProtocol: {}, numTrustedProxies: 1, forwardClientCertDetails: 'ALWAYS_FORWARD_ONLY' } } } };
const world = new GatewayWorld('gateway', [INGRESS, EGRESS, BEHIND], { yaml: tlsServers });
const { mesh } = world;
const viaGateway = world.request.bind(world, INGRESS);
const gateway = (name: string, ...servers: string[]): string => istioGatewayYaml(INGRESS, name, ...servers);
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
    await world.noNacks();
  });

  test(`ingress: HTTPS by SNI, a certificate of its own for each host, httpsRedirect for plaintext (backends in mode ${mode})`, async () => {
    const { one, two, ca } = world.certificates;
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
    assert.equal(await world.exitCode(INGRESS, 'https://two.example.com/', ['--cacert', ca, '--tls-max', '1.2']), 35, 'TLS 1.2 is refused where 1.3 is asked for');
    assert.notEqual(await world.exitCode(INGRESS, 'https://three.example.com/', ['--cacert', ca]), 0, 'a name that no server has gets no handshake');
    await world.noNacks();
  });
}

test('ingress: requests are counted by Istio\'s names, as of the source, with both ends, what became of them, and how long they took', async () => {
  await mesh.apply('mesh', gateway('counted', server('counted.example.com')) + toWeb('counted', 'counted.example.com', 'edge/counted', 'sidecar', '- match: [{uri: {exact: /nobody}}]\n      route: [{destination: {host: nobody.sidecar.svc.cluster.local}}]\n    - match: [{uri: {prefix: /other}}, {uri: {prefix: /status}}]\n      route: [{destination: {host: other.sidecar.svc.cluster.local}}]'));
  const scrape = async (): Promise<Series[]> => seriesOf(await mesh.proxyAdmin('edge/ingress', '/stats/prometheus')).filter(({ labels }) => labels['destination_workload'] === 'other' || labels['response_flags'] === 'NC');
  assert.deepEqual(await scrape(), []);
  for (let count = 0; count < 3; count++) assert.equal((await viaGateway('http://counted.example.com/other', { headers: { [PEER_HEADER]: 'a;b;c;d;e' } })).status, 200);
  assert.equal((await viaGateway('http://counted.example.com/status/404')).status, 404);
  assert.equal((await viaGateway('http://counted.example.com/nobody')).status, 503);
  let found: Series[] = [];
  const of = (code: string, name: string): Series[] => found.filter(({ name: other, labels }) => other === name && labels['response_code'] === code);
  await waitFor('the requests to be counted', async () => {
    found = await scrape();
    // Envoy merges what its threads have counted in histograms now and then.
    return [['200', 3], ['404', 1], ['503', 1]].every(([code, count]) => ['istio_requests_total', 'istio_response_bytes_count'].every((name) => of(String(code), name)[0]?.value === count));
  }, { timeoutMs: 60_000, everyMs: 500 }).catch((error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(found, undefined, 1)}`));
  for (const name of ['istio_request_duration_milliseconds_count', 'istio_request_bytes_count', 'istio_response_bytes_count']) assert.deepEqual(['200', '404', '503'].map((code) => of(code, name).map(({ value }) => value)), [[3], [1], [1]], name);
  // https://istio.io/latest/docs/reference/config/metrics/: a gateway is a client of the mesh, which does not say how its connections are secured.
  const workload = (end: string, name: string, namespace: string, version: string): Record<string, string> => ({
    [`${end}_workload`]: name, [`${end}_workload_namespace`]: namespace, [`${end}_canonical_service`]: name, [`${end}_canonical_revision`]: version, [`${end}_app`]: name, [`${end}_version`]: version, [`${end}_cluster`]: 'Kubernetes', [`${end}_principal`]: `spiffe://cluster.local/ns/${namespace}/sa/${name}`,
  });
  const common = { reporter: 'source', request_protocol: 'http', connection_security_policy: 'unknown', ...workload('source', 'ingress', 'edge', 'latest') };
  const to = { ...common, ...workload('destination', 'other', 'sidecar', 'v1'), destination_service: 'other.sidecar.svc.cluster.local', destination_service_name: 'other', destination_service_namespace: 'sidecar', response_flags: '-' };
  assert.deepEqual(of('200', 'istio_requests_total').map(({ labels }) => labels), [{ ...to, response_code: '200' }]);
  assert.deepEqual(of('404', 'istio_requests_total').map(({ labels }) => labels), [{ ...to, response_code: '404' }]);
  const [nobody] = of('503', 'istio_requests_total');
  assert.deepEqual(['reporter', 'source_workload', 'destination_workload', 'destination_service', 'source_principal'].map((name) => nobody!.labels[name]), ['source', 'ingress', 'unknown', 'unknown', 'unknown']);
});

test('ingress: MUTUAL asks for a certificate of the given authority, the server hears of it; OPTIONAL_MUTUAL takes none as well', async () => {
  const { one, client, stranger, ca, caPem } = world.certificates;
  const yaml = (mode: string): string =>
    secret('mutual', { 'tls.crt': one.certificate, 'tls.key': one.key, 'ca.crt': caPem }) + gateway('mutual', server('one.example.com', HTTPS, `{mode: ${mode}, credentialName: mutual}`)) + toWeb('mutual', 'one.example.com', 'edge/mutual', 'sidecar');
  await mesh.apply('mesh', yaml('MUTUAL'));
  const with_ = ({ certificateFile, keyFile }: { certificateFile: string; keyFile: string }): string[] => ['--cacert', ca, '--cert', certificateFile, '--key', keyFile];
  const answer = await viaGateway('https://one.example.com/', { args: with_(client), headers: { 'x-forwarded-client-cert': 'Subject="forged"' } });
  assert.equal(answer.status, 200);
  assert.match(answer.body['headers']['x-forwarded-client-cert'], /Subject="CN=client"/);
  assert.doesNotMatch(answer.body['headers']['x-forwarded-client-cert'], /forged/);
  for (const args of [['--cacert', ca], with_(stranger)]) assert.notEqual(await world.exitCode(INGRESS, 'https://one.example.com/', args), 0);
  await mesh.apply('mesh', yaml('OPTIONAL_MUTUAL'));
  assert.equal((await viaGateway('https://one.example.com/', { args: ['--cacert', ca] })).status, 200);
  assert.notEqual(await world.exitCode(INGRESS, 'https://one.example.com/', with_(stranger)), 0);
});

test('ingress: a rotated Secret is in force for new connections, an open one lives on, a broken pair changes nothing', async () => {
  const { one, renewed, ca } = world.certificates;
  const yaml = (certificate: string, key: string): string => secret('turning', { 'tls.crt': certificate, 'tls.key': key }) + gateway('turning', server('one.example.com', HTTPS, '{mode: SIMPLE, credentialName: turning}')) + toWeb('turning', 'one.example.com', 'edge/turning', 'sidecar');
  await mesh.apply('mesh', yaml(one.certificate, one.key));
  const serial = async (): Promise<string> => {
    const script = `const s = require('node:tls').connect({ host: '${hostOf(INGRESS)}', port: 443, servername: 'one.example.com', ca: require('node:fs').readFileSync(${JSON.stringify(ca)}) }, () => { console.log(s.getPeerCertificate().serialNumber); s.destroy(); });`;
    const { code, stdout, stderr } = await mesh.lab.exec('outside/client', [process.execPath, '-e', script]);
    assert.equal(code, 0, stderr);
    return stdout.trim().toLowerCase();
  };
  assert.equal(await serial(), one.serial);
  // One connection with a request before the rotation, and one after it for each line that it is given.
  const child = mesh.lab.spawnIn('outside/client', [process.execPath, '-e', KEPT, hostOf(INGRESS), ca]);
  const answers = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const first = JSON.parse((await answers.next()).value as string) as { status: number; port: number };
  assert.equal(first.status, 200);
  await mesh.apply('mesh', yaml(renewed.certificate, renewed.key));
  await waitFor('the new certificate', async () => (await serial()) === renewed.serial, { timeoutMs: 120_000, everyMs: 50 });
  child.stdin!.write('\n');
  assert.deepEqual(JSON.parse((await answers.next()).value as string), first, 'the same connection, answered');
  child.stdin!.end();
  await mesh.apply('mesh', yaml(one.certificate, renewed.key)).catch(() => undefined);
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
    for (const name of ['a', 'b']) assert.equal(await world.subject(INGRESS, 15443, `${name}.example.com`), `${name}.example.com`);
    assert.match(await world.line(INGRESS, 31400), /hello/);
  });
}

test('ingress behind other proxies: the PROXY protocol says who the client is, and what a trusted proxy says of a certificate goes on', async () => {
  await mesh.apply('mesh', istioGatewayYaml(BEHIND, 'behind', server('"*"')) + toWeb('behind', '"*"', 'edge/behind', 'sidecar'));
  await world.noNacks();
  const request = ['GET / HTTP/1.1', 'Host: behind.example.com', 'X-Forwarded-Client-Cert: By=proxy;Subject=client', 'Connection: close', '', ''];
  const say = (...lines: string[]): Promise<string> => world.line(BEHIND, 80, lines.join('\\r\\n'));
  const answer = await say('PROXY TCP4 192.0.2.7 192.0.2.8 1000 80', ...request);
  assert.match(answer, /^HTTP\/1.1 200/);
  assert.match(answer, /"x-forwarded-for":"192\.0\.2\.7"/);
  assert.match(answer, /"x-forwarded-client-cert":"By=proxy;Subject=client/);
  assert.equal(await say(...request), 'refused', 'whoever says nothing gets no answer');
});

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
    await world.noNacks();
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
