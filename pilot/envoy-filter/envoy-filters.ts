/**
 * WasmPlugins and then EnvoyFilters laid over what the generators made. EnvoyFilters come by priority; of one priority those of the
 * root namespace first, then those of the workload's own, each by age. What was patched is kept by the resource that it was
 * made from, so that proxies with the same filters share one result.
 */
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';
import { createHash } from 'node:crypto';
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { EnvoyFilter } from '../../common/kube/types.js';
import type { ChangeSet } from '../model/changes.js';
import type { MeshService, Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import type { Generator, Names, SharedNames } from '../generate/generator.js';
import { CONNECT_TERMINATE, isInboundListener, MAIN_INTERNAL } from '../generate/names.js';
import type { Whole } from '../generate/resource-list.js';
import { TYPE, type Resource } from '../generate/resource.js';
import { gatewayServers } from '../generate/gateway/servers.js';
import { inboundHosts, podOf } from '../generate/inbound-ports.js';
import { policiesFor, policyTarget, type PolicyTarget } from '../generate/security/targets.js';
import { waypointChanged } from '../generate/affected.js';
import { attachedServices, waypointTarget } from '../generate/waypoint/attached.js';
import { compilePatches } from './compile.js';
import { WasmPlugins, type WasmFilter, type WasmSet } from '../wasm/wasm-plugins.js';
import { clusterPatches, patchCluster } from './patch-cluster.js';
import { insertPlugins, patchListener } from './patch-listener.js';
import { patchRouteConfiguration, portOf } from './patch-routes.js';
import { decode, encode, plain } from './registry.js';
import type { CompiledPatch, PatchContext, Place } from './types.js';

/** The patches of one set of EnvoyFilters. */
export interface PatchSet {
  /** Of the filters' contents: part of the key of what was patched. */
  key: string;
  patches: readonly CompiledPatch[];
  plugins: readonly WasmFilter[];
}

const NONE: PatchSet = { key: '', patches: [], plugins: [] };

export const isEmpty = (set: PatchSet): boolean => set.patches.length + set.plugins.length === 0;
const KIND = 'EnvoyFilter';
const WASM = 'WasmPlugin';

export class EnvoyFilters {
  readonly #compiled = new WeakMap<LoadedObject, readonly CompiledPatch[]>();
  readonly #sets = new Map<string, PatchSet>();
  /** A proxy's set is asked for with each of its resources. */
  #ofProxy = new WeakMap<Proxy, PatchSet>();
  readonly #patched = new WeakMap<Resource, Map<string, Resource | undefined>>();

  readonly #wasm: WasmPlugins;

  constructor(readonly model: Model) {
    this.#wasm = new WasmPlugins(model);
  }

  invalidate(change: ChangeSet): void {
    if (change.touches(KIND, WASM)) this.#sets.clear();
    // Labels choose filters, and where a plugin is fetched from depends on the services that the workload sees.
    if (change.touches(KIND, WASM, 'Sidecar', 'Gateway', 'GatewayClass') || change.pods.size + change.services.size + change.addresses.size > 0) this.#ofProxy = new WeakMap();
  }

  /** Whether the filters that apply to this proxy may be others now. */
  affects(proxy: Proxy, change: ChangeSet): boolean {
    const namespaces = [proxy.namespace, this.model.mesh.rootNamespace];
    // Its services are of other namespaces, and have plugins there; which they are may change, too.
    if (proxy.type === 'waypoint' && (change.touches(KIND, WASM) || (waypointChanged(proxy, change) && this.model.configs.all(WASM).length > 0))) return true;
    return change.touchesIn(namespaces, KIND, WASM) || this.#isRelabelled(proxy, change) || this.#wasm.fetchesFrom(namespaces, change.services);
  }

  /** The proxy's own pod changed, and with its labels perhaps what selects it. */
  #isRelabelled(proxy: Proxy, { pods }: ChangeSet): boolean {
    if (pods.size === 0) return false;
    const { configs, mesh } = this.model;
    if ([proxy.namespace, mesh.rootNamespace].every((namespace) => configs.inNamespace(KIND, namespace).length + configs.inNamespace(WASM, namespace).length === 0)) return false;
    const pod = podOf(this.model, proxy);
    const name = pod ? `${pod.metadata.namespace}/${pod.metadata.name}` : `${proxy.namespace}/${proxy.name}`;
    // Of pods of other clusters the key is longer.
    return [...pods].some((key) => key === name || key.endsWith(name));
  }

  /** The filters of this proxy, in the order in which they work. */
  setFor(proxy: Proxy): PatchSet {
    let set = this.#ofProxy.get(proxy);
    if (!set) this.#ofProxy.set(proxy, (set = this.#makeSet(proxy)));
    return set;
  }

  #makeSet(proxy: Proxy): PatchSet {
    // A waypoint has those that name its Gateway, or its class, and none by its labels.
    const target = { ...policyTarget(this.model, proxy), ...(proxy.type === 'waypoint' ? { waypoint: {} } : {}) };
    const chosen = policiesFor<EnvoyFilter>(this.model, KIND, target).sort((a, b) => (a.object.spec.priority ?? 0) - (b.object.spec.priority ?? 0));
    const wasm = this.#wasmOf(proxy, target);
    if (chosen.length === 0 && wasm.filters.length === 0) return NONE;
    const all = chosen.flatMap((loaded) => this.#patchesOf(loaded));
    // Which of the patches are for this proxy is told by its version and its metadata.
    const fitting = all.map((patch) => (fits(patch, proxy) ? '1' : '0')).join('');
    const key = `${chosen.map((loaded) => loaded.key).join(' ')} ${fitting} ${wasm.key}`;
    let set = this.#sets.get(key);
    if (!set) {
      const contents = createHash('sha1').update(JSON.stringify(chosen.map(({ object }) => object.spec))).digest('base64url');
      this.#sets.set(key, (set = { key: `${contents} ${fitting} ${wasm.key}`, patches: all.filter((_patch, index) => fitting[index] === '1'), plugins: wasm.filters }));
    }
    return set;
  }

  #wasmOf(proxy: Proxy, target: PolicyTarget): WasmSet {
    const scope = this.model.scopeOf(proxy);
    const own = this.#wasm.setFor(target, scope);
    if (proxy.type !== 'waypoint' || this.model.configs.all(WASM).length === 0) return own;
    const services = this.#wasm.ofServices(attachedServices(this.model, proxy).map((service) => [service.host, waypointTarget(this.model, proxy, service)] as const), scope);
    return services.filters.length === 0 ? own : { key: `${own.key} ${services.key}`, filters: [...own.filters, ...services.filters].sort((a, b) => b.priority - a.priority) };
  }

  /** What could not be compiled was refused by validation; the rest of such an object's patches work. */
  #patchesOf(loaded: LoadedObject<EnvoyFilter>): readonly CompiledPatch[] {
    let patches = this.#compiled.get(loaded);
    if (!patches) this.#compiled.set(loaded, (patches = compilePatches(loaded.object.spec.configPatches ?? []).patches));
    return patches;
  }

  /** `resource` with the proxy's patches; undefined when one of them removes it. */
  apply(proxy: Proxy, set: PatchSet, type: string, resource: Resource): Resource | undefined {
    let made = this.#patched.get(resource);
    if (!made) this.#patched.set(resource, (made = new Map()));
    const place = this.#placeOf(proxy, type, resource.name);
    const key = `${place.context} ${place.hosts.join()} ${place.ports.join()} ${set.key}`;
    if (!made.has(key)) made.set(key, patchResource(type, resource, set, place));
    return made.get(key);
  }

  #placeOf(proxy: Proxy, type: string, name: string): Place {
    const context = contextOf(proxy, type, name);
    const port = type === TYPE.route && context === 'GATEWAY' ? portOf(name) : undefined;
    return {
      context,
      hosts: type === TYPE.cluster && name.startsWith('inbound|') ? inboundHosts(this.model, proxy, Number(name.split('|')[1])) : [],
      ports: port === undefined ? [] : serverPorts(this.model, proxy, port),
    };
  }

  /** What the proxy's patches add beside the generated; of several under one name the first. */
  additions(proxy: Proxy, set: PatchSet, type: string): Resource[] {
    const applyTo = type === TYPE.listener ? 'LISTENER' : type === TYPE.cluster ? 'CLUSTER' : undefined;
    const adds = set.patches.filter((patch) => patch.applyTo === applyTo && patch.operation === 'ADD' && [...patch.contexts].some((context) => (proxy.type === 'router' ? context === 'GATEWAY' : proxy.type === 'waypoint' ? context === 'WAYPOINT' : context.startsWith('SIDECAR_'))));
    const sources = type === TYPE.cluster ? set.plugins.flatMap(({ cluster }) => (cluster ? [resourceOf(type, cluster)] : [])) : [];
    const unique = new Map<string, Resource>();
    for (const resource of [...sources, ...adds.map(({ value }) => resourceOf(type, value!))]) if (!unique.has(resource.name)) unique.set(resource.name, resource);
    return [...unique.values()];
  }
}

