/**
 * Istio's labels of its metrics, from what the control plane says of workloads and services (WDS), as ztunnel makes
 * them: https://github.com/istio/ztunnel/blob/master/src/proxy/metrics.rs. One label differs: ztunnel names the source's
 * principal only where mutual TLS proved it, here the kernel knows whose socket it is. `response_flags` is what an open
 * connection has; how it ended is told by flow-metrics.ts.
 */
import type { Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { Address } from '../../proto/generated/istio/workload/workload.js';
import { DEFAULT_TRUST_DOMAIN, spiffeId } from '../../common/identity/spiffe.js';
import type { FlowKey, FlowSideName } from '../dataplane/kernel-flows.js';
import type { HttpService } from '../http/table.js';
import { UNKNOWN } from '../../common/telemetry/istio-metrics.js';
import { encodeAddress } from '../dataplane/kernel-codec.js';
import { addressText } from '../workloads/address-text.js';

/** The part of the WDS stream that labels come from. */
export interface KnownWorkloads {
  readonly addresses: ReadonlyMap<string, { readonly message: Address }>;
  readonly synced: boolean;
  /** Grows with every change. */
  readonly revision: number;
  /** Of workloads and services that have the address; absent: all are looked through. */
  namesAt?(address: string): readonly string[];
}

/** @param index of the same workloads by their addresses; undefined where there is none */
export function knownWorkloads(workloads: KnownWorkloads, index: { namesAt(address: string): readonly string[] } | undefined): KnownWorkloads {
  if (!index) return workloads;
  return {
    get addresses() {
      return workloads.addresses;
    },
    get synced() {
      return workloads.synced;
    },
    get revision() {
      return workloads.revision;
    },
    namesAt: (address) => index.namesAt(address),
  };
}

/** A pod of this node by its addresses. */
export interface FlowPod {
  netnsCookie: bigint;
  addresses: readonly string[];
}

export type FlowLabels = Readonly<Record<string, string>>;

export interface FlowEnds {
  source: Workload | undefined;
  destination: Workload | undefined;
  /** That the client asked for; what a server that was asked for by its own address stands for is guessed by its port. */
  service: Service | undefined;
}

export interface RequestFacts {
  status: number;
  flags: string;
  protocol?: string;
  security?: string;
  /** In place of others, or beside them. */
  more?: Record<string, string>;
}

export { UNKNOWN };

/** What found no room is added up under these labels, so that totals over all series stay right: OpenTelemetry's name for it. */
export const OVERFLOW: FlowLabels = { otel_metric_overflow: 'true' };

/** Looks workloads and services up by address; only those that flows name are kept. */
export class FlowDirectory {
  readonly #known: KnownWorkloads;
  readonly #trustDomain: string | undefined;
  #revision = -1;
  /** Addresses as they were asked for, and as bytes in hex. */
  #asked = new Set<string>();
  #wanted = new Set<string>();
  #wantedNames: ReadonlySet<string> = new Set();
  #workloads = new Map<string, Workload>();
  #services = new Map<string, Service>();
  readonly #named = new Map<string, Workload>();

  constructor(known: KnownWorkloads, trustDomain?: string) {
    this.#known = known;
    this.#trustDomain = trustDomain;
  }

  get synced(): boolean {
    return this.#known.synced;
  }

  /** Of what labels are made of. */
  get revision(): number {
    return this.#known.revision;
  }

  /**
   * Looks for them when workloads have changed, or others are asked for, since it last did.
   * @param names of workloads, see `named`
   */
  prepare(addresses: Iterable<string>, names: ReadonlySet<string> = new Set()): void {
    const asked = new Set(addresses);
    const isKnown = this.#revision === this.#known.revision && [...asked].every((address) => this.#asked.has(address)) && [...names].every((name) => this.#wantedNames.has(name));
    if (isKnown) return;
    this.#revision = this.#known.revision;
    this.#asked = asked;
    this.#wanted = new Set([...asked].map(keyOf));
    this.#wantedNames = names;
    this.#named.clear();
    this.#workloads = new Map();
    this.#services = new Map();
    for (const { message: { type } } of this.#candidates(asked)) {
      if (type?.$case === 'workload') {
        this.#add(this.#workloads, type.value, type.value.addresses);
        if (names.size > 0) this.#addName(type.value);
      } else if (type?.$case === 'service') this.#add(this.#services, type.value, type.value.addresses.map(({ address }) => address));
    }
  }

  /** A mesh has tens of thousands, of which this node's telemetry names few. */
  *#candidates(asked: ReadonlySet<string>): Iterable<{ readonly message: Address }> {
    const { addresses } = this.#known;
    if (!this.#known.namesAt || this.#wantedNames.size > 0) return yield* addresses.values();
    for (const name of new Set([...asked].flatMap((address) => this.#known.namesAt!(addressText(encodeAddress(address)))))) {
      const found = addresses.get(name);
      if (found) yield found;
    }
  }

  workload(addresses: readonly string[]): Workload | undefined {
    for (const address of addresses) {
      const found = this.#workloads.get(keyOf(address));
      if (found) return found;
    }
    return undefined;
  }

  /**
   * @param name `workload;namespace;canonical name;canonical revision;cluster`, as Istio has it in the metadata of endpoints, where
   * the revision that a workload has by default is left out
   */
  named(name: string): Workload | undefined {
    return this.#named.get(withRevision(name));
  }

  service(address: string): Service | undefined {
    return this.#services.get(keyOf(address));
  }

  /** The first service of its own namespace, else of any, that leads to this port of a workload. */
  serviceOf(workload: Workload, port: number): Service | undefined {
    const own = `${workload.namespace}/`;
    const names = Object.keys(workload.services)
      .filter((name) => workload.services[name]?.ports.some(({ target_port }) => target_port === port))
      .sort((x, y) => Number(y.startsWith(own)) - Number(x.startsWith(own)) || (x < y ? -1 : 1));
    for (const name of names) {
      const found = this.#known.addresses.get(name)?.message.type;
      if (found?.$case === 'service') return found.value;
    }
    return undefined;
  }

  labels(side: FlowSideName, { source, destination, service }: FlowEnds, key: FlowKey): FlowLabels {
    // As in ztunnel: a client that asked for a pod's own address named no service, while its server knows which it serves.
    const named = service ?? (side === 'destination' && destination && !key.service ? this.serviceOf(destination, key.endpointPort) : undefined);
    // An address proves nothing.
    return { ...this.endLabels(side, { source, destination, service: named }), ...(key.peer === undefined ? {} : { source_principal: UNKNOWN }) };
  }

  /** Of connections. What the service is is known, and no guess. */
  endLabels(side: FlowSideName, { source, destination, service: named }: { source: Workload | undefined; destination: Workload | undefined; service: HttpService | undefined }): FlowLabels {
    return {
      reporter: side,
      ...workloadLabels('source', source, this.#trustDomain),
      destination_service: named?.hostname || UNKNOWN,
      destination_service_namespace: named?.namespace || UNKNOWN,
      destination_service_name: named?.name || UNKNOWN,
      ...workloadLabels('destination', destination, this.#trustDomain),
      request_protocol: 'tcp',
      response_flags: '-',
      // Within the node nothing is encrypted, and so nobody is told that it is.
      connection_security_policy: UNKNOWN,
      // Of both ends as soon as one is known; ztunnel has no subzone.
      ...(source || destination ? { ...localityLabels('source', source), ...localityLabels('destination', destination) } : {}),
    };
  }

  /** Of HTTP requests, but for the reporter. What the route led to is known, so the service is no guess. */
  requestLabels({ source, destination, service }: { source: Workload | undefined; destination: Workload | undefined; service: HttpService | undefined }, { status, flags, protocol = 'http', security = UNKNOWN, more = {} }: RequestFacts): FlowLabels {
    return {
      ...workloadLabels('source', source, this.#trustDomain),
      destination_service: service?.hostname || UNKNOWN,
      destination_service_namespace: service?.namespace || UNKNOWN,
      destination_service_name: service?.name || UNKNOWN,
      ...workloadLabels('destination', destination, this.#trustDomain),
      request_protocol: protocol,
      response_code: `${status}`,
      response_flags: flags,
      connection_security_policy: security,
      ...more,
    };
  }

  #addName(workload: Workload): void {
    const name = withRevision([workload.workload_name, workload.namespace, workload.canonical_name, workload.canonical_revision, workload.cluster_id].join(';'));
    if (!this.#named.has(name)) this.#named.set(name, workload);
  }

  #add<T>(to: Map<string, T>, value: T, addresses: readonly Uint8Array[]): void {
    for (const address of addresses) {
      const key = Buffer.from(address.buffer, address.byteOffset, address.byteLength).toString('hex');
      const mapped = address.byteLength === 4 ? MAPPED + key : key;
      if (this.#wanted.has(mapped) && !to.has(mapped)) to.set(mapped, value);
    }
  }
}

function withRevision(name: string): string {
  const parts = name.split(';');
  parts[3] ||= 'latest';
  return parts.join(';');
}

const MAPPED = '00000000000000000000ffff';

function keyOf(address: string): string {
  return encodeAddress(address).toString('hex');
}

function localityLabels(end: FlowSideName, workload: Workload | undefined): Record<string, string> {
  return { [`${end}_region`]: workload?.locality?.region || UNKNOWN, [`${end}_zone`]: workload?.locality?.zone || UNKNOWN };
}

function workloadLabels(end: FlowSideName, workload: Workload | undefined, trustDomain: string | undefined): Record<string, string> {
  const principal = workload && spiffeId({
    trustDomain: trustDomain ?? (workload.trust_domain || DEFAULT_TRUST_DOMAIN), namespace: workload.namespace, serviceAccount: workload.service_account || 'default',
  });
  return {
    [`${end}_workload`]: workload?.workload_name || UNKNOWN,
    [`${end}_canonical_service`]: workload?.canonical_name || UNKNOWN,
    [`${end}_canonical_revision`]: workload?.canonical_revision || UNKNOWN,
    [`${end}_workload_namespace`]: workload?.namespace || UNKNOWN,
    [`${end}_principal`]: principal ?? UNKNOWN,
    [`${end}_app`]: workload?.canonical_name || UNKNOWN,
    [`${end}_version`]: workload?.canonical_revision || UNKNOWN,
    [`${end}_cluster`]: workload?.cluster_id || UNKNOWN,
  };
}
