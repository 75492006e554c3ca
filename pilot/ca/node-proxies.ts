/** Which callers are proxies of nodes, and of which node: they may ask for the identities of its pods, and speak for their health. */
import type { WorkloadIdentity } from '../../common/identity/spiffe.js';
import type { PeerIdentity } from './peer-identity.js';

/** ztunnel's, which Istio's CA_TRUSTED_NODE_ACCOUNTS has, and the installed agent's: one that nobody installs is anybody's to make. */
export const DEFAULT_NODE_ACCOUNTS = ['istio-system/ztunnel', 'underpass-system/underpass-agent'];

/** What is known of where pods run. */
export interface NodeDirectory {
  /** Of the pod, when it exists, runs under this account and, where one is given, has this uid. */
  nodeOfPod(pod: { namespace: string; name: string; uid?: string; serviceAccount: string }): string | undefined;
  /** Whether any pod of this identity runs on the node. */
  runsOnNode(nodeName: string, identity: Pick<WorkloadIdentity, 'namespace' | 'serviceAccount'>): boolean;
}

export class NodeProxies {
  /** @param accounts `namespace/service-account` of the proxies of nodes */
  constructor(readonly directory: NodeDirectory, readonly accounts: readonly string[] = DEFAULT_NODE_ACCOUNTS) {}

  /** The node whose proxy the caller is, or why it is none. */
  nodeOf(caller: PeerIdentity): { node: string } | { refusal: string } {
    if (!this.accounts.includes(`${caller.namespace}/${caller.serviceAccount}`)) return { refusal: 'only proxies of nodes may ask for it' };
    if (caller.pod === undefined) return { refusal: 'the caller has not proven which pod it is' };
    const node = this.directory.nodeOfPod({ namespace: caller.namespace, name: caller.pod, serviceAccount: caller.serviceAccount, ...(caller.podUid === undefined ? {} : { uid: caller.podUid }) });
    if (node === undefined || (caller.nodeName !== undefined && caller.nodeName !== node)) return { refusal: "the caller's pod is not known" };
    return { node };
  }
}
