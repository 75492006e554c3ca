/** EnvoyFilter's patches, compiled. Names are Istio's. */
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';
import type { RE2JS } from 're2js';
import type { EnvoyClusterMatch, EnvoyFilterApplyTo, EnvoyFilterOperation, EnvoyListenerMatch, EnvoyRouteConfigurationMatch } from '../../common/kube/types.js';

export type FilterClass = 'AUTHN' | 'AUTHZ' | 'STATS';
export type PatchContext = 'SIDECAR_INBOUND' | 'SIDECAR_OUTBOUND' | 'GATEWAY' | 'WAYPOINT';

/** Where a resource stands, beside its name: what patches may ask for. */
export interface Place {
  context: PatchContext;
  /** Of an inbound cluster: the services that it serves. */
  hosts: readonly string[];
  /** Of a gateway's routes: the ports of its servers, which are not always those that its pod listens on. */
  ports: readonly number[];
}

export interface CompiledPatch {
  applyTo: EnvoyFilterApplyTo;
  operation: EnvoyFilterOperation;
  filterClass: FilterClass | undefined;
  contexts: ReadonlySet<PatchContext>;
  proxyVersion: RE2JS | undefined;
  proxyMetadata: Readonly<Record<string, string>>;
  listener: EnvoyListenerMatch;
  route: EnvoyRouteConfigurationMatch;
  cluster: EnvoyClusterMatch;
  /** Absent for REMOVE. */
  value: ReflectMessage | undefined;
}

export const isMerge = ({ operation }: CompiledPatch): boolean => operation === 'MERGE' || operation === 'MERGE_AND_REPLACE_LIST';
