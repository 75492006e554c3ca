import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { issueServerCertificate, selfSignedRoot } from '../../../common/identity/server-certificate.js';
import { formatError, parseYaml } from '../../../common/kube/yaml.js';
import { podYaml, serviceYaml } from '../../testing/mesh.js';
import { References } from '../references.js';

const POD = podYaml('istio-system', { name: 'gw-1', ip: '10.0.0.1', labels: { istio: 'ingressgateway' } });
const gateway = (name: string, servers: string, more = 'namespace: shop'): string => `\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: ${name}, ${more}}\nspec: {selector: {istio: ingressgateway}, servers: [${servers}]}\n---`;
const HTTP = '{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}';
const https = (tls: string, host = 'a.example', port = 443): string => `{port: {number: ${port}, name: https-${port}, protocol: HTTPS}, hosts: [${host}], tls: {${tls}}}`;

let pair: Record<string, string>;
before(async () => {
  const { certificatePem, privateKeyPem } = await issueServerCertificate(await selfSignedRoot('test'), { dnsNames: ['a.example'] });
  pair = { 'tls.crt': certificatePem, 'tls.key': privateKeyPem };
});
const secret = (name: string, namespace: string, entries: Record<string, string> = pair): string => `\napiVersion: v1\nkind: Secret\nmetadata: {name: ${name}, namespace: ${namespace}}\nstringData: ${JSON.stringify(entries)}\n---`;

/** `Kind namespace/name: field: severity message` of all that is found. */
function problems(yaml: string): string[] {
  const { objects, errors } = parseYaml(yaml.trimStart(), 'x.yaml');
  assert.deepEqual(errors.filter(({ severity }) => severity === 'error').map(formatError), []);
  const references = new References(objects, 'cluster.local');
  return objects.flatMap((loaded) => references.check(loaded)).map(({ kind, namespace, name, field, severity, message }) => `${kind} ${namespace}/${name}: ${field}: ${severity} ${message}`);
}

function one(yaml: string, expected: RegExp): void {
  const found = problems(yaml);
  assert.equal(found.length, 1, found.join('\n'));
  assert.match(found[0]!, expected);
}

test('a Gateway that selects no pod is a warning', () => {
  assert.deepEqual(problems(POD + gateway('g', HTTP)), []);
  one(gateway('g', HTTP), /Gateway shop\/g: spec\.selector: warning found istio=ingressgateway, but no pod has these labels/);
});

test('credentialName: the Secret is looked for where the gateway runs', () => {
  const yaml = POD + gateway('g', https('mode: SIMPLE, credentialName: cert'));
  one(yaml, /spec\.servers\[0\]\.tls\.credentialName: warning found "cert", but no Secret istio-system\/cert is known/);
  one(yaml + secret('cert', 'shop'), /no Secret istio-system\/cert/);
  assert.deepEqual(problems(yaml + secret('cert', 'istio-system')), []);
  one(yaml + secret('cert', 'istio-system', { other: 'x' }), /has no tls\.crt and tls\.key/);
  assert.deepEqual(problems(POD + gateway('g', https('mode: SIMPLE, credentialName: "kubernetes-gateway://shop/cert"')) + secret('cert', 'shop')), []);
});

