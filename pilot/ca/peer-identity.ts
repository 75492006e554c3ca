/** Who a caller has proven to be, and what that allows it to ask for. */
import type { WorkloadIdentity } from '../../common/identity/spiffe.js';
import type { Proxy } from '../model/proxy.js';

export interface PeerIdentity extends WorkloadIdentity {
  pod?: string;
  podUid?: string;
  /** Of a token that says it. */
  nodeName?: string;
  /** When what proves it runs out, in milliseconds since 1970. */
  expiresAt?: number;
  via: 'certificate' | 'token' | 'token-review';
}

/** Why this caller may not ask as that node; undefined when it may. As istiod's port 15012 judges. */
export function nodeIdRefusal(proxy: Pick<Proxy, 'namespace' | 'serviceAccount'>, identity: PeerIdentity): string | undefined {
  if (proxy.namespace !== identity.namespace) return `the caller's identity is of namespace ${identity.namespace}, its node id says ${proxy.namespace}`;
  const { serviceAccount } = proxy;
  if (serviceAccount && serviceAccount !== identity.serviceAccount) return `the caller's identity is of service account ${identity.serviceAccount}, its metadata says ${serviceAccount}`;
  return undefined;
}