/** The ports of the servers that this port of the gateway's pod is for; of routes by server it is the server's own. */
function serverPorts(model: Model, proxy: Proxy, port: number): readonly number[] {
  const bound = gatewayServers(model, proxy).filter(({ listenPort }) => listenPort === port);
  return bound.length > 0 ? bound.map(({ server }) => server.port.number) : [port];
}

function fits({ proxyVersion, proxyMetadata }: CompiledPatch, proxy: Proxy): boolean {
  if (proxyVersion && (!proxy.istioVersion || !proxyVersion.test(proxy.istioVersion))) return false;
  return Object.entries(proxyMetadata).every(([key, value]) => proxy.metadata[key] === value);
}

function contextOf(proxy: Proxy, type: string, name: string): PatchContext {
  if (proxy.type === 'router') return 'GATEWAY';
  if (proxy.type === 'waypoint') return 'WAYPOINT';
  if (type === TYPE.listener) return isInboundListener(name) ? 'SIDECAR_INBOUND' : 'SIDECAR_OUTBOUND';
  if (type === TYPE.cluster) return name.startsWith('inbound|') || name === 'InboundPassthroughCluster' ? 'SIDECAR_INBOUND' : 'SIDECAR_OUTBOUND';
  return 'SIDECAR_OUTBOUND';
}

