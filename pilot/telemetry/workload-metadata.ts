/**
 * Clusters and endpoints for proxies that count by Istio's labels: Envoy's formatters read single texts of metadata, so what Istio
 * writes there as one text or as a list is written once more, part by part. Clients of the mesh tell servers who they are.
 */
import { PEER_HEADER } from '../../common/telemetry/peer-header.js';
import { pack, unpack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { HeaderMutation as Mutation } from '../../proto/generated/envoy/config/common/mutation_rules/v3/mutation_rules.js';
import { HeaderValueOption, HeaderValueOption_HeaderAppendAction, Metadata, type TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { HeaderMutation } from '../../proto/generated/envoy/extensions/filters/http/header_mutation/v3/header_mutation.js';
import { UpstreamCodec } from '../../proto/generated/envoy/extensions/filters/http/upstream_codec/v3/upstream_codec.js';
import type { HttpFilter } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { HttpProtocolOptions } from '../../proto/generated/envoy/extensions/upstreams/http/v3/http_protocol_options.js';
import { HTTP_PROTOCOL_OPTIONS } from '../generate/envoy.js';
import type { Generator, Names, SharedNames } from '../generate/generator.js';
import { ResourceList, type Whole } from '../generate/resource-list.js';
import { makeResource, TYPE, type Resource } from '../generate/resource.js';
import type { ChangeSet } from '../model/changes.js';
import type { MeshService } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';

/** Of what Istio calls a workload, as `istio.workload` of an endpoint has them, in its order: canonical name and revision after the namespace. */
export const WORKLOAD_PARTS = ['workload', 'namespace', 'name', 'revision', 'cluster'] as const;
export type WorkloadPart = (typeof WORKLOAD_PARTS)[number];
/** Namespaces of metadata. */
export const ENDPOINT_WORKLOAD = 'underpass.workload';
export const CLUSTER_SERVICE = 'underpass.service';
/** In filter state: what a proxy itself is, its parts with `;` between them. */
export const OWN_WORKLOAD = 'underpass.own';

const typed = <T>(name: string, codec: Parameters<typeof pack<T>>[0], message: T): HttpFilter =>
  ({ name, is_optional: false, disabled: false, config_type: { $case: 'typed_config', value: pack(codec, message) } });

/** Without `adds` only in the place of one that is there. */
const put = (value: string, adds = true): Partial<Mutation> => ({ action: { $case: 'append', value: HeaderValueOption.fromPartial({ header: { key: PEER_HEADER, value }, append_action: HeaderValueOption_HeaderAppendAction[adds ? 'OVERWRITE_IF_EXISTS_OR_ADD' : 'OVERWRITE_IF_EXISTS'] }) } });
const OWN_STATE = `%FILTER_STATE(${OWN_WORKLOAD}:PLAIN)%`;
/** Of an endpoint that takes the mesh's mutual TLS; of others there is none, and what has no value is not put. */
const TAKES_MTLS = '%UPSTREAM_METADATA(envoy.transport_socket_match:tlsMode)%';

/** What an application wrote there is dropped. */
const tell = (...mutations: Partial<Mutation>[]): readonly HttpFilter[] => [
  typed('underpass.workload', HeaderMutation, HeaderMutation.fromPartial({ mutations: { request_mutations: mutations } })),
  typed('envoy.filters.http.upstream_codec', UpstreamCodec, UpstreamCodec.fromPartial({})),
];
const tellAll = tell(put(OWN_STATE));
/** Only those that take mutual TLS: a program that is spoken to in plaintext, or by a tunnel, would see it. */
const tellMtls = tell({ action: { $case: 'remove', value: PEER_HEADER } }, put(TAKES_MTLS), put(OWN_STATE, false));

const withParts = (metadata: Metadata, namespace: string, parts: Readonly<Record<string, string>>): Metadata => ({ ...metadata, filter_metadata: { ...metadata.filter_metadata, [namespace]: parts } });

/** Of each endpoint whose workload is known. */
function withWorkloads(assignment: ClusterLoadAssignment): void {
  for (const { lb_endpoints } of assignment.endpoints) {
    for (const endpoint of lb_endpoints) {
      const workload: unknown = endpoint.metadata?.filter_metadata['istio']?.['workload'];
      if (!endpoint.metadata || typeof workload !== 'string') continue;
      const values = workload.split(';');
      // The revision that a workload has by default is left out there.
      const parts = WORKLOAD_PARTS.map((part, index) => [part, values[index] || (part === 'revision' ? 'latest' : '')] as const).filter(([, value]) => value !== '');
      endpoint.metadata = withParts(endpoint.metadata, ENDPOINT_WORKLOAD, Object.fromEntries(parts));
    }
  }
}

/** What a client of the mesh offers in the handshake of mutual TLS: see cluster-tls.ts. */
const MESH_ALPN = Buffer.from('istio-peer-exchange');

function isMesh(socket: TransportSocket | undefined): boolean {
  return socket?.config_type?.$case === 'typed_config' && Buffer.from(socket.config_type.value.value).includes(MESH_ALPN);
}

/** Filters that tell a cluster's endpoints who calls; undefined: none of them is to know. */
function whoIsTold({ transport_socket, transport_socket_matches: [first, ...more] }: Cluster): readonly HttpFilter[] | undefined {
  if (isMesh(transport_socket) || (isMesh(first?.transport_socket) && Object.keys(first?.match ?? {}).length === 0)) return tellAll;
  return [first, ...more].some((each) => isMesh(each?.transport_socket)) ? tellMtls : undefined;
}

/** Of no service: Istio's metrics have these names in its place. */
const PASSING = new Set(['PassthroughCluster', 'BlackHoleCluster', 'InboundPassthroughCluster']);

function labelledCluster(resource: Resource): Resource {
  const cluster = Cluster.decode(resource.body.value);
  const services: unknown = cluster.metadata?.filter_metadata['istio']?.['services'];
  const [service] = Array.isArray(services) ? (services as ({ host?: string; name?: string; namespace?: string } | undefined)[]) : [];
  const parts: Record<string, string> | undefined = PASSING.has(cluster.name) ? { name: cluster.name } : service && { host: service.host ?? '', name: service.name ?? '', namespace: service.namespace ?? '' };
  if (parts) cluster.metadata = withParts(cluster.metadata ?? Metadata.fromPartial({}), CLUSTER_SERVICE, parts);
  if (cluster.load_assignment) withWorkloads(cluster.load_assignment);
  const told = whoIsTold(cluster);
  if (told) {
    const options = unpack(HttpProtocolOptions, cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS]) ?? HttpProtocolOptions.fromPartial({ upstream_protocol_options: { $case: 'explicit_http_config', value: { protocol_config: { $case: 'http_protocol_options', value: {} } } } });
    if (options.http_filters.length === 0) cluster.typed_extension_protocol_options[HTTP_PROTOCOL_OPTIONS] = pack(HttpProtocolOptions, { ...options, http_filters: [...told] });
  }
  return makeResource(resource.name, Cluster, cluster);
}

function labelledEndpoints(resource: Resource): Resource {
  const assignment = ClusterLoadAssignment.decode(resource.body.value);
  withWorkloads(assignment);
  return makeResource(resource.name, ClusterLoadAssignment, assignment);
}

/** A generator whose clusters, or endpoints, are those of the other one with such metadata, for proxies that count. What is shared stays shared. */
export class LabelledGenerator implements Generator {
  readonly typeUrl: string;
  readonly wildcard: boolean;
  readonly #label: (resource: Resource) => Resource;
  readonly #made = new WeakMap<Resource, Resource>();
  readonly #lists = new WeakMap<ResourceList, ResourceList>();

  constructor(readonly inner: Generator) {
    this.typeUrl = inner.typeUrl;
    this.wildcard = inner.wildcard;
    this.#label = this.typeUrl === TYPE.cluster ? labelledCluster : labelledEndpoints;
  }

  #of(resource: Resource): Resource {
    let made = this.#made.get(resource);
    if (!made) this.#made.set(resource, (made = this.#label(resource)));
    return made;
  }

  all(proxy: Proxy): Resource[] {
    const resources = this.inner.all(proxy);
    return proxy.canCount ? resources.map((resource) => this.#of(resource)) : resources;
  }

  one(proxy: Proxy, name: string): Resource | undefined {
    const resource = this.inner.one(proxy, name);
    return resource && proxy.canCount ? this.#of(resource) : resource;
  }

  whole(proxy: Proxy, names: SharedNames | undefined): Whole | undefined {
    const whole = this.inner.whole?.(proxy, names);
    if (!whole || !proxy.canCount) return whole;
    let shared = this.#lists.get(whole.shared);
    if (!shared) this.#lists.set(whole.shared, (shared = new ResourceList(whole.shared.resources.map((resource) => this.#of(resource)))));
    return { shared, own: whole.own.map((resource) => this.#of(resource)) };
  }

  prepare(proxy: Proxy, service: MeshService): readonly Resource[] {
    const resources = this.inner.prepare?.(proxy, service) ?? [];
    return proxy.canCount ? resources.map((resource) => this.#of(resource)) : resources;
  }

  isLarge(proxy: Proxy): boolean {
    return this.inner.isLarge?.(proxy) ?? false;
  }

  affected(proxy: Proxy, change: ChangeSet, names: Names): 'all' | Iterable<string> {
    return this.inner.affected(proxy, change, names);
  }

  forget(watched: () => Iterable<Names>): void {
    this.inner.forget?.(watched);
  }

  invalidate(change: ChangeSet): void {
    this.inner.invalidate(change);
  }
}
