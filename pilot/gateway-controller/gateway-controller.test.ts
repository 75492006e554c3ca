import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pino } from 'pino';
import { DEFAULT_VALUES } from '../../common/injection/config.js';
import { checkObject } from '../../common/kube/schemas.js';
import { parseYaml } from '../../common/kube/yaml.js';
import type { GatewayClass, KubeGateway, KubeObject } from '../../common/kube/types.js';
import { ChangeSet } from '../model/changes.js';
import { Configs } from '../model/configs.js';
import { GatewayController, type ProvisionSink } from './controller.js';
import { DirectorySink } from './directory-sink.js';
import { isManaged, isOurs, provision, servicePorts } from './provision.js';

const OPTIONS = { values: DEFAULT_VALUES, revision: 'default' };
const listener = (name: string, port: number, protocol = 'HTTP') => ({ name, port, protocol });

function gateway(name: string, change: Partial<KubeGateway['metadata']> = {}, spec: Partial<KubeGateway['spec']> = {}): KubeGateway {
  return { apiVersion: 'gateway.networking.k8s.io/v1', kind: 'Gateway', metadata: { name, namespace: 'edge', ...change }, spec: { gatewayClassName: 'istio', listeners: [listener('http', 80)], ...spec } };
}

interface Made {
  metadata: KubeObject['metadata'];
  spec: { type: string; loadBalancerIP?: string; selector: Record<string, string>; template: { metadata: { labels: Record<string, string>; annotations: Record<string, string> }; spec: { serviceAccountName: string; containers: { image: string; args: string[]; env: { name: string; value?: string }[] }[] } } };
}
const made = (objects: readonly KubeObject[], kind: string): Made => objects.find((object) => object.kind === kind) as unknown as Made;

test('provision: ServiceAccount, Deployment and Service as Istio names and labels them', () => {
  const objects = provision(gateway('web', { labels: { team: 'a', 'istio.io/rev': 'x' }, uid: 'u' }), OPTIONS);
  assert.deepEqual(objects.map(({ kind, metadata }) => [kind, metadata.namespace, metadata.name]), [['ServiceAccount', 'edge', 'web-istio'], ['Deployment', 'edge', 'web-istio'], ['Service', 'edge', 'web-istio']]);
  const labels = { team: 'a', 'gateway.networking.k8s.io/gateway-name': 'web', 'gateway.networking.k8s.io/gateway-class-name': 'istio' };
  assert.deepEqual(made(objects, 'Service').metadata.labels, labels);
  const { spec } = made(objects, 'Deployment');
  assert.deepEqual(spec.template.metadata.labels, {
    ...labels, 'gateway.istio.io/managed': 'istio.io-gateway-controller', 'istio.io/gateway-name': 'web', 'sidecar.istio.io/inject': 'false', 'service.istio.io/canonical-name': 'web-istio', 'service.istio.io/canonical-revision': 'latest',
  });
  assert.equal(spec.template.spec.serviceAccountName, 'web-istio');
  assert.deepEqual(spec.template.spec.containers[0]?.args.slice(0, 4), ['proxy', 'router', '--domain', '$(POD_NAMESPACE).svc.cluster.local']);
  assert.equal(made(objects, 'Service').spec.type, 'LoadBalancer');
  assert.deepEqual(made(objects, 'Service').spec.selector, { 'gateway.networking.k8s.io/gateway-name': 'web' });
  assert.deepEqual(objects[1]?.metadata.ownerReferences, [{ apiVersion: 'gateway.networking.k8s.io/v1', kind: 'Gateway', name: 'web', uid: 'u', controller: true }]);
  for (const object of objects) assert.deepEqual(checkObject(object).filter(({ severity }) => severity === 'error'), [], object.kind);
});

test('provision: an east-west gateway has its Gateway\'s own name, and the label of its network', () => {
  const objects = provision(gateway('eastwest', { labels: { 'topology.istio.io/network': 'n1' } }, { gatewayClassName: 'istio-east-west', listeners: [listener('mesh', 15008, 'HBONE')] }), OPTIONS);
  assert.deepEqual(objects.map(({ metadata }) => [metadata.name, metadata.labels?.['topology.istio.io/network']]), [['eastwest', 'n1'], ['eastwest', 'n1'], ['eastwest', 'n1']]);
  assert.equal(made(objects, 'Deployment').metadata.labels!['gateway.istio.io/managed'], 'istio.io-eastwest-controller');
  assert.ok(isOurs(gateway('g', {}, { gatewayClassName: 'istio-east-west' }), new Map()));
});