const MESSAGE_OF = (type: string): string => type.slice(type.lastIndexOf('/') + 1);

function resourceOf(type: string, message: ReflectMessage): Resource {
  const value = encode(message);
  return { name: plain<{ name: string }>(message).name, version: versionOf(value), body: { type_url: type, value } };
}

const versionOf = (value: Uint8Array): string => createHash('sha1').update(value).digest('base64url').slice(0, 16);

function patchResource(type: string, resource: Resource, { patches, plugins }: PatchSet, place: Place): Resource | undefined {
  const ofCluster = type === TYPE.cluster ? clusterPatches(resource.name, patches, place) : [];
  // There are many clusters, and few that are meant.
  if (type === TYPE.cluster && ofCluster.length === 0) return resource;
  const message = decode(MESSAGE_OF(type), resource.body.value);
  if (type === TYPE.cluster) {
    if (!patchCluster(message, ofCluster)) return undefined;
  } else if (type === TYPE.listener) {
    // Of a waypoint's the one that tunnels lead to is what its services are served by.
    if (place.context === 'WAYPOINT' && resource.name !== MAIN_INTERNAL) return resource;
    // Requests are what is inside of tunnels.
    if (plugins.length > 0 && resource.name !== CONNECT_TERMINATE) insertPlugins(message, plugins, place.context);
    if (!patchListener(message, patches, place)) return undefined;
  } else if (!patchRouteConfiguration(message, patches, place)) {
    return resource;
  }
  const value = encode(message);
  return value.equals(resource.body.value) ? resource : { name: resource.name, version: versionOf(value), body: { ...resource.body, value } };
}

/** A generator whose results pass through the proxy's EnvoyFilters. */
export class FilteredGenerator implements Generator {
  readonly typeUrl: string;
  readonly wildcard: boolean;

  constructor(readonly inner: Generator, readonly filters: EnvoyFilters) {
    this.typeUrl = inner.typeUrl;
    this.wildcard = inner.wildcard;
  }

  all(proxy: Proxy): Resource[] {
    const set = this.filters.setFor(proxy);
    const resources = this.inner.all(proxy);
    if (isEmpty(set)) return resources;
    const patched = resources.flatMap((resource) => this.filters.apply(proxy, set, this.typeUrl, resource) ?? []);
    const additions = this.filters.additions(proxy, set, this.typeUrl);
    if (additions.length === 0) return patched;
    // What is there already counts, as in Istio.
    const known = new Set(patched.map(({ name }) => name));
    return [...patched, ...additions.filter(({ name }) => !known.has(name))];
  }

  whole(proxy: Proxy, names: SharedNames | undefined): Whole | undefined {
    return isEmpty(this.filters.setFor(proxy)) ? this.inner.whole?.(proxy, names) : undefined;
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    const set = this.filters.setFor(proxy);
    if (isEmpty(set)) return this.inner.one(proxy, name);
    if (this.wildcard) return this.all(proxy).find((resource) => resource.name === name);
    const resource = this.inner.one(proxy, name);
    return resource && this.filters.apply(proxy, set, this.typeUrl, resource);
  }

  prepare(proxy: Proxy, service: MeshService): readonly Resource[] {
    return this.inner.prepare?.(proxy, service) ?? [];
  }

  isLarge(proxy: Proxy): boolean {
    return this.inner.isLarge?.(proxy) ?? false;
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    if (this.filters.affects(proxy, change)) return this.wildcard ? 'all' : names;
    return this.inner.affected(proxy, change, names);
  }

  invalidate(change: ChangeSet): void {
    this.inner.invalidate(change);
  }
}

/** EXTENSION_CONFIG patches, served to filters that discover their configuration (ECDS). */
export class ExtensionConfigGenerator implements Generator {
  readonly typeUrl = TYPE.extensionConfig;
  readonly wildcard = false;
  readonly #made = new WeakMap<PatchSet, ReadonlyMap<string, Resource>>();
  constructor(readonly filters: EnvoyFilters) {}

  all(): Resource[] {
    return [];
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    const set = this.filters.setFor(proxy);
    let made = this.#made.get(set);
    if (!made) {
      const adds = set.patches.filter(({ applyTo, operation }) => applyTo === 'EXTENSION_CONFIG' && operation === 'ADD');
      const resources = adds.map(({ value }) => resourceOf(this.typeUrl, value!));
      // Of several with one name the first counts.
      this.#made.set(set, (made = new Map(resources.reverse().map((resource) => [resource.name, resource]))));
    }
    return made.get(name);
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): Iterable<string> {
    return this.filters.affects(proxy, change) ? names : [];
  }

  invalidate(): void {
    // What was made goes with the set of filters that it is of.
  }
}
