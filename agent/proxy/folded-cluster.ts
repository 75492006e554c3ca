/**
 * Clusters and their endpoints as they are folded, held as what they are folded from: the control plane's bytes, and the little that
 * is asked of all of them at each change. Their messages are made when somebody reads them.
 */
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { recentMessages } from '../xds/recent.js';
import { contentHash, sizeOf, type XdsResource } from '../xds/resource-type.js';
import { foldAssignment, hasTlsMode, socketEndpoints } from './fold-endpoints.js';
import type { Content } from './variants.js';

/** A cluster, its endpoints, and what its messages are made from: the same object, the same content. */
export interface ClusterSource {
  readonly name: string;
  readonly cluster: Cluster;
  readonly assignment: ClusterLoadAssignment | undefined;
  /** `address port`, one after the other, of those endpoints that have both. */
  readonly targets: readonly string[];
}

export class FoldedEndpoints {
  readonly hash: string;
  /** Joined, since a mesh has very many. */
  readonly #targets: string;
  /** Addresses of those that ask for the mesh's mutual TLS; '' for one that has none. */
  readonly tlsAddresses: readonly string[];

  constructor(readonly source: XdsResource<ClusterLoadAssignment>) {
    const { assignment } = this;
    this.hash = contentHash(ClusterLoadAssignment, assignment);
    this.#targets = targetsOf(assignment).join();
    this.tlsAddresses = tlsAddresses(assignment);
  }

  get assignment(): ClusterLoadAssignment {
    return recentMessages.get(this, sizeOf(this.source.any), () => foldAssignment(this.source.message));
  }

  get targets(): readonly string[] {
    return this.#targets === '' ? [] : this.#targets.split(',');
  }
}

/** For one account, without endpoints of its own. */
export class FoldedBase {
  readonly hash: string;
  readonly account: string | undefined;
  /** Of endpoints that the cluster itself has. */
  readonly targets: readonly string[];
  #joined: FoldedCluster | undefined;

  /** @param accountOf of a cluster that is one account's alone */
  constructor(readonly source: XdsResource<Cluster>, readonly fold: (source: Cluster) => Cluster, hashOf: (cluster: Cluster) => string, accountOf: (cluster: Cluster) => string | undefined) {
    const { cluster } = this;
    this.hash = hashOf(cluster);
    this.account = accountOf(cluster);
    this.targets = cluster.load_assignment ? targetsOf(cluster.load_assignment) : NONE;
  }

  get cluster(): Cluster {
    return recentMessages.get(this, sizeOf(this.source.any), () => this.fold(this.source.message));
  }

  /** One for all classes that have it with these endpoints. */
  with(endpoints: FoldedEndpoints | undefined): FoldedCluster {
    if (this.#joined?.endpoints !== endpoints || !this.#joined) this.#joined = new FoldedCluster(this, endpoints);
    return this.#joined;
  }
}

export class FoldedCluster implements Content, ClusterSource {
  readonly hash: string;

  constructor(readonly base: FoldedBase, readonly endpoints: FoldedEndpoints | undefined) {
    this.hash = `${base.hash}${endpoints?.hash ?? ''}`;
  }

  get name(): string {
    return this.base.source.name;
  }

  get account(): string | undefined {
    return this.base.account;
  }

  get cluster(): Cluster {
    return this.base.cluster;
  }

  get assignment(): ClusterLoadAssignment | undefined {
    return this.endpoints?.assignment;
  }

  get targets(): readonly string[] {
    return this.endpoints?.targets ?? this.base.targets;
  }
}

const NONE: readonly string[] = [];

function targetsOf(assignment: ClusterLoadAssignment): string[] {
  return socketEndpoints(assignment).map(({ address, port }) => `${address} ${port}`);
}

export function tlsAddresses(assignment: ClusterLoadAssignment): readonly string[] {
  const addresses = new Map(socketEndpoints(assignment).map(({ item, address }) => [item, address]));
  const found = assignment.endpoints.flatMap(({ lb_endpoints }) => lb_endpoints.filter(hasTlsMode).map((item) => addresses.get(item) ?? ''));
  return found.length === 0 ? NONE : found;
}
