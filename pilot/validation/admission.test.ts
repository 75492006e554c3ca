import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseYaml, type LoadedObject } from '../../common/kube/yaml.js';
import { rootLogger } from '../../common/log.js';
import { podYaml, serviceYaml, sliceYaml } from '../testing/mesh.js';
import { Admission } from './admission.js';

const load = (yaml: string): LoadedObject[] => {
  const { objects, errors } = parseYaml(yaml.trimStart(), 'x.yaml');
  assert.deepEqual(errors.filter(({ severity }) => severity === 'error'), []);
  return objects;
};
const silent = rootLogger.child({}, { level: 'silent' });
const names = Array.from({ length: 20 }, (_, index) => `s${index}`);
const virtualService = (name: string, subset = ''): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: shop}\nspec: {hosts: [${name}], http: [{route: [{destination: {host: ${name}${subset}}}]}]}\n---`;
const rule = (name: string): string => `\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ${name}, namespace: shop}\nspec: {host: ${name}, subsets: [{name: v1, labels: {version: v1}}]}\n---`;

class World {
  readonly admission = new Admission('cluster.local', silent);
  readonly #objects = new Map<string, LoadedObject>();

  constructor(yaml: string) {
    this.apply(yaml);
  }

  /** @returns what changed in force, and how many objects were looked at for it. */
  apply(yaml: string, ...gone: string[]): { changes: string[]; checks: number } {
    const before = this.admission.checks;
    for (const loaded of load(yaml)) this.#objects.set(loaded.key, loaded);
    for (const key of gone) this.#objects.delete(key);
    const changes = this.admission.admit(this.#objects).map(({ key, loaded }) => `${loaded ? '+' : '-'}${key}`);
    return { changes, checks: this.admission.checks - before };
  }
}

const pods = names.map((name, index) => ({ name: `${name}-1`, ip: `10.0.0.${index + 1}`, labels: { app: name } }));
const WORLD = names.map((name, index) => serviceYaml('shop', name, `10.96.0.${index + 1}`, [pods[index]!]) + podYaml('shop', pods[index]!) + rule(name) + virtualService(name, ', subset: v1')).join('');

test('Admission: a change of endpoints, or of a pod that keeps its labels, has nothing looked at again', () => {
  const world = new World(WORLD);
  assert.deepEqual(world.admission.errors(), []);
  assert.deepEqual(world.apply(sliceYaml('shop', 's3', [{ ...pods[3]!, ip: '10.9.9.9' }])), { changes: ['+discovery.k8s.io/EndpointSlice/shop/s3-1'], checks: 0 });
  assert.deepEqual(world.apply(podYaml('shop', { ...pods[3]!, ready: false })), { changes: ['+/Pod/shop/s3-1'], checks: 0 });
});

test('Admission: what changes has only those looked at again that refer to it', () => {
  const world = new World(WORLD);
  // The VirtualService of that host, and the rule itself.
  const { checks } = world.apply(rule('s3').replace('version: v1', 'version: v2'));
  assert.equal(checks, 2);
  assert.equal(world.apply(serviceYaml('shop', 's4', '10.96.9.9', [pods[4]!])).checks, 2);
  assert.equal(world.apply('apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n').checks, 0);
});

test('Admission: an object that is held back counts as soon as what it names is there, whatever else is there', () => {
  const world = new World(WORLD);
  assert.deepEqual(world.apply(virtualService('s3', ', subset: v2')).changes, []);
  assert.match(world.admission.errors().map(({ message }) => message).join(), /found "v2"/);
  assert.deepEqual(world.apply(rule('s3').replace('name: v1', 'name: v2')).changes, ['+networking.istio.io/DestinationRule/shop/s3', '+networking.istio.io/VirtualService/shop/s3']);
  assert.deepEqual(world.admission.errors(), []);
});

test('Admission: what names something that goes stays in force, with an error', () => {
  const world = new World(WORLD);
  assert.deepEqual(world.apply('', 'networking.istio.io/DestinationRule/shop/s5').changes, ['-networking.istio.io/DestinationRule/shop/s5']);
  assert.match(world.admission.errors().map(({ message }) => message).join(), /no DestinationRule for s5\.shop/);
  assert.deepEqual(world.apply('', 'networking.istio.io/VirtualService/shop/s5').changes, ['-networking.istio.io/VirtualService/shop/s5']);
  assert.deepEqual(world.admission.errors(), []);
});

test('Admission: each problem is said once, and again only after it was gone', () => {
  const lines: string[] = [];
  const logger = { ...silent, warn: () => undefined, error: (_: unknown, text: string) => void lines.push(text) } as unknown as typeof silent;
  const admission = new Admission('cluster.local', logger);
  const admit = (yaml: string): number => {
    admission.admit(new Map(load(yaml).map((loaded) => [loaded.key, loaded])));
    return lines.length;
  };
  const bad = WORLD + virtualService('s3', ', subset: v2').replace('name: s3', 'name: other');
  assert.equal(admit(bad), 1);
  assert.equal(admit(bad), 1);
  assert.equal(admit(WORLD), 1);
  assert.equal(admit(bad), 2);
});

test('Admission: other settings have everything looked at again', () => {
  let authorizers = new Set<string>();
  const admission = new Admission('cluster.local', silent, { get authorizers() { return authorizers; } });
  const objects = load('apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: ask, namespace: shop}\nspec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}\n');
  const said = (): string => {
    admission.admit(new Map(objects.map((loaded) => [loaded.key, loaded])));
    return admission.errors().map(({ field, severity, message }) => `${field}: ${severity} ${message}`).join();
  };
  assert.match(said(), /spec\.provider\.name: warning found "opa", but the MeshConfig has none/);
  authorizers = new Set(['opa']);
  admission.settingsChanged();
  assert.equal(said(), '');
});
