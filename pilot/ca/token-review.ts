/**
 * Bearer tokens that Kubernetes' API server is asked about (TokenReview): for clusters whose issuer publishes no keys. The
 * question is asked with the service account of this process.
 */
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { CA_AUDIENCE } from '../../common/identity/service-account-token.js';
import { bearerToken, type AuthenticatedCall, type Authenticator } from './authenticate.js';
import type { PeerIdentity } from './peer-identity.js';

const PATH = '/apis/authentication.k8s.io/v1/tokenreviews';
const TIMEOUT_MS = 5_000;
const MAX_ANSWER_BYTES = 256 << 10;
const POD_NAME = 'authentication.kubernetes.io/pod-name';
const POD_UID = 'authentication.kubernetes.io/pod-uid';
const NODE_NAME = 'authentication.kubernetes.io/node-name';
const SUBJECT = /^system:serviceaccount:([^:]+):([^:]+)$/;

export interface TokenReviewOptions {
  /** `https://host:port` of the API server. */
  server: string;
  /** Files as Kubernetes mounts them into pods; read anew each time, since they rotate. */
  caFile: string;
  tokenFile: string;
  audiences?: readonly string[];
  trustDomain: () => string;
}

interface TokenReviewStatus {
  authenticated?: boolean;
  audiences?: string[];
  user?: { username?: string; extra?: Record<string, string[]> };
  error?: string;
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
    return { trustDomain: trustDomain(), namespace, serviceAccount, ...(pod ? { pod } : {}), ...(podUid ? { podUid } : {}), ...(nodeName ? { nodeName } : {}), via: 'token-review' };
  }

  async #review(token: string, audiences: readonly string[]): Promise<TokenReviewStatus> {
    const { server, caFile, tokenFile } = this.options;
    const [ca, own] = await Promise.all([readFile(caFile, 'utf8'), readFile(tokenFile, 'utf8')]).catch(() => {
      throw new Error(`this process's own credentials can't be read (${caFile}, ${tokenFile})`);
    });
    const body = JSON.stringify({ apiVersion: 'authentication.k8s.io/v1', kind: 'TokenReview', spec: { token, audiences } });
    const headers = { authorization: `Bearer ${own.trim()}`, 'content-type': 'application/json', accept: 'application/json', 'content-length': Buffer.byteLength(body) };
    const { code, text } = await new Promise<{ code: number; text: string }>((resolve, reject) => {
      const outgoing = request(new URL(PATH, server), { method: 'POST', ca, headers, timeout: TIMEOUT_MS }, (response) => {
        let answer = '';
        response.setEncoding('utf8').on('data', (chunk: string) => {
          answer += chunk;
          if (answer.length > MAX_ANSWER_BYTES) response.destroy(new Error('its answer is too long'));
        });
        response.once('end', () => resolve({ code: response.statusCode ?? 0, text: answer }));
        response.once('error', reject);
      });
      outgoing.once('timeout', () => outgoing.destroy(new Error(`no answer in ${TIMEOUT_MS} ms`)));
      outgoing.once('error', reject);
      outgoing.end(body);
    }).catch((error: Error) => {
      throw new Error(`asking the API server: ${error.message}`);
    });
    if (code !== 200 && code !== 201) throw new Error(`asking the API server: it answered with status ${code}`);
    try {
      return (JSON.parse(text) as { status?: TokenReviewStatus }).status ?? {};
    } catch {
      throw new Error('asking the API server: its answer is no JSON');
    }
  }
}
