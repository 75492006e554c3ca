/**
 * Kubernetes' `sessionAffinity: ClientIP` in WDS, which has no field for it: an extension of the Service, which Istio's clients
 * pass over. Istiod sends none, and so nobody keeps to an endpoint under it, as Istio's own proxies do not.
 */
import { Duration } from '../../proto/generated/google/protobuf/duration.js';
import type { Extension } from '../../proto/generated/istio/workload/workload.js';
import { pack, unpack } from './any.js';

const NAME = 'underpass.io/session-affinity';

/** @param timeoutSeconds of kube-proxy's memory; here a client keeps to its endpoint for as long as that is there */
export function clientAffinity(timeoutSeconds: number): Extension {
  return { name: NAME, config: pack(Duration, { seconds: BigInt(timeoutSeconds), nanos: 0 }) };
}

export function hasClientAffinity(extensions: readonly Extension[]): boolean {
  return extensions.some(({ name, config }) => name === NAME && unpack(Duration, config) !== undefined);
}