test('provision: a waypoint has its Gateway\'s own name, a Service within the cluster, and is of no mesh itself', () => {
  const waypoint = gateway('wp', { labels: { 'istio.io/waypoint-for': 'all' } }, { gatewayClassName: 'istio-waypoint', listeners: [listener('mesh', 15008, 'HBONE')] });
  assert.ok(isOurs(waypoint, new Map()));
  const objects = provision(waypoint, OPTIONS);
  assert.deepEqual(objects.map(({ kind, metadata }) => [kind, metadata.name]), [['ServiceAccount', 'wp'], ['Deployment', 'wp'], ['Service', 'wp']]);
  const { template } = made(objects, 'Deployment').spec;
  assert.deepEqual(template.spec.containers[0]?.args.slice(0, 2), ['proxy', 'waypoint']);
  assert.equal(template.metadata.labels['istio.io/dataplane-mode'], 'none');
  const { metadata, spec } = made(objects, 'Service') as Made & { spec: { ports: { name: string; port: number; appProtocol: string }[] } };
  assert.deepEqual([spec.type, spec.ports.map(({ name, port, appProtocol }) => [name, port, appProtocol])], ['ClusterIP', [['status-port', 15021, 'tcp'], ['mesh', 15008, 'hbone']]]);
  assert.deepEqual([metadata.labels?.['gateway.istio.io/managed'], metadata.annotations?.['networking.istio.io/traffic-distribution']], ['istio.io-mesh-controller', 'PreferClose']);
  for (const object of objects) assert.deepEqual(checkObject(object).filter(({ severity }) => severity === 'error'), [], object.kind);
});

test('provision: overrides of name, account, type, address and infrastructure; a network of its own', () => {
  const objects = provision(
    gateway('web', { annotations: { 'gateway.istio.io/name-override': 'edge-proxy', 'gateway.istio.io/service-account': 'robot', 'networking.istio.io/service-type': 'ClusterIP' }, labels: { ignored: 'yes' } },
      { infrastructure: { labels: { 'topology.istio.io/network': 'n1' }, annotations: { by: 'x' } }, addresses: [{ value: '10.1.2.3' }] }), OPTIONS);
  assert.deepEqual(objects.map(({ kind }) => kind), ['Deployment', 'Service'], 'the account is somebody else\'s');
  const deployment = made(objects, 'Deployment');
  assert.equal(deployment.metadata.name, 'edge-proxy');
  assert.equal(deployment.metadata.labels?.['ignored'], undefined);
  assert.equal(deployment.spec.template.metadata.annotations['by'], 'x');
  assert.equal(deployment.spec.template.spec.serviceAccountName, 'robot');
  const env = Object.fromEntries(deployment.spec.template.spec.containers[0]?.env.map(({ name, value }) => [name, value]) ?? []);
  assert.deepEqual([env['ISTIO_META_NETWORK'], env['ISTIO_META_REQUESTED_NETWORK_VIEW']], ['n1', 'n1']);
  assert.deepEqual([made(objects, 'Service').spec.type, made(objects, 'Service').spec.loadBalancerIP], ['ClusterIP', undefined]);
  const fixed = provision(gateway('web', {}, { addresses: [{ type: 'IPAddress', value: '10.1.2.3' }] }), OPTIONS);
  assert.equal(made(fixed, 'Service').spec.loadBalancerIP, '10.1.2.3');
});

test('servicePorts: one a number, names made to fit, the health port first', () => {
  const ports = servicePorts(gateway('web', {}, { listeners: [listener('Web_1', 80), listener('again', 80), listener('tls.a', 443, 'HTTPS'), listener('tls.a', 8443, 'TLS'), listener('status-port', 9000, 'TCP')] }));
  assert.deepEqual(ports.map(({ name, port, appProtocol }) => [name, port, appProtocol]), [['status-port', 15021, 'tcp'], ['web-1', 80, 'http'], ['tls-a', 443, 'https'], ['port-8443', 8443, 'tls'], ['port-9000', 9000, 'tcp']]);
});

