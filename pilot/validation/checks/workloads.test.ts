import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatError, parseYaml } from '../../../common/kube/yaml.js';
import { podYaml, serviceYaml } from '../../testing/mesh.js';
import { References } from '../references.js';

function problems(yaml: string): string[] {
  const { objects, errors } = parseYaml(yaml.trimStart(), 'x.yaml');
  assert.deepEqual(errors.filter(({ severity }) => severity === 'error').map(formatError), []);
  const references = new References(objects, 'cluster.local');
  return objects.flatMap((loaded) => references.check(loaded)).map(({ kind, name, field, severity, message }) => `${kind} ${name}: ${field}: ${severity} ${message}`);
}

function one(yaml: string, expected: RegExp): void {
  const found = problems(yaml);
  assert.equal(found.length, 1, found.join('\n'));
  assert.match(found[0]!, expected);
}

const POD = podYaml('shop', { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web', version: 'v1' } });
const object = (apiVersion: string, kind: string, spec: string, namespace = 'shop', name = 'x'): string => `\napiVersion: ${apiVersion}\nkind: ${kind}\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n---`;

const SELECTING: [string, string, string][] = [
  ['networking.istio.io/v1alpha3', 'EnvoyFilter', '{workloadSelector: {labels: LABELS}, configPatches: [{applyTo: CLUSTER, patch: {operation: REMOVE}}]}'],
  ['networking.istio.io/v1', 'Sidecar', '{workloadSelector: {labels: LABELS}, egress: [{hosts: ["./*"]}]}'],
  ['extensions.istio.io/v1alpha1', 'WasmPlugin', '{selector: {matchLabels: LABELS}, url: "file:///x.wasm"}'],
  ['security.istio.io/v1', 'PeerAuthentication', '{selector: {matchLabels: LABELS}}'],
  ['security.istio.io/v1', 'AuthorizationPolicy', '{selector: {matchLabels: LABELS}}'],
  ['security.istio.io/v1', 'RequestAuthentication', '{selector: {matchLabels: LABELS}}'],
];
for (const [apiVersion, kind, spec] of SELECTING) {
  test(`${kind}: a selector that no pod of its namespace has is a warning`, () => {
    const of = (labels: string, namespace?: string): string => POD + object(apiVersion, kind, spec.replace('LABELS', labels), namespace);
    assert.deepEqual(problems(of('{app: web}')), []);
    one(of('{app: web, version: v2}'), new RegExp(`${kind} x: spec\\.\\w*elector: warning found app=web, version=v2, but no pod of namespace shop has these labels`));
    one(of('{app: web}', 'other'), /no pod of namespace other/);
  });
}

test('a policy of the root namespace means the pods of all', () => {
  assert.deepEqual(problems(POD + object('security.istio.io/v1', 'PeerAuthentication', '{selector: {matchLabels: {app: web}}}', 'istio-system')), []);
  one(POD + object('security.istio.io/v1', 'PeerAuthentication', '{selector: {matchLabels: {app: web2}}}', 'istio-system'), /found app=web2, but no pod has these labels/);
});

test('a WorkloadEntry is a workload too', () => {
  const entry = object('networking.istio.io/v1', 'WorkloadEntry', '{address: 10.0.0.9, labels: {app: vm}}', 'shop', 'vm');
  assert.deepEqual(problems(entry + object('networking.istio.io/v1', 'ServiceEntry', '{hosts: [vm.internal], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: vm}}}')), []);
});

const serviceEntry = (name: string, spec: string, namespace = 'shop'): string => object('networking.istio.io/v1', 'ServiceEntry', spec, namespace, name);

test('ServiceEntries of one host that disagree: the younger one is named', () => {
  const first = serviceEntry('a', '{hosts: [x.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}');
  one(first + serviceEntry('b', '{hosts: [x.example], resolution: DNS, ports: [{number: 80, name: tcp, protocol: TCP}]}'), /ServiceEntry b: spec\.ports\[0\]\.protocol: warning found TCP on port 80 of "x\.example", for which ServiceEntry shop\/a says another/);
  one(first + serviceEntry('b', '{hosts: [x.example], resolution: NONE, ports: [{number: 81, name: http, protocol: HTTP}]}'), /ServiceEntry b: spec\.resolution: warning found NONE/);
  assert.deepEqual(problems(first + serviceEntry('b', '{hosts: [x.example], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}')), [], 'they add up');
  assert.deepEqual(problems(first.replace('hosts:', 'exportTo: ["."], hosts:') + serviceEntry('b', '{exportTo: ["."], hosts: [x.example], resolution: NONE}', 'other')), [], 'nobody sees both');
});

test('ServiceEntries of one address on one TCP port: nothing tells them apart', () => {
  const entry = (name: string, port: string): string => serviceEntry(name, `{hosts: [${name}.example], addresses: [10.1.1.1], resolution: NONE, ports: [{number: 9000, name: p, protocol: ${port}}]}`);
  one(entry('a', 'TCP') + entry('b', 'TCP'), /ServiceEntry b: spec\.addresses\[0\]: warning found 10\.1\.1\.1 with TCP port 9000, which ServiceEntry shop\/a has/);
  assert.deepEqual(problems(entry('a', 'TLS') + entry('b', 'TLS')), []);
});

test('a ServiceEntry with the name of a Service is a warning', () => {
  one(serviceYaml('shop', 'web', '10.96.0.1', []) + serviceEntry('a', '{hosts: [web.shop.svc.cluster.local], resolution: DNS}'), /spec\.hosts\[0\]: warning .*which is Service shop\/web: that one counts/);
});

for (const [kind, apiVersion, spec] of [['Sidecar', 'networking.istio.io/v1', '{egress: [{hosts: ["./*"]}]}'], ['PeerAuthentication', 'security.istio.io/v1', '{mtls: {mode: STRICT}}']] as const) {
  test(`${kind}: of two for the whole namespace the younger one is named`, () => {
    const make = (name: string, namespace = 'shop'): string => object(apiVersion, kind, spec, namespace, name);
    one(make('a') + make('b'), new RegExp(`${kind} b: metadata\\.name: warning found a second ${kind} for all of namespace shop, beside a`));
    assert.deepEqual(problems(make('a') + make('b', 'other')), []);
  });
}
