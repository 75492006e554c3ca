/**
 * Replays a recorded scenario of istiod through the model and compares what pilot serves with what istiod served, resource
 * by resource and field by field. Every difference that is meant is listed with its reason: those that hold everywhere
 * here, those of a scenario in its test. Everything else must be equal.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { parseYaml, type LoadedObject } from '../../common/kube/yaml.js';
import { objectKey, type KubeObject } from '../../common/kube/types.js';
import { projectRoot } from '../../common/paths.js';
import { messageTypeOf } from '../../common/xds/any.js';
import { Any } from '../../proto/generated/google/protobuf/any.js';
import { DeltaDiscoveryResponse, DiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import '../../proto/generated/envoy/config/bootstrap/v3/bootstrap.js';
import '../../proto/generated/udpa/type/v1/typed_struct.js';
import '../../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { Generators } from '../generate/generator.js';
import { TYPE, type Resource } from '../generate/resource.js';
import type { MeshConfig } from '../model/mesh.js';
import { Model, type ObjectChange } from '../model/model.js';
import { parseProxy, type Proxy } from '../model/proxy.js';

export type Json = { [key: string]: Json } | Json[] | string | number | boolean | null;
export type JsonObject = { [key: string]: Json };

interface Event {
  dir: string;
  step: number;
  type_url: string;
  file: string;
}
interface Scenario {
  sessions: { name: string; node: string; mode: string; metadata: Record<string, unknown>; events: Event[] }[];
}

/** A resource of one side on its way to the comparison. */
export interface Compared {
  type: string;
  name: string;
  step: number;
}

export interface ScenarioOptions {
  scenario: string;
  session: string;
  /** Type URLs (see TYPE) to compare; default: all that the session asked for and pilot serves. */
  types?: readonly string[];
  mesh?: Partial<MeshConfig>;
  steps?: number;
  /** Resources that istiod serves and pilot does not, by meaning. */
  absent?: (resource: Compared) => boolean;
  /** Resources that pilot serves and istiod does not, by meaning. */
  extra?: (resource: Compared) => boolean;
  /** Takes out of istiod's, or pilot's, resource what is meant to differ; say why beside it. Return the json. */
  istiod?: (json: JsonObject, resource: Compared) => Json;
  pilot?: (json: JsonObject, resource: Compared) => Json;
}

/** Filters of Istio's own Envoy build; stock Envoy refuses them. */
const ISTIO_ONLY_FILTERS = new Set(['istio.stats', 'istio.metadata_exchange', 'istio.alpn']);

/** Deep copy in canonical form, with every Any decoded in place. */
export function expand(value: unknown): Json {
  if (value === null || value === undefined) return null;
  if (typeof value === 'bigint') return value.toString();
  if (typeof value !== 'object') return value as Json;
  if (Array.isArray(value)) return value.map(expand);
  if (value instanceof Uint8Array) return Buffer.from(value).toString('base64');
  const any = value as Partial<Any>;
  if (typeof any.type_url === 'string' && any.value instanceof Uint8Array && Object.keys(value).length <= 3) {
    const type = messageTypeOf(any as Any);
    return type ? { '@type': any.type_url, ...(expand(type.decode(any.value)) as object) } : { '@type': any.type_url };
  }
  const out: JsonObject = {};
  for (const [key, item] of Object.entries(value)) {
    // Fields that the generated messages do not know are istiod's newer ones.
    if (key === '_unknownFields') continue;
    if (item !== undefined) out[key] = expand(item);
  }
  return out;
}

export const isObject = (json: Json | undefined): json is JsonObject => typeof json === 'object' && json !== null && !Array.isArray(json);

/** A deep copy in which each object was given to `change`, innermost first; undefined takes it out. */
export function rewrite(json: Json, change: (object: JsonObject, path: readonly string[]) => Json | undefined, path: readonly string[] = []): Json {
  if (Array.isArray(json)) return json.map((item) => rewrite(item, change, path)).filter((item) => item !== GONE);
  if (!isObject(json)) return json;
  const out: JsonObject = {};
  for (const [key, item] of Object.entries(json)) {
    const inner = rewrite(item, change, [...path, key]);
    if (inner !== GONE) out[key] = inner;
  }
  const changed = change(out, path);
  return changed === undefined ? (GONE as unknown as Json) : changed;
}
const GONE: unknown = Symbol('gone');

/** What is different everywhere. */
function withoutMeant(json: Json): Json {
  return rewrite(json, (object) => {
    if (typeof object['name'] === 'string' && ISTIO_ONLY_FILTERS.has(object['name'])) return undefined;
    // For Istio's own filters.
    delete object['disable_mx'];
    // Sidecars here lead no tunnel to a waypoint.
    if ('upstream_port_override' in object) delete object['metadata_key'];
    // No tracing provider is configured; its tags would make listeners differ by workload.
    if ('tracing' in object) delete object['tracing'];
    return object;
  });
}

/** The application behind the end of a tunnel is told who called; istiod's is not. */
const withoutPeer = (json: Json): Json => rewrite(json, (object) => (isObject(object['header']) && object['header']['value'] === 'URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%' ? undefined : object));

/** A cluster knows how to tunnel only where an endpoint asks for it; each of istiod's does. */
const isTunnel = (match: Json): boolean => isObject(match) && match['name'] === 'hbone';
const isTunnelled = ({ transport_socket_matches: matches }: JsonObject): boolean => Array.isArray(matches) && matches.some(isTunnel);
const withoutTunnel = (json: JsonObject): JsonObject => (isTunnelled(json) ? { ...json, transport_socket_matches: (json['transport_socket_matches'] as Json[]).filter((match) => !isTunnel(match)) } : json);

