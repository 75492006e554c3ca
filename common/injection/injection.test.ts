import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIstioInit } from '../istio-iptables-arguments.js';
import { DEFAULT_CAPTURE } from '../istio-iptables.js';
import { DEFAULT_INJECTION, parseInjection } from './config.js';
import { injectPod, workloadOf, type InjectionResult } from './inject.js';
import { applyPatch, diff } from './json-patch.js';
import type { InjectableContainer, InjectablePod } from './pod.js';
import { decide } from './policy.js';
import { render } from './template.js';

const ENABLED = { 'istio-injection': 'enabled' };

function pod(change: { labels?: Record<string, string>; annotations?: Record<string, string>; spec?: Partial<InjectablePod['spec']> } = {}): InjectablePod {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      generateName: 'web-5d8-',
      labels: { app: 'web', version: 'v1', 'pod-template-hash': '5d8', ...change.labels },
      ...(change.annotations ? { annotations: change.annotations } : {}),
      ownerReferences: [{ apiVersion: 'apps/v1', kind: 'ReplicaSet', name: 'web-5d8', controller: true }],
    },
    spec: { serviceAccountName: 'robot', containers: [{ name: 'app', image: 'web:1', ports: [{ name: 'http', containerPort: 8080 }] }], ...change.spec },
  };
}
const inject = (given: InjectablePod, namespaceLabels: Record<string, string> = ENABLED, config = DEFAULT_INJECTION): InjectionResult => injectPod({ pod: given, namespace: 'shop', namespaceLabels, config });
const injected = (given: InjectablePod, config = DEFAULT_INJECTION): InjectablePod => {
  const result = inject(given, ENABLED, config);
  assert.equal(result.injected, true, result.injected ? '' : result.reason);
  return result.pod;
};
const container = (from: InjectablePod, name: string): InjectableContainer => [...from.spec.containers, ...(from.spec.initContainers ?? [])].find((candidate) => candidate.name === name) as InjectableContainer;
const env = (from: InjectablePod, name: string): unknown => {
  const variable = container(from, 'istio-proxy').env?.find((candidate) => candidate.name === name);
  return variable?.value ?? variable?.['valueFrom'];
};

test('injectPod: the shape of Istio: init arguments, proxy container, probes, volumes, labels and annotations', () => {
  const result = injected(pod());
  assert.deepEqual(result.spec.initContainers?.map(({ name }) => name), ['istio-init']);
  assert.deepEqual(container(result, 'istio-init').args, [
    'istio-iptables', '-p', '15001', '-z', '15006', '-u', '1337', '-m', 'REDIRECT', '-i', '*', '-x', '', '-b', '*', '-d', '15090,15021,15020', '--log_output_level=default:info',
  ]);
  assert.deepEqual(result.spec.containers.map(({ name }) => name), ['app', 'istio-proxy']);
  const proxy = container(result, 'istio-proxy');
  assert.deepEqual(proxy.args?.slice(0, 4), ['proxy', 'sidecar', '--domain', '$(POD_NAMESPACE).svc.cluster.local']);
  assert.deepEqual(proxy.ports, [{ containerPort: 15090, protocol: 'TCP', name: 'http-envoy-prom' }]);
  assert.deepEqual((proxy['readinessProbe'] as { httpGet: unknown }).httpGet, { path: '/healthz/ready', port: 15021 });
  assert.equal((proxy['securityContext'] as { runAsUser: number }).runAsUser, 1337);
  assert.deepEqual(env(result, 'POD_NAME'), { fieldRef: { fieldPath: 'metadata.name' } });
  assert.equal(env(result, 'PROXY_CONFIG'), '{}');
  assert.equal(env(result, 'ISTIO_META_WORKLOAD_NAME'), 'web');
  assert.equal(env(result, 'ISTIO_META_OWNER'), 'kubernetes://apis/apps/v1/namespaces/shop/deployments/web');
  assert.equal(env(result, 'ISTIO_META_POD_PORTS'), '[{"name":"http","containerPort":8080}]');
  assert.equal(env(result, 'ISTIO_META_APP_CONTAINERS'), 'app');
  assert.equal(env(result, 'ISTIO_META_NETWORK'), undefined);
  const volume = (name: string): unknown => result.spec.volumes?.find((candidate) => candidate.name === name);
  assert.deepEqual(volume('istio-token'), { name: 'istio-token', projected: { sources: [{ serviceAccountToken: { path: 'istio-token', expirationSeconds: 43200, audience: 'istio-ca' } }] } });
  assert.deepEqual(volume('istiod-ca-cert'), { name: 'istiod-ca-cert', configMap: { name: 'istio-ca-root-cert' } });
  assert.deepEqual(volume('istio-envoy'), { name: 'istio-envoy', emptyDir: { medium: 'Memory' } });
  const { labels, annotations } = result.metadata;
  assert.deepEqual(labels, { app: 'web', version: 'v1', 'pod-template-hash': '5d8', 'security.istio.io/tlsMode': 'istio', 'service.istio.io/canonical-name': 'web', 'service.istio.io/canonical-revision': 'v1' });
  const status = JSON.parse(annotations?.['sidecar.istio.io/status'] ?? '') as Record<string, unknown>;
  assert.deepEqual([status['initContainers'], status['containers'], status['imagePullSecrets'], status['revision']], [['istio-init'], ['istio-proxy'], null, 'default']);
  for (const mount of proxy.volumeMounts ?? []) assert.ok(volume(mount.name), `volume ${mount.name}`);
});

