/** What the generators see of services and their endpoints, wherever they come from: Services, ServiceEntries, other clusters. */
import type { KubeObject, Pod } from '../../common/kube/types.js';
import type { ExportTo } from './export-to.js';
import type { Protocol } from './protocol.js';

export interface MeshPort {
  name: string;
  port: number;
  targetPort: number | string;
  protocol: Protocol;
}

/**
 * How a client finds the endpoints: by EDS, by DNS (all addresses, or one of them at a time), or not at all, since the
 * connection's original destination is one already.
 */
export type Resolution = 'EDS' | 'DNS' | 'DNS_ROUND_ROBIN' | 'ORIGINAL_DST';

export interface MeshService {
  /** A host may exist in several namespaces, and in one of them as Service and as ServiceEntry: unlike for each. */
  key: string;
  host: string;
  name: string;
  namespace: string;
  /** Without `None`; empty for a headless service. */
  addresses: readonly string[];
  /** Of a Service in several clusters: its addresses in each, by the cluster's name. */
  clusterAddresses?: Readonly<Record<string, readonly string[]>>;
  /** Address blocks of a ServiceEntry, in CIDR notation. */
  cidrs: readonly string[];
  /** Given to a ServiceEntry that has no addresses, for clients whose DNS is captured and for WDS. */
  autoAddresses: readonly string[];
  headless: boolean;
  resolution: Resolution;
  /** Outside of the mesh (ServiceEntry MESH_EXTERNAL): plaintext unless a DestinationRule says otherwise. */
  external: boolean;
  /** TCP ports only. */
  ports: readonly MeshPort[];
  udpPorts: readonly MeshPort[];
  selector: Readonly<Record<string, string>>;
  /** Names in the server's certificate, where no DestinationRule says which. */
  subjectAltNames: readonly string[];
  /** Kubernetes' `trafficDistribution`: `PreferClose` and its kin; empty for none. */
  trafficDistribution: string;
  exportTo: ExportTo;
  createdAt: string;
  /** The Service or ServiceEntry. */
  object: KubeObject;
}

export interface Locality {
  region: string;
  zone: string;
  subzone: string;
}

export interface Endpoint {
  /** An IP address, a host name (resolution by DNS), or `unix:///path`. */
  address: string;
  /** By the Service's port name. */
  ports: ReadonlyMap<string, number>;
  /** Undefined where nothing is known of its health: what a WorkloadEntry says. */
  ready: boolean | undefined;
  locality: Locality;
  pod: Pod | undefined;
  /** Where it is no pod: the name of the WorkloadEntry or ServiceEntry that it comes from. */
  workloadName: string | undefined;
  labels: Readonly<Record<string, string>>;
  /** Of the workload; for its SPIFFE id and for telemetry. */
  namespace: string | undefined;
  serviceAccount: string | undefined;
  /** `istio` when the workload has a sidecar that takes mutual TLS. */
  tlsMode: string | undefined;
  /** Share of the requests within its locality, 1 unless a WorkloadEntry says otherwise. */
  weight: number;
  /** Where it runs; empty is the mesh's one network, reached from everywhere. */
  network: string;
  cluster: string;
}