test('credentialName with MUTUAL: the clients\' CAs are there too, in the Secret or in one beside it', () => {
  const yaml = POD + gateway('g', https('mode: MUTUAL, credentialName: cert'));
  one(yaml + secret('cert', 'istio-system'), /neither Secret istio-system\/cert nor cert-cacert has the certificates of clients' CAs/);
  assert.deepEqual(problems(yaml + secret('cert', 'istio-system', { ...pair, 'ca.crt': pair['tls.crt']! })), []);
  assert.deepEqual(problems(yaml + secret('cert', 'istio-system') + secret('cert-cacert', 'istio-system', { cacert: pair['tls.crt']! })), []);
});

test('certificates by path: the entries behind the files belong together, or the Gateway is refused', async () => {
  const pod = `
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: istio-system, labels: {istio: ingressgateway}}
spec:
  containers: [{name: proxy, volumeMounts: [{name: certs, mountPath: /etc/certs}]}]
  volumes: [{name: certs, secret: {secretName: by-path, items: [{key: one.pem, path: server/cert.pem}, {key: two.pem, path: server/key.pem}]}}]
---`;
  const yaml = pod + gateway('g', https('mode: SIMPLE, serverCertificate: /etc/certs/server/cert.pem, privateKey: /etc/certs/server/key.pem'));
  const { privateKeyPem } = await issueServerCertificate(await selfSignedRoot('other'), { dnsNames: ['b.example'] });
  assert.deepEqual(problems(yaml + secret('by-path', 'istio-system', { 'one.pem': pair['tls.crt']!, 'two.pem': pair['tls.key']! })), []);
  one(yaml + secret('by-path', 'istio-system', { 'one.pem': pair['tls.crt']!, 'two.pem': privateKeyPem }), /Gateway shop\/g: spec\.servers\[0\]\.tls\.privateKey: error found a key that does not belong to the certificate, expected the key of CN=a\.example \(two\.pem of Secret istio-system\/by-path\)/);
  one(yaml + secret('by-path', 'istio-system', { 'one.pem': pair['tls.crt']! }), /privateKey: warning found "\/etc\/certs\/server\/key\.pem", but Secret istio-system\/by-path, which pod istio-system\/gw-1 has there, lacks "two\.pem"/);
  one(yaml, /lacks "one\.pem"/);
  assert.deepEqual(problems(POD + gateway('g', https('mode: SIMPLE, serverCertificate: /in/the/image, privateKey: /in/the/image'))), []);
});

test('two Gateways of the same pods: the younger one\'s servers that can not be there too are named', () => {
  const tls = 'mode: SIMPLE, serverCertificate: /a, privateKey: /b';
  const old = (servers: string): string => POD + gateway('old', servers, 'namespace: shop, creationTimestamp: "2026-01-01T00:00:00Z"');
  const young = (servers: string): string => gateway('young', servers, 'namespace: shop, creationTimestamp: "2026-02-01T00:00:00Z"');
  one(old(https(tls)) + young(https(tls)), /Gateway shop\/young: spec\.servers\[0\]: warning found "a\.example" on a port that has it already, from Gateway shop\/old/);
  one(old(HTTP) + young(https(tls, 'a.example', 80)), /found protocol HTTPS on a port that has HTTP/);
  assert.deepEqual(problems(old(https(tls)) + young(https(tls, 'b.example'))), []);
  assert.deepEqual(problems(old(HTTP) + young(HTTP)), [], 'HTTP servers of a port merge');
  const tcp = '{port: {number: 3306, name: tcp, protocol: TCP}, hosts: ["*"]}';
  one(old(tcp) + young(tcp), /no host tells apart/);
  assert.deepEqual(problems(old(tcp) + podYaml('shop', { name: 'other', ip: '10.0.0.2', labels: { istio: 'egressgateway' } }) + young(tcp).replace('ingressgateway', 'egressgateway')), []);
});

const KUBE = (listeners: string, namespace = 'shop'): string => `\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: ${namespace}}\nspec: {gatewayClassName: istio, listeners: [${listeners}]}\n---`;
const grant = (namespace: string, from: string, to: string): string => `\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: grant, namespace: ${namespace}}\nspec: {from: [{group: gateway.networking.k8s.io, kind: ${from}, namespace: shop}], to: [{group: "", kind: ${to}}]}\n---`;
const route = (spec: string): string => `\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: ${spec}\n---`;

test('certificateRefs to another namespace need a ReferenceGrant', () => {
  const yaml = KUBE('{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert, namespace: certs}]}}') + secret('cert', 'certs');
  one(yaml, /spec\.listeners\[0\]\.tls\.certificateRefs\[0\]\.namespace: warning found "certs", but no ReferenceGrant/);
  assert.deepEqual(problems(yaml + grant('certs', 'Gateway', 'Secret')), []);
  one(yaml + grant('certs', 'HTTPRoute', 'Secret'), /no ReferenceGrant/);
});

test('routes of the Gateway API: parents, listeners and backends that are not there are warnings', () => {
  const web = serviceYaml('shop', 'web', '10.96.0.1', []);
  const listener = KUBE('{name: http, port: 80, protocol: HTTP, hostname: "*.example"}');
  assert.deepEqual(problems(web + listener + route('{parentRefs: [{name: gw}], hostnames: [a.example], rules: [{backendRefs: [{name: web, port: 80}]}]}')), []);
  one(web + route('{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 80}]}]}'), /spec\.parentRefs\[0\]\.name: warning found "gw", but no Gateway shop\/gw/);
  one(web + listener + route('{parentRefs: [{name: gw, sectionName: https}]}'), /sectionName: warning found "https", expected a listener of Gateway shop\/gw: http \(80\)/);
  one(web + listener + route('{parentRefs: [{name: gw}], hostnames: [other.test]}'), /spec\.hostnames: warning found none that Gateway shop\/gw listens for/);
  one(web + listener + route('{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: wep, port: 80}]}]}'), /backendRefs\[0\]\.name: warning found "wep", but no Service shop\/wep/);
  one(web + listener + route('{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 81}]}]}'), /backendRefs\[0\]\.port: warning found 81, expected a port of Service shop\/web: 80/);
  one(web + KUBE('{name: http, port: 80, protocol: HTTP}', 'edge') + route('{parentRefs: [{name: gw, namespace: edge}]}'), /allows only routes of its own namespace/);
});

test('backends in another namespace need a ReferenceGrant', () => {
  const yaml = serviceYaml('other', 'web', '10.96.0.1', []) + KUBE('{name: http, port: 80, protocol: HTTP}') + route('{parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, namespace: other, port: 80}]}]}');
  one(yaml, /backendRefs\[0\]\.namespace: warning found "other", but no ReferenceGrant there lets HTTPRoutes of shop refer to Services/);
  assert.deepEqual(problems(yaml + grant('other', 'HTTPRoute', 'Service')), []);
});
