/** EnvoyFilter's patches, compiled. Names are Istio's. */
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';
import type { EnvoyClusterMatch, EnvoyFilterApplyTo, EnvoyFilterOperation, EnvoyListenerMatch, EnvoyRouteConfigurationMatch } from '../../common/kube/types.js';

export type Operation = Exclude<EnvoyFilterOperation, 'MERGE_AND_REPLACE_LIST'>;
export type FilterClass = 'AUTHN' | 'AUTHZ' | 'STATS';
export type PatchContext = 'SIDECAR_INBOUND' | 'SIDECAR_OUTBOUND' | 'GATEWAY';

export interface CompiledPatch {
  applyTo: EnvoyFilterApplyTo;
  operation: Operation;
  filterClass: FilterClass | undefined;
  contexts: ReadonlySet<PatchContext>;
  proxyVersion: RegExp | undefined;
  proxyMetadata: Readonly<Record<string, string>>;
  listener: EnvoyListenerMatch;
  route: EnvoyRouteConfigurationMatch;
  cluster: EnvoyClusterMatch;
  /** Absent for REMOVE. */
  value: ReflectMessage | undefined;
}
