/** Bearer tokens that Kubernetes' API server is asked about (TokenReview): for clusters whose issuer publishes no keys. */
import { decodeJwt } from 'jose';
import { CA_AUDIENCE } from '../../common/identity/service-account-token.js';
import { KubeApiError, resourceOf, resourcePath, type KubeClient } from '../../common/kube/client.js';
import { bearerToken, type AuthenticatedCall, type Authenticator } from './authenticate.js';
import type { PeerIdentity } from './peer-identity.js';

const RESOURCE = resourceOf('authentication.k8s.io/v1', 'TokenReview');
const TIMEOUT_MS = 5_000;
const POD_NAME = 'authentication.kubernetes.io/pod-name';
const POD_UID = 'authentication.kubernetes.io/pod-uid';
const NODE_NAME = 'authentication.kubernetes.io/node-name';
const SUBJECT = /^system:serviceaccount:([^:]+):([^:]+)$/;

export interface TokenReviewOptions {
  /** Whoever asks needs the right to create TokenReviews. */
  client: KubeClient;
  audiences?: readonly string[];
  trustDomain: () => string;
}

interface TokenReviewStatus {
  authenticated?: boolean;
  audiences?: string[];
  user?: { username?: string; extra?: Record<string, string[]> };
  error?: string;
}

/** The API server says that the token holds, not until when: the token itself does, where it is one of those that can be read. */
function expiry(token: string): { expiresAt?: number } {
  try {
    const { exp } = decodeJwt(token);
    return exp === undefined ? {} : { expiresAt: exp * 1_000 };
  } catch {
    return {};
  }
}

export class TokenReviewAuthenticator implements Authenticator {
  readonly name = 'token review';
  constructor(readonly options: TokenReviewOptions) {}

  async authenticate(call: AuthenticatedCall): Promise<PeerIdentity | undefined> {
    const token = bearerToken(call);
    if (token === undefined) return undefined;
    const { audiences = [CA_AUDIENCE], trustDomain } = this.options;
    const status = await this.#review(token, audiences);
    // What the API server says in `error` may quote the token.
    if (!status.authenticated) throw new Error('the API server does not take the token');
    // A server that does not know of audiences answers without any: then nothing was checked.
    if (!status.audiences?.some((audience) => audiences.includes(audience))) throw new Error(`the token is not for ${audiences.join(' or ')}`);
    const [, namespace, serviceAccount] = SUBJECT.exec(status.user?.username ?? '') ?? [];
    if (!namespace || !serviceAccount) throw new Error('the token is not of a service account');
    const extra = (key: string): string | undefined => status.user?.extra?.[key]?.[0];
    const [pod, podUid, nodeName] = [extra(POD_NAME), extra(POD_UID), extra(NODE_NAME)];
    return { trustDomain: trustDomain(), namespace, serviceAccount, ...(pod ? { pod } : {}), ...(podUid ? { podUid } : {}), ...(nodeName ? { nodeName } : {}), ...expiry(token), via: 'token-review' };
  }

  async #review(token: string, audiences: readonly string[]): Promise<TokenReviewStatus> {
    const { apiVersion, kind } = RESOURCE;
    try {
      const review = await this.options.client.request<{ status?: TokenReviewStatus }>('POST', resourcePath(RESOURCE), { body: { apiVersion, kind, spec: { token, audiences } }, timeoutMs: TIMEOUT_MS });
      return review.status ?? {};
    } catch (error) {
      // Nor does what it refuses with, or an answer that can't be read, get into the log.
      throw new Error(`asking the API server: ${error instanceof KubeApiError ? `it answered with status ${error.status}` : error instanceof SyntaxError ? 'its answer is no JSON' : (error as Error).message}`);
    }
  }
}