test('injectPod: twice is once', () => {
  const once = injected(pod());
  const twice = inject(once);
  assert.deepEqual([twice.injected, diff(once, twice.pod)], [false, []]);
});

test('injectPod: the traffic annotations are in the arguments, and those are what the rules are made from', () => {
  const traffic = { includeInboundPorts: '80,443', excludeInboundPorts: '9090', includeOutboundIPRanges: '10.96.0.0/12', excludeOutboundIPRanges: '10.97.0.0/16', excludeOutboundPorts: '3306', includeOutboundPorts: '9000', excludeInterfaces: 'docker0' };
  const annotations = Object.fromEntries(Object.entries(traffic).map(([name, value]) => [`traffic.sidecar.istio.io/${name}`, value]));
  const { capture } = parseIstioInit(container(injected(pod({ annotations })), 'istio-init').args ?? []);
  assert.deepEqual(capture, {
    ...DEFAULT_CAPTURE, includeInboundPorts: [80, 443], excludeInboundPorts: [15090, 15021, 9090, 15020], includeOutboundRanges: ['10.96.0.0/12'],
    excludeOutboundRanges: ['10.97.0.0/16'], excludeOutboundPorts: [3306], includeOutboundPorts: [9000], excludeInterfaces: ['docker0'],
  });
});

test('injectPod: a sidecar that is to take HBONE is labelled as one that does', () => {
  const tunnel = (enabled: string, labels = {}): string | undefined =>
    injected(pod({ labels, annotations: { 'proxy.istio.io/config': `proxyMetadata: {ISTIO_META_ENABLE_HBONE: "${enabled}"}` } })).metadata.labels?.['networking.istio.io/tunnel'];
  assert.deepEqual([tunnel('true'), tunnel('true', { 'networking.istio.io/tunnel': 'none' }), tunnel('false')], ['http', 'none', undefined]);
});

test('injectPod: proxy.istio.io/config, resources, image, user volumes, interception NONE and a proxy container of the user', () => {
  const result = injected(pod({
    annotations: {
      'proxy.istio.io/config': 'holdApplicationUntilProxyStarts: true\nproxyMetadata: {ISTIO_META_X: "1"}\n',
      'sidecar.istio.io/proxyCPU': '50m', 'sidecar.istio.io/proxyMemoryLimit': '64Mi', 'sidecar.istio.io/proxyImage': 'mine/proxy:2',
      'sidecar.istio.io/userVolume': '{"certs":{"secret":{"secretName":"c"}}}', 'sidecar.istio.io/userVolumeMount': '{"certs":{"mountPath":"/etc/certs"}}',
      'sidecar.istio.io/interceptionMode': 'NONE',
    },
    spec: { containers: [{ name: 'app' }, { name: 'istio-proxy', image: 'auto', env: [{ name: 'MINE', value: 'y' }], ports: [{ containerPort: 8443 }] }] },
  }));
  assert.deepEqual(result.spec.containers.map(({ name }) => name), ['istio-proxy', 'app'], 'held applications start behind the proxy');
  assert.deepEqual(result.spec.initContainers ?? [], []);
  const proxy = container(result, 'istio-proxy');
  assert.equal(proxy.image, 'mine/proxy:2');
  assert.deepEqual(proxy['resources'], { limits: { memory: '64Mi' }, requests: { cpu: '50m' } });
  assert.deepEqual([env(result, 'ISTIO_META_X'), env(result, 'MINE')], ['1', 'y']);
  assert.deepEqual(proxy.ports?.map(({ containerPort }) => containerPort), [15090, 8443]);
  assert.ok(proxy.volumeMounts?.some(({ mountPath }) => mountPath === '/etc/certs'));
  assert.ok(result.spec.volumes?.some(({ name }) => name === 'certs'));
});