test('isOurs and isManaged: classes by controller or well-known name; host names and several addresses are run by others', () => {
  const controlledBy = (controllerName: string): ReadonlyMap<string, GatewayClass> => new Map([['mine', { apiVersion: 'gateway.networking.k8s.io/v1', kind: 'GatewayClass', metadata: { name: 'mine' }, spec: { controllerName } }]]);
  const mine = gateway('g', {}, { gatewayClassName: 'mine' });
  assert.ok(isOurs(mine, controlledBy('istio.io/gateway-controller')));
  assert.ok(!isOurs(mine, controlledBy('example.com/other')));
  assert.ok(!isOurs(mine, new Map()));
  assert.ok(isOurs(gateway('g', {}, { gatewayClassName: 'underpass' }), new Map()));
  assert.ok(!isManaged(gateway('g', {}, { addresses: [{ type: 'Hostname', value: 'ingress.istio-gateways.svc' }] })));
  assert.ok(!isManaged(gateway('g', {}, { addresses: [{ value: '10.0.0.1' }, { value: '10.0.0.2' }] })));
});

class RecordingSink implements ProvisionSink {
  readonly calls: string[] = [];
  failing = '';
  constructor(readonly left: string[] = []) {}
  owners(): Iterable<string> {
    return this.left;
  }
  apply(owner: string, objects: readonly KubeObject[]): void {
    if (owner === this.failing) throw new Error('disk full');
    this.calls.push(`apply ${owner} ${objects.length}`);
  }
  remove(owner: string): void {
    this.calls.push(`remove ${owner}`);
  }
}

function loaded(object: KubeObject) {
  return { object, key: `${object.metadata.namespace}/${object.metadata.name}`, file: 'x', positions: { at: () => ({ line: 1, column: 1 }) } } as never;
}

test('GatewayController: applies what is new or changed, once; removes what is gone and what an earlier run left', () => {
  const configs = new Configs();
  const sink = new RecordingSink(['edge/stale', 'edge/web']);
  const controller = new GatewayController(configs, sink, () => OPTIONS, pino({ level: 'silent' }));
  const change = new ChangeSet();
  change.addConfig('Gateway', 'edge', 'web');
  configs.set('Gateway', 'web', loaded(gateway('web')));
  configs.set('Gateway', 'istio', loaded({ ...gateway('istio'), apiVersion: 'networking.istio.io/v1' }));
  configs.set('Gateway', 'foreign', loaded(gateway('foreign', {}, { gatewayClassName: 'nginx' })));
  controller.update(change);
  controller.update(change);
  assert.deepEqual(sink.calls.splice(0), ['remove edge/stale', 'apply edge/web 3']);
  configs.set('Gateway', 'web', loaded(gateway('web', {}, { listeners: [listener('http', 81)] })));
  const other = new ChangeSet();
  other.addConfig('Secret', 'edge', 's');
  controller.update(other);
  assert.deepEqual(sink.calls.splice(0), [], 'a change of something else is not looked at');
  controller.update(change);
  configs.set('Gateway', 'web', undefined);
  controller.update(change);
  assert.deepEqual(sink.calls.splice(0), ['apply edge/web 3', 'remove edge/web']);
});

test('GatewayController: a sink that fails for one Gateway serves the others, and is tried again', () => {
  const configs = new Configs();
  const sink = new RecordingSink();
  const controller = new GatewayController(configs, sink, () => OPTIONS, pino({ level: 'silent' }));
  for (const name of ['a', 'b']) configs.set('Gateway', name, loaded(gateway(name)));
  sink.failing = 'edge/a';
  controller.reconcile();
  assert.deepEqual(sink.calls.splice(0), ['apply edge/b 3']);
  sink.failing = '';
  controller.reconcile();
  assert.deepEqual(sink.calls.splice(0), ['apply edge/a 3']);
});

test('DirectorySink: a file a Gateway that reads back as the objects; files of others are not its own', () => {
  const path = mkdtempSync(join(tmpdir(), 'up-provision-'));
  try {
    writeFileSync(join(path, 'mine.yaml'), 'a: b\n');
    const sink = new DirectorySink(path);
    const objects = provision(gateway('web'), OPTIONS);
    sink.apply('edge/web', objects);
    assert.deepEqual([...new DirectorySink(path).owners()], ['edge/web']);
    const { objects: read, errors } = parseYaml(readFileSync(join(path, 'gateway_edge_web.yaml'), 'utf8'), 'x');
    assert.deepEqual([errors, read.map(({ object }) => object.kind)], [[], ['ServiceAccount', 'Deployment', 'Service']]);
    sink.remove('edge/web');
    assert.deepEqual(readdirSync(path), ['mine.yaml']);
  } finally {
    rmSync(path, { recursive: true });
  }
});
