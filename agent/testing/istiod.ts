/**
 * A server that answers as a recorded istiod: what it says of each step is the recording's, how it says it is what was seen of
 * istiod (whole lists of listeners and routes, empty answers for what it does not know, silence after a NACK or a stale nonce).
 */
import { TestControlPlane, type ControlPlaneSecurity, type TestStream } from './control-plane.js';
import type { RecordedSession, Recording } from './recording.js';
import { pack, typeUrl } from '../../common/xds/any.js';
import { waitFor } from '../../common/retry.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { DeltaDiscoveryRequest, Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { Authorization } from '../../proto/generated/istio/security/authorization.js';
import { Address } from '../../proto/generated/istio/workload/workload.js';

const [CDS, EDS, LDS, RDS, WDS, AUTHORIZATIONS] = [Cluster, ClusterLoadAssignment, Listener, RouteConfiguration, Address, Authorization].map((type) => typeUrl(type)) as [string, string, string, string, string, string];
const NAMED: ReadonlySet<string> = new Set([EDS, RDS]);
const KNOWN: ReadonlySet<string> = new Set([CDS, EDS, LDS, RDS, WDS, AUTHORIZATIONS]);

const INBOUND: ReadonlySet<string> = new Set(['virtualInbound', 'main_internal', 'connect_terminate']);

/** What a client of that type would have after a step, by name. */
type Held = Map<string, Resource>;

interface Push {
  type: string;
  resources: readonly Resource[];
  removed: readonly string[];
}

export class RecordedIstiod extends TestControlPlane {
  /** By node id, of each session the newest state by type. */
  readonly #held = new Map<RecordedSession, Map<string, Held>>();
  /** Listeners, as the first push had them. */
  readonly #first = new Map<RecordedSession, Held>();
  #step = -1;

  /** @param sessions those that are served, of recorded clients and at most one of a node */
  constructor(address: string, readonly recording: Recording, readonly sessions: readonly RecordedSession[], security?: ControlPlaneSecurity) {
    super(address, security);
    this.onRequest = (stream, request) => this.#answer(stream, request);
  }

  /** @param nodeId a ztunnel's is of whoever asks for workloads; of a pod that was not recorded, one of its namespace */
  sessionOf(nodeId: string): RecordedSession | undefined {
    const namespace = (id: string): string | undefined => id.split('~')[3];
    return this.sessions.find(({ node }) => node === nodeId || (node.startsWith('ztunnel~') && nodeId.startsWith('ztunnel~')))
      ?? this.sessions.find(({ node }) => node.startsWith('sidecar~') && nodeId.startsWith('sidecar~') && namespace(node) === namespace(nodeId));
  }

  /** A pod that was not recorded has not the recorded one's policies: its inbound side stays as the first step has it. */
  #asFor(stream: TestStream, session: RecordedSession, type: string, resources: readonly Resource[]): readonly Resource[] {
    if (type !== LDS || session.node === stream.nodeId || !session.node.startsWith('sidecar~')) return resources;
    return resources.map((resource) => (INBOUND.has(resource.name) ? (this.#first.get(session)?.get(resource.name) ?? resource) : resource));
  }

  /** Goes to a step of the recording, and pushes what istiod pushed then; resolves when every stream has answered. */
  async goTo(step: number): Promise<void> {
    const answers: Promise<void>[] = [];
    for (const session of this.sessions) {
      const pushes = this.#take(session, this.#step, step);
      // What the first step said is what each stream asks for by itself.
      if (this.#step < 0) continue;
      for (const stream of this.live) if (this.sessionOf(stream.nodeId) === session) answers.push(this.#pushAll(stream, pushes.map((push) => ({ ...push, resources: this.#asFor(stream, session, push.type, push.resources) }))));
    }
    this.#step = step;
    await Promise.all(answers);
  }

  get live(): readonly TestStream[] {
    return this.streams.filter((stream) => !stream.ended && stream.nodeId !== '');
  }

  async #pushAll(stream: TestStream, pushes: readonly Push[]): Promise<void> {
    for (const { type, resources, removed } of pushes) {
      const asked = stream.subscribed.get(type);
      if (!asked) continue;
      // What the recorded client had asked for when it came this one has to ask for too; what it never asks for is not sent.
      const isWanted = (name: string): boolean => !NAMED.has(type) || asked.has(name);
      await waitFor(`${type} to be asked for`, () => resources.every(({ name }) => isWanted(name)), { timeoutMs: 2_000, everyMs: 5 }).catch(() => undefined);
      const sent = resources.filter(({ name }) => isWanted(name));
      if (sent.length === 0 && removed.length === 0) continue;
      await stream.answered(stream.send({ type_url: type, resources: sent, removed_resources: [...removed] })).catch((error: unknown) => {
        if (!stream.ended) throw error;
      });
    }
  }

  /** Takes the steps after `from` up to `to` into what a session holds. */
  #take(session: RecordedSession, from: number, to: number): Push[] {
    const held = this.#held.get(session) ?? new Map<string, Held>();
    this.#held.set(session, held);
    return session.events.flatMap((event) => {
      if (event.dir !== 'recv' || event.step <= from || event.step > to) return [];
      const { type_url: type, resources, removed_resources: removed } = this.recording.response(event);
      const of = held.get(type) ?? new Map<string, Resource>();
      held.set(type, of);
      for (const resource of resources) of.set(resource.name, resource);
      if (type === LDS && !this.#first.has(session)) this.#first.set(session, new Map(of));
      for (const name of removed) of.delete(name);
      return { type, resources, removed };
    });
  }

  #answer(stream: TestStream, request: DeltaDiscoveryRequest): void {
    const session = this.sessionOf(stream.nodeId);
    const { type_url: type, resource_names_subscribe: subscribed, resource_names_unsubscribe: unsubscribed, initial_resource_versions: known } = request;
    if (!KNOWN.has(type)) return;
    const isFirst = stream.requests.filter((of) => of.type_url === type).length === 1;
    // Where no node was recorded the mesh has no workloads.
    if (!session) return void (isFirst && stream.nodeId.startsWith('ztunnel~') && stream.send({ type_url: type }));
    // An ACK, a NACK or a stale nonce alone has no answer.
    if (!isFirst && subscribed.length === 0) return;
    if (NAMED.has(type) && subscribed.length === 0 && unsubscribed.length > 0) return;
    const held = this.#held.get(session)?.get(type) ?? new Map<string, Resource>();
    if (NAMED.has(type)) return void stream.send({ type_url: type, resources: subscribed.map((name) => held.get(name) ?? nothing(type, name)) });
    // Of all types only workloads have versions that spare anything.
    const resources = [...held.values()].filter(({ name, version }) => type !== WDS || version === '' || known[name] !== version);
    const removed = Object.keys(known).filter((name) => !held.has(name));
    stream.send({ type_url: type, resources: [...this.#asFor(stream, session, type, resources)], removed_resources: removed });
  }
}

/** istiod's word for what it does not know. */
function nothing(type: string, name: string): Resource {
  const resource = type === EDS ? pack(ClusterLoadAssignment, ClusterLoadAssignment.fromPartial({ cluster_name: name })) : pack(RouteConfiguration, RouteConfiguration.fromPartial({ name }));
  return { name, resource, version: '', aliases: [], resource_name: undefined, ttl: undefined, cache_control: undefined, metadata: undefined };
}