test('injectPod: a native sidecar is the last init container, goes on running, and is not injected again', () => {
  const result = injected(pod({ annotations: { 'sidecar.istio.io/nativeSidecar': 'true' } }));
  assert.deepEqual(result.spec.containers.map(({ name }) => name), ['app']);
  assert.deepEqual(result.spec.initContainers?.map(({ name, restartPolicy }) => [name, restartPolicy]), [['istio-init', undefined], ['istio-proxy', 'Always']]);
  const status = JSON.parse(result.metadata.annotations?.['sidecar.istio.io/status'] ?? '') as Record<string, unknown>;
  assert.deepEqual([status['initContainers'], status['containers']], [['istio-init', 'istio-proxy'], null]);
  assert.equal(inject(result).injected, false);
});

test("injectPod: applications' probes go by the agent, with named ports resolved, unless an annotation says no", () => {
  const probe = { httpGet: { path: '/ready', port: 'http' }, periodSeconds: 5 };
  const spec = { containers: [{ name: 'app', ports: [{ name: 'http', containerPort: 8080 }], readinessProbe: probe }] };
  const rewritten = injected(pod({ spec }));
  assert.deepEqual(container(rewritten, 'app')['readinessProbe'], { periodSeconds: 5, httpGet: { path: '/app-health/app/readyz', port: 15020, scheme: 'HTTP' } });
  assert.deepEqual(JSON.parse(String(env(rewritten, 'ISTIO_KUBE_APP_PROBERS'))), { '/app-health/app/readyz': { httpGet: { path: '/ready', port: 8080 } } });
  const kept = injected(pod({ spec, annotations: { 'sidecar.istio.io/rewriteAppHTTPProbers': 'false' } }));
  assert.deepEqual(container(kept, 'app')['readinessProbe'], probe);
});

test('injectPod: the gateway template makes a router without capture, in any mode', () => {
  const gateway: InjectablePod = {
    metadata: { name: 'gw', labels: { istio: 'ingressgateway', 'sidecar.istio.io/inject': 'true' }, annotations: { 'inject.istio.io/templates': 'gateway' } },
    spec: { containers: [{ name: 'istio-proxy', image: 'auto', ports: [{ containerPort: 80 }] }] },
  };
  for (const labels of [{}, { 'underpass.io/mode': 'node' }] as Record<string, string>[]) {
    const result = inject(gateway, labels);
    assert.equal(result.injected, true);
    assert.deepEqual(result.pod.spec.initContainers ?? [], []);
    assert.deepEqual(container(result.pod, 'istio-proxy').args?.slice(0, 2), ['proxy', 'router']);
    assert.equal(container(result.pod, 'istio-proxy').image, DEFAULT_INJECTION.values.proxyImage);
  }
});

test('injectPod: a wrong annotation or template is refused by its name', () => {
  for (const [annotations, expected] of [
    [{ 'traffic.sidecar.istio.io/excludeInboundPorts': '80,x' }, /annotations\[traffic\.sidecar\.istio\.io\/excludeInboundPorts\]: found "80,x", expected ports/],
    [{ 'traffic.sidecar.istio.io/includeOutboundIPRanges': '10.0.0.0' }, /expected \* or ranges/],
    [{ 'proxy.istio.io/config': '[1]' }, /proxy\.istio\.io\/config.*expected a mapping/],
    [{ 'sidecar.istio.io/userVolume': '{' }, /userVolume.*expected a JSON object/],
    [{ 'inject.istio.io/templates': 'sidecar,none' }, /there is no template none; there are gateway, sidecar/],
  ] as [Record<string, string>, RegExp][])
    assert.throws(() => inject(pod({ annotations })), expected);
});

const because = (change: Parameters<typeof pod>[0], namespaceLabels: Record<string, string>, namespace = 'shop', revision = 'default'): string => {
  const decision = decide({ pod: pod(change), namespace, namespaceLabels, revision, defaultTemplates: ['sidecar'] });
  return decision.inject ? 'injected' : decision.reason;
};

