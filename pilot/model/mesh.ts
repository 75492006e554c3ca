/** Mesh-wide settings, with Istio's defaults and names. */
export interface MeshConfig {
  /** The SPIFFE trust domain of all identities. */
  trustDomain: string;
  /** The DNS suffix of services: `<name>.<namespace>.svc.<clusterDomain>`. */
  clusterDomain: string;
  clusterId: string;
  /** What happens to traffic towards hosts that are no service. */
  outboundTrafficPolicy: 'ALLOW_ANY' | 'REGISTRY_ONLY';
}

export const DEFAULT_MESH_CONFIG: MeshConfig = {
  trustDomain: 'cluster.local',
  clusterDomain: 'cluster.local',
  clusterId: 'Kubernetes',
  outboundTrafficPolicy: 'ALLOW_ANY',
};
