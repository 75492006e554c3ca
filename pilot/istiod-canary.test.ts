/**
 * The same YAML that a real istiod was recorded with, step by step: what pilot generates must mean the same, resource by
 * resource. Every difference that is meant is listed here with its reason; everything else must be equal.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseYaml, type LoadedObject } from '../common/kube/yaml.js';
import { objectKey, type KubeObject } from '../common/kube/types.js';
import { projectRoot } from '../common/paths.js';
import { messageTypeOf } from '../common/xds/any.js';
import { parseAllDocuments } from 'yaml';
import { Any } from '../proto/generated/google/protobuf/any.js';
import { DiscoveryResponse } from '../proto/generated/envoy/service/discovery/v3/discovery.js';
import '../proto/generated/envoy/config/bootstrap/v3/bootstrap.js';
import '../proto/generated/udpa/type/v1/typed_struct.js';
import '../proto/generated/envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.js';
import { Generators } from './generate/generator.js';
import { TYPE, type Resource } from './generate/resource.js';
import { Model, type ObjectChange } from './model/model.js';
import { parseProxy } from './model/proxy.js';

const folder = join(process.env['UNDERPASS_FIXTURES'] ?? join(projectRoot, 'test', 'fixtures'), 'istiod', 'canary');
const SESSION = 'toolbox-v1-6d9f-sotw';

type Json = { [key: string]: Json } | Json[] | string | number | boolean | null;
interface Event {
  dir: string;
  step: number;
  type_url: string;
  file: string;
}
interface Scenario {
  sessions: { name: string; node: string; metadata: Record<string, unknown>; events: Event[] }[];
}

/** Filters of Istio's own Envoy build; stock Envoy refuses them. */
const ISTIO_ONLY_FILTERS = new Set(['istio.stats', 'istio.metadata_exchange', 'istio.alpn']);

/** What istiod serves and pilot does not, by name: HBONE is not originated by sidecars of pilot. */
const MEANT_ABSENT = new Set(['connect_originate', 'outbound|443||kubernetes.default.svc.cluster.local', '10.96.0.1_443']);

/** Deep copy in canonical form, with every Any decoded in place. */
function expand(value: unknown): Json {
  if (value === null || value === undefined) return null;
  if (typeof value === 'bigint') return value.toString();
  if (typeof value !== 'object') return value as Json;
  if (Array.isArray(value)) return value.map(expand);
  if (Buffer.isBuffer(value)) return value.toString('base64');
  const any = value as Partial<Any>;
  if (typeof any.type_url === 'string' && Buffer.isBuffer(any.value) && Object.keys(value).length <= 3) {
    const type = messageTypeOf(any as Any);
    return type ? { '@type': any.type_url, ...(expand(type.decode(any.value)) as object) } : { '@type': any.type_url };
  }
  const out: { [key: string]: Json } = {};
  for (const [key, item] of Object.entries(value)) {
    // Fields that the generated messages do not know are istiod's newer ones.
    if (key === '_unknownFields') continue;
    if (item !== undefined) out[key] = expand(item);
  }
  return out;
}

/** Takes out of istiod's answer what is meant to be different in pilot's. */
function withoutMeant(json: Json): Json {
  if (Array.isArray(json)) {
    return json
      .filter((item) => !(isObject(item) && typeof item['name'] === 'string' && ISTIO_ONLY_FILTERS.has(item['name'])))
      // Endpoints behind HBONE are reached by the node agents, not by sidecars.
      .filter((item) => !(isObject(item) && item['name'] === 'hbone' && 'match' in item))
      .map(withoutMeant);
  }
  if (!isObject(json)) return json;
  const out: { [key: string]: Json } = {};
  for (const [key, item] of Object.entries(json)) {
    // No tracing provider is configured; its tags would make listeners differ by workload.
    if (key === 'tracing') continue;
    out[key] = withoutMeant(item);
  }
  return out;
}

const isObject = (json: Json | undefined): json is { [key: string]: Json } => typeof json === 'object' && json !== null && !Array.isArray(json);

function applyFile(model: Model, generators: Generators, name: string): void {
  const path = join(folder, 'input', name);
  const text = readFileSync(path, 'utf8');
  let changes: ObjectChange[];
  if (name.endsWith('.delete.yaml')) {
    changes = parseAllDocuments(text).map((document) => ({ key: objectKey(document.toJS() as KubeObject) }));
  } else {
    const result = parseYaml(text, path);
    assert.deepEqual(result.errors, []);
    changes = result.objects.map((loaded: LoadedObject) => ({ key: loaded.key, loaded }));
  }
  generators.invalidate(model.apply(changes));
}

test('pilot serves what istiod served for the canary scenario', async (t) => {
  const scenario = JSON.parse(readFileSync(join(folder, 'scenario.json'), 'utf8')) as Scenario;
  const session = scenario.sessions.find(({ name }) => name === SESSION)!;
  const proxy = parseProxy(session.node, session.metadata);
  const model = new Model();
  const generators = new Generators(model);
  /** The newest answer of each type, by resource name. */
  const recorded = new Map<string, Map<string, Json>>();
  for (let step = 0; step <= 6; step++) {
    applyFile(model, generators, `step${step}.${step === 6 ? 'delete' : 'apply'}.yaml`);
    for (const event of session.events.filter((candidate) => candidate.dir === 'recv' && candidate.step === step)) {
      const response = DiscoveryResponse.decode(readFileSync(join(folder, event.file)));
      const wildcard = event.type_url === TYPE.cluster || event.type_url === TYPE.listener;
      const resources = (!wildcard && recorded.get(event.type_url)) || new Map<string, Json>();
      for (const body of response.resources) {
        const json = expand(body) as { [key: string]: Json };
        resources.set(String(json['name'] ?? json['cluster_name']), json);
      }
      recorded.set(event.type_url, resources);
    }
    await t.test(`step ${step}`, () => {
      for (const [typeUrl, resources] of recorded) {
        const generator = generators.get(typeUrl)!;
        const wanted = new Map([...resources].filter(([name]) => !MEANT_ABSENT.has(name)));
        const made: Resource[] = generator.wildcard ? generator.all(proxy) : [...wanted.keys()].map((name) => generator.one(proxy, name)!);
        assert.deepEqual(made.map(({ name }) => name).sort(), [...wanted.keys()].sort(), `names of ${typeUrl}`);
        for (const { name, body } of made) {
          assert.deepEqual(expand(body), withoutMeant(wanted.get(name)!), `${typeUrl} ${name} in step ${step}`);
        }
      }
    });
  }
});