test("decide: namespace label, pod label over it, revision, modes, host network and Kubernetes' own namespaces", () => {
  const label = (value: string) => ({ labels: { 'sidecar.istio.io/inject': value } });
  assert.equal(because({}, ENABLED), 'injected');
  assert.match(because({}, {}), /neither the pod nor its namespace/);
  assert.equal(because(label('true'), {}), 'injected');
  assert.match(because(label('false'), ENABLED), /inject=false/);
  assert.match(because({ annotations: { 'sidecar.istio.io/inject': 'false' } }, ENABLED), /inject=false/);
  assert.match(because({ annotations: { 'sidecar.istio.io/inject': 'true' } }, {}), /neither/, 'an annotation alone is not selected');
  assert.match(because(label('true'), { 'istio-injection': 'disabled' }), /disabled/);
  assert.equal(because({}, { 'istio.io/rev': 'canary' }, 'shop', 'canary'), 'injected');
  assert.match(because({}, { 'istio.io/rev': 'canary' }), /revision canary/);
  assert.match(because({}, ENABLED, 'shop', 'canary'), /revision default/);
  assert.match(because({}, { ...ENABLED, 'underpass.io/mode': 'node' }), /mode=node/);
  assert.match(because(label('true'), { 'underpass.io/mode': 'node' }), /mode=node/);
  assert.equal(because({}, { 'underpass.io/mode': 'sidecar' }), 'injected');
  assert.equal(because({ labels: { 'underpass.io/mode': 'sidecar' } }, { 'underpass.io/mode': 'node' }), 'injected');
  assert.match(because({ spec: { hostNetwork: true } }, ENABLED), /hostNetwork/);
  assert.match(because({}, ENABLED, 'kube-system'), /kube-system/);
});

test('workloadOf: a Deployment by its ReplicaSet, a StatefulSet, a pod alone', () => {
  assert.equal(workloadOf(pod(), 'shop').name, 'web');
  const owned = (kind: string, name: string): InjectablePod => ({ metadata: { ownerReferences: [{ apiVersion: 'apps/v1', kind, name, controller: true }] }, spec: { containers: [] } });
  assert.deepEqual(workloadOf(owned('StatefulSet', 'db'), 'a'), { name: 'db', owner: 'kubernetes://apis/apps/v1/namespaces/a/statefulsets/db' });
  assert.equal(workloadOf({ metadata: { name: 'one' }, spec: { containers: [] } }, 'a').name, 'one');
});

test('render: typed values, alternatives, spliced lists, what is missing, conditions; values can not change structure', () => {
  const scope = { a: { list: [1, 2], text: 'x: [y', no: 'false' }, labels: { 'b.c/d': 'e' } };
  assert.deepEqual(
    render({ list: ['z', '${a.list}', '${a.none}'], typed: '${a.list}', text: 'is ${a.text}', either: '${a.none|labels["b.c/d"]|"f"}', gone: '${a.none}', empty: '${a.none|""}', kept: { $when: '${a.text}', v: 1 }, left: { $when: '${a.no}', v: 1 } }, scope),
    { list: ['z', 1, 2], typed: [1, 2], text: 'is x: [y', either: 'e', empty: '', kept: { v: 1 } },
  );
  assert.throws(() => render('${wrong.x}', scope), /there is no wrong, only a, labels/);
  assert.throws(() => render('${a..b}', scope), /expected a path/);
});

test('diff and applyPatch: what a patch makes of a pod is the pod that was meant, for additions, changes and removals', () => {
  const after = injected(pod());
  const patch = diff(pod(), after);
  assert.deepEqual(applyPatch(pod(), patch), after);
  assert.deepEqual(applyPatch(after, diff(after, pod())), pod());
  assert.deepEqual(diff({ 'a/b': 1, 'c~d': 2 }, { 'a/b': 3 }), [{ op: 'replace', path: '/a~1b', value: 3 }, { op: 'remove', path: '/c~0d' }]);
  assert.deepEqual(applyPatch({ list: [1, 2, 3] }, diff({ list: [1, 2, 3] }, { list: [4] })), { list: [4] });
  assert.throws(() => applyPatch({}, [{ op: 'add', path: '/a/b', value: 1 }]), /\/a\/b: there is no such place/);
  assert.throws(() => applyPatch({}, [{ op: 'remove', path: '/a' }]), /\/a: there is nothing/);
});

test("parseInjection: a file's templates, values and defaults go over the product's; what is wrong is named", () => {
  const config = parseInjection('defaultTemplates: [sidecar, extra]\nvalues: {proxyImage: mine:1}\ntemplates: {extra: {metadata: {annotations: {by: "${namespace}/${labels[\\"app\\"]}"}}}}\n', 'injection.yaml');
  const result = injected(pod(), config);
  assert.deepEqual([container(result, 'istio-proxy').image, result.metadata.annotations?.['by']], ['mine:1', 'shop/web']);
  for (const [text, expected] of [
    ['templates: {x: {spec: "${nothing.there}"}}', /injection\.yaml: templates\.x: reading the expression nothing\.there: there is no nothing/],
    ['values: {proxyimage: x}', /values\.proxyimage: is no value/],
    ['values: {statusPort: x}', /values\.statusPort: found "x", expected a number/],
    ['defaultTemplates: [none]', /defaultTemplates: expected names of templates, of gateway, sidecar/],
    ['tempaltes: {}', /tempaltes: is no field/],
    ['a: [', /injection\.yaml: /],
  ] as const)
    assert.throws(() => parseInjection(text, 'injection.yaml'), expected);
});
