/** One API server over HTTP: requests with whole answers, watches as streams. */
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent, request as httpsRequest } from 'node:https';
import { UnderpassError } from '../errors.js';
import type { Closable } from '../lifecycle.js';
import type { ApiServer } from './kubeconfig.js';
import type { KubeObject } from './object.js';
import { missingRule, placeOfRule } from './rights.js';

/** Where objects of a kind are, by group, version and plural. */
export interface Resource {
  apiVersion: string;
  kind: string;
  plural: string;
}

/** Plurals as all kinds that are asked for here form them. */
export function resourceOf(apiVersion: string, kind: string): Resource {
  const name = kind.toLowerCase();
  return { apiVersion, kind, plural: /[^aeiou]y$/.test(name) ? `${name.slice(0, -1)}ies` : name.endsWith('s') ? `${name}es` : `${name}s` };
}

export interface ObjectPlace {
  namespace?: string | undefined;
  name?: string;
  /** `status`, `token`, … */
  subresource?: string;
}

/** The path below the server's URL; without a namespace that of all namespaces, or of a kind that knows none. */
export function resourcePath({ apiVersion, plural }: Resource, { namespace, name, subresource }: ObjectPlace = {}): string {
  const parts = [apiVersion.includes('/') ? 'apis' : 'api', apiVersion, ...(namespace === undefined ? [] : ['namespaces', namespace]), plural, ...(name === undefined ? [] : [name]), ...(subresource === undefined ? [] : [subresource])];
  return `/${parts.join('/')}`;
}

/** What the server refused; `status` is HTTP's, `message` has the server's own words. */
export class KubeApiError extends UnderpassError {
  /** @param about the object that it is about, where the API server itself says so */
  constructor(readonly status: number, message: string, readonly about: { group?: string; kind?: string; name?: string } = {}) {
    super('UNDERPASS_KUBERNETES', message);
  }
}

export interface RequestOptions {
  body?: unknown;
  contentType?: string;
  signal?: AbortSignal;
  /** Until the answer has come whole. */
  timeoutMs?: number;
}

const TIMEOUT_MS = 30_000;
const MAX_MESSAGE_CHARACTERS = 500;
const APPLY = 'application/apply-patch+yaml';
const MERGE = 'application/merge-patch+json';

export class KubeClient implements Closable {
  readonly #agent = new Agent({ keepAlive: true });
  /**
   * @param fieldManager by which the server remembers what was written from here
   * @param manifest where whoever runs this finds the rights that it needs
   */
  constructor(readonly server: ApiServer, readonly fieldManager = 'underpass', readonly manifest?: string) {}

  /** @throws KubeApiError unless it succeeds; other errors when there is no answer */
  async request<T>(method: string, path: string, { body, contentType = 'application/json', signal, timeoutMs = TIMEOUT_MS }: RequestOptions = {}): Promise<T> {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const limit = AbortSignal.timeout(timeoutMs);
    const either = signal ? AbortSignal.any([signal, limit]) : limit;
    try {
      const response = await this.#send(method, path, text === undefined ? {} : { 'content-type': contentType, 'content-length': String(Buffer.byteLength(text)) }, text, either);
      return JSON.parse(await wholeText(response)) as T;
    } catch (error) {
      if (limit.aborted && signal?.aborted !== true) throw new Error(`${method} ${path}: no answer in ${timeoutMs} ms`, { cause: error });
      throw error;
    }
  }

  /** For watches: whoever asks reads the answer, and destroys it. */
  stream(path: string, signal?: AbortSignal): Promise<IncomingMessage> {
    return this.#send('GET', path, {}, undefined, signal);
  }

  get<T extends KubeObject>(resource: Resource, place: ObjectPlace, signal?: AbortSignal): Promise<T> {
    return this.request<T>('GET', resourcePath(resource, place), signal ? { signal } : {});
  }

  create<T extends KubeObject>(resource: Resource, object: T, signal?: AbortSignal): Promise<T> {
    return this.request<T>('POST', `${resourcePath(resource, { namespace: object.metadata.namespace })}?fieldManager=${this.fieldManager}`, { body: object, ...(signal ? { signal } : {}) });
  }

  /** Server-side apply: these fields are this manager's from now on, all others stay. */
  apply<T extends KubeObject>(resource: Resource, object: T, { subresource, signal }: { subresource?: string; signal?: AbortSignal } = {}): Promise<T> {
    const path = resourcePath(resource, { namespace: object.metadata.namespace, name: object.metadata.name, ...(subresource === undefined ? {} : { subresource }) });
    return this.request<T>('PATCH', `${path}?fieldManager=${this.fieldManager}&force=true`, { body: object, contentType: APPLY, ...(signal ? { signal } : {}) });
  }

  /** JSON merge patch; with `metadata.resourceVersion` in it, only if nobody was faster (409). */
  merge<T extends KubeObject>(resource: Resource, place: ObjectPlace, patch: object, signal?: AbortSignal): Promise<T> {
    return this.request<T>('PATCH', `${resourcePath(resource, place)}?fieldManager=${this.fieldManager}`, { body: patch, contentType: MERGE, ...(signal ? { signal } : {}) });
  }

  delete(resource: Resource, place: ObjectPlace, signal?: AbortSignal): Promise<unknown> {
    return this.request('DELETE', resourcePath(resource, place), signal ? { signal } : {});
  }

  async #send(method: string, path: string, extra: Record<string, string>, body: string | undefined, signal: AbortSignal | undefined): Promise<IncomingMessage> {
    const { url } = this.server;
    const { headers, ...tls } = await this.server.credentials();
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const options = {
        method,
        host: url.hostname.replace(/^\[|\]$/g, ''),
        port: url.port || (url.protocol === 'http:' ? 80 : 443),
        path: `${url.pathname.replace(/\/$/, '')}${path}`,
        headers: { accept: 'application/json', 'user-agent': this.fieldManager, ...headers, ...extra },
        ...(signal ? { signal } : {}),
      };
      const outgoing = url.protocol === 'http:' ? httpRequest(options, resolve) : httpsRequest({ ...options, ...tls, agent: this.#agent }, resolve);
      outgoing.on('error', reject);
      outgoing.end(body);
    });
    const { statusCode = 0 } = response;
    if (statusCode >= 200 && statusCode < 300) return response;
    const { said, about } = saidIn(await wholeText(response).catch(() => ''));
    const { manifest } = this;
    const rule = statusCode === 403 && manifest !== undefined ? missingRule(said) : undefined;
    throw new KubeApiError(statusCode, `${method} ${path}: ${statusCode} ${said}${rule === undefined ? '' : `; ${await placeOfRule(manifest!, said)} has the rule that is missing: ${rule}`}`, about);
  }

  close(): void {
    this.#agent.destroy();
  }
}

/** The message of a `Status`, and what it is about; else the answer as it is. */
function saidIn(text: string): { said: string; about?: KubeApiError['about'] } {
  try {
    const { message = '', kind, details } = JSON.parse(text) as { message?: string; kind?: string; details?: KubeApiError['about'] };
    return { said: message, ...(kind === 'Status' && details ? { about: details } : {}) };
  } catch {
    return { said: text.slice(0, MAX_MESSAGE_CHARACTERS) };
  }
}

async function wholeText(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of response) parts.push(part as Buffer);
  return Buffer.concat(parts).toString('utf8');
}

/** @returns whether the server refused with one of these */
export function isRefusal(error: unknown, ...statuses: readonly number[]): boolean {
  return error instanceof KubeApiError && statuses.includes(error.status);
}

