/** Mesh-wide settings in force: Istio's MeshConfig as far as it is acted on, with Istio's defaults and names. */
export interface MeshConfig {
  /** The SPIFFE trust domain of all identities. */
  trustDomain: string;
  /** Trust domains that count as this one in policies and certificates of peers. */
  trustDomainAliases: readonly string[];
  /** The DNS suffix of services: `<name>.<namespace>.svc.<clusterDomain>`. */
  clusterDomain: string;
  clusterId: string;
  /** The network of workloads that say none; empty in a mesh of one network. */
  network: string;
  /** Where mesh-wide policies, rules and filters live. */
  rootNamespace: string;
  /** What happens to traffic towards hosts that are no service. */
  outboundTrafficPolicy: 'ALLOW_ANY' | 'REGISTRY_ONLY';
  defaultServiceExportTo: readonly string[];
  defaultVirtualServiceExportTo: readonly string[];
  defaultDestinationRuleExportTo: readonly string[];
}

export const DEFAULT_MESH_CONFIG: MeshConfig = {
  trustDomain: 'cluster.local',
  trustDomainAliases: [],
  clusterDomain: 'cluster.local',
  clusterId: 'Kubernetes',
  network: '',
  rootNamespace: 'istio-system',
  outboundTrafficPolicy: 'ALLOW_ANY',
  defaultServiceExportTo: ['*'],
  defaultVirtualServiceExportTo: ['*'],
  defaultDestinationRuleExportTo: ['*'],
};
