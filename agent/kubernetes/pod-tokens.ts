/**
 * Tokens of the accounts that pods of this node run under, for a CA that does not take the agent's word: the API server makes
 * one that is bound to such a pod and ends with it, for the CA alone.
 */
import { UnderpassError } from '../../common/errors.js';
import { CA_AUDIENCE } from '../../common/identity/service-account-token.js';
import { spiffeId, type WorkloadIdentity } from '../../common/identity/spiffe.js';
import { isRefusal, resourceOf, resourcePath, type KubeClient } from '../../common/kube/client.js';
import type { PodRecord } from '../workloads/source.js';

const SERVICE_ACCOUNTS = resourceOf('v1', 'ServiceAccount');
/** The least that Kubernetes gives; one is used at once. */
const LIFE_S = 600;
const MANIFEST = 'deploy/agent-pod-tokens.yaml';

export type TokenPod = Pick<PodRecord, 'uid' | 'name' | 'namespace' | 'serviceAccount' | 'phase' | 'terminating'>;

/**
 * @param pods of this node
 * @throws UnderpassError `UNDERPASS_CA_REFUSED` when no such pod is there or the API server refuses
 */
export async function podToken(client: KubeClient, pods: Iterable<TokenPod>, identity: WorkloadIdentity, signal?: AbortSignal): Promise<string> {
  const { namespace, serviceAccount } = identity;
  const about = `asking the API server for a token of ${spiffeId(identity)}`;
  // One that ends takes its token with it.
  const pod = [...pods].find((of) => of.namespace === namespace && of.serviceAccount === serviceAccount && !of.terminating && (of.phase === 'Running' || of.phase === 'Pending'));
  if (!pod) throw new UnderpassError('UNDERPASS_CA_REFUSED', `${about}: no pod of this node runs under it`);
  const body = { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec: { audiences: [CA_AUDIENCE], expirationSeconds: LIFE_S, boundObjectRef: { apiVersion: 'v1', kind: 'Pod', name: pod.name, uid: pod.uid } } };
  try {
    const { status } = await client.request<{ status?: { token?: string } }>('POST', resourcePath(SERVICE_ACCOUNTS, { namespace, name: serviceAccount, subresource: 'token' }), { body, ...(signal ? { signal } : {}) });
    if (!status?.token) throw new UnderpassError('UNDERPASS_CA_REFUSED', `${about}: its answer has none`);
    return status.token;
  } catch (cause) {
    if (!isRefusal(cause, 403)) throw cause;
    throw new UnderpassError('UNDERPASS_CA_REFUSED', `${about}: ${(cause as Error).message}; ${MANIFEST} has the rule that is missing`, { cause });
  }
}