function scenarioFolder(scenario: string): string | undefined {
  const roots = [process.env['UNDERPASS_FIXTURES'], join(projectRoot, 'test', 'fixtures')].filter((root): root is string => root !== undefined);
  return roots.map((root) => join(root, 'istiod', scenario)).find((folder) => existsSync(join(folder, 'scenario.json')));
}

function applyFile(model: Model, generators: Generators, path: string): void {
  if (!existsSync(path)) return;
  const text = readFileSync(path, 'utf8');
  let changes: ObjectChange[];
  if (path.endsWith('.delete.yaml')) {
    changes = parseAllDocuments(text).map((document) => ({ key: objectKey(document.toJS() as KubeObject) }));
  } else {
    const result = parseYaml(text, path);
    assert.deepEqual(result.errors.filter(({ severity }) => severity === 'error'), []);
    changes = result.objects.map((loaded: LoadedObject) => ({ key: loaded.key, loaded }));
  }
  generators.invalidate(model.apply(changes));
}

const nameOf = (json: JsonObject): string => String(json['name'] ?? json['cluster_name'] ?? '');

/** Declares one test for the scenario, with a sub-test for each of its steps. */
export function testScenario(options: ScenarioOptions): void {
  const { scenario, session: sessionName } = options;
  test(`pilot serves what istiod served: ${scenario}, ${sessionName}`, async (t) => {
    const folder = scenarioFolder(scenario) ?? assert.fail(`no recording ${scenario}: is it in test/fixtures/istiod?`);
    const recordedScenario = JSON.parse(readFileSync(join(folder, 'scenario.json'), 'utf8')) as Scenario;
    const session = recordedScenario.sessions.find(({ name }) => name === sessionName) ?? assert.fail(`no session ${sessionName} in ${scenario}`);
    const proxy = parseProxy(session.node, session.metadata);
    const model = new Model(options.mesh);
    const generators = new Generators(model);
    const recorded = new Map<string, Map<string, JsonObject>>();
    const steps = options.steps ?? Math.max(...session.events.map(({ step }) => step)) + 1;
    let compared = 0;
    for (let step = 0; step < steps; step++) {
      for (const kind of ['apply', 'delete']) applyFile(model, generators, join(folder, 'input', `step${step}.${kind}.yaml`));
      for (const event of session.events) if (event.dir === 'recv' && event.step === step) receive(recorded, event, join(folder, event.file));
      await t.test(`step ${step}`, () => {
        for (const [type, resources] of recorded) {
          if (options.types && !options.types.includes(type)) continue;
          const generator = generators.get(type);
          if (!generator) continue;
          compared += compareType(options, { generator, proxy, type, step, resources });
        }
      });
    }
    assert.ok(compared > 0, 'nothing was compared');
  });
}

function receive(recorded: Map<string, Map<string, JsonObject>>, event: Event, path: string): void {
  const wildcard = event.type_url === TYPE.cluster || event.type_url === TYPE.listener;
  const isDelta = path.endsWith('.delta.pb');
  const resources = (!(wildcard && !isDelta) && recorded.get(event.type_url)) || new Map<string, JsonObject>();
  const bytes = readFileSync(path);
  if (isDelta) {
    const response = DeltaDiscoveryResponse.decode(bytes);
    for (const { name, resource } of response.resources) resources.set(name, expand(resource) as JsonObject);
    for (const name of response.removed_resources) resources.delete(name);
  } else {
    for (const body of DiscoveryResponse.decode(bytes).resources) {
      const json = expand(body) as JsonObject;
      resources.set(nameOf(json), json);
    }
  }
  recorded.set(event.type_url, resources);
}

interface Part {
  generator: { wildcard: boolean; all(proxy: Proxy): Resource[]; one(proxy: Proxy, name: string): Resource | undefined };
  proxy: Proxy;
  type: string;
  step: number;
  resources: Map<string, JsonObject>;
}

/**
 * What is not compared in any scenario: where tunnels end pilot refuses other authorities than the workload's by its routes,
 * istiod by closing them in `main_internal`; tunnels in tunnels are not made by pilot's proxies; the API server makes its own Service
 * `kubernetes.default`, so that the recorded input does not have it.
 */
const NEVER = new Set(['inner_connect_originate', 'connect_terminate', 'outbound|443||kubernetes.default.svc.cluster.local', '10.96.0.1_443', 'default/kubernetes.default.svc.cluster.local']);

function compareType(options: ScenarioOptions, { generator, proxy, type, step, resources }: Part): number {
  // Where something asks for it; each of istiod's clients has it.
  const isOriginated = generator.wildcard && generator.one(proxy, 'connect_originate') !== undefined;
  const wanted = new Map([...resources].filter(([name]) => !NEVER.has(name) && (isOriginated || name !== 'connect_originate') && !options.absent?.({ type, name, step })));
  const made = (generator.wildcard ? generator.all(proxy) : [...wanted.keys()].flatMap((name) => generator.one(proxy, name) ?? [])).filter(({ name }) => name !== 'connect_terminate' && !options.extra?.({ type, name, step }));
  assert.deepEqual(made.map(({ name }) => name).sort(), [...wanted.keys()].sort(), `names of ${type} in step ${step}`);
  for (const { name, body } of made) {
    const about = { type, name, step };
    const ours = withoutPeer(expand(body)) as JsonObject;
    const theirs = withoutMeant(isTunnelled(ours) ? wanted.get(name)! : withoutTunnel(wanted.get(name)!)) as JsonObject;
    assert.deepEqual(options.pilot ? options.pilot(ours, about) : ours, options.istiod ? options.istiod(theirs, about) : theirs, `${type} ${name} in step ${step}`);
  }
  return made.length;
}
