/**
 * One kind of an API server, followed: listed in pages, then watched from that version on. A watch that ends is taken up
 * where it was; one whose version is too old (410) begins with a list again.
 * See https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
 */
import type { IncomingMessage } from 'node:http';
import { errorMessage } from '../errors.js';
import type { Logger } from '../log.js';
import { Backoff, sleep } from '../retry.js';
import { isRefusal, KubeApiError, resourcePath, type KubeClient, type Resource } from './client.js';
import type { KubeObject } from './object.js';

/** What is told of a kind. Items of lists do not say what they are: neither `apiVersion` nor `kind` can be relied on. */
export interface Following {
  /** A list of that version of the kind begins. What `listed` is told of replaces all of before once `complete` is called; if it never is, all stays. */
  begin(resource: Resource): { listed(object: KubeObject): void; complete(): void };
  changed(object: KubeObject): void;
  deleted(object: KubeObject): void;
  /** A watch is open: what is told is what there is, also if nothing changes for long. */
  watching?(): void;
  /** What went wrong last; it is tried again. */
  failed?(error: unknown): void;
}

export interface ReflectorOptions {
  client: KubeClient;
  /** Versions of the kind, the preferred one first: what counts is the first that the server has. */
  resources: readonly Resource[];
  /** Only objects of this one. */
  namespace?: string;
  /** Only objects that these match. */
  selectors?: { fieldSelector?: string; labelSelector?: string };
  following: Following;
  logger: Logger;
  signal: AbortSignal;
  pageSize?: number;
  backoff?: Backoff;
}

const MISSING_RETRY_MS = 60_000;
/** The server ends a watch after this long; unlike for each, so that they do not all come back at once. */
const WATCH_SECONDS = 300;
const IDLE_GRACE_MS = 30_000;
const PAGE_SIZE = 500;

interface WatchEvent {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR';
  object: KubeObject & { code?: number; message?: string };
}

interface Page {
  metadata?: { resourceVersion?: string; continue?: string };
  items?: KubeObject[];
}

/** Until the signal aborts; never rejects. A kind that the server does not have (404) is an empty list. */
export async function reflect(options: ReflectorOptions): Promise<void> {
  const { resources, following, logger, signal, backoff = new Backoff() } = options;
  let version: string | undefined;
  let index = 0;
  let missing = 0;
  while (!signal.aborted) {
    const resource = resources[index]!;
    let pauseMs: number;
    try {
      version ??= await list(options, resource);
      missing = 0;
      await watch(options, resource, version, (newest) => {
        version = newest;
        backoff.reset();
      });
      // An orderly end: once around with a pause, lest a server that ends each watch at once is asked without end.
      pauseMs = backoff.next();
    } catch (error) {
      if (signal.aborted) return;
      if (isRefusal(error, 410, 404)) version = undefined;
      if (isRefusal(error, 404)) {
        // The version, or the kind, is not installed, or not any more.
        index = (index + 1) % resources.length;
        if (++missing < resources.length) continue;
        missing = 0;
        following.begin(resource).complete();
        pauseMs = MISSING_RETRY_MS;
      } else {
        following.failed?.(error);
        pauseMs = backoff.next();
        logger.warn({ kind: resource.kind, reason: errorMessage(error), againInMs: Math.round(pauseMs) }, 'reading from the API server failed; what was read stays');
      }
    }
    await sleep(pauseMs, signal).catch(() => undefined);
  }
}

function pathOf({ namespace, selectors }: ReflectorOptions, resource: Resource, query: Record<string, string>): string {
  return `${resourcePath(resource, { namespace })}?${new URLSearchParams({ ...query, ...selectors })}`;
}

/** @returns the version to watch from */
async function list(options: ReflectorOptions, resource: Resource): Promise<string> {
  const { client, following, signal, pageSize = PAGE_SIZE } = options;
  const { listed, complete } = following.begin(resource);
  let next = '';
  for (;;) {
    const page: Page = await client.request('GET', pathOf(options, resource, { limit: String(pageSize), ...(next ? { continue: next } : {}) }), { signal });
    for (const item of page.items ?? []) listed(item);
    next = page.metadata?.continue ?? '';
    if (next) continue;
    complete();
    return page.metadata?.resourceVersion ?? '';
  }
}

/** Until the server ends it. @param onVersion told of the newest version that was seen */
async function watch(options: ReflectorOptions, resource: Resource, from: string, onVersion: (version: string) => void): Promise<void> {
  const { client, following, signal } = options;
  const seconds = Math.round(WATCH_SECONDS * (1 + Math.random()));
  const response = await client.stream(pathOf(options, resource, { watch: '1', allowWatchBookmarks: 'true', resourceVersion: from, timeoutSeconds: String(seconds) }), signal);
  following.watching?.();
  // A connection that died without a word would look like a cluster in which nothing happens.
  response.setTimeout(seconds * 1_000 + IDLE_GRACE_MS, () => response.destroy(new Error('the watch was silent for too long')));
  try {
    for await (const line of lines(response)) {
      if (line === '') continue;
      const { type, object } = JSON.parse(line) as WatchEvent;
      if (type === 'ERROR') throw new KubeApiError(object.code ?? 500, object.message ?? 'the watch was ended');
      if (type === 'DELETED') following.deleted(object);
      else if (type !== 'BOOKMARK') following.changed(object);
      onVersion(object.metadata.resourceVersion ?? from);
    }
  } finally {
    response.destroy();
  }
}

/** Ends with the response; a connection that breaks is an error. */
async function* lines(response: IncomingMessage): AsyncIterable<string> {
  response.setEncoding('utf8');
  let rest = '';
  for await (const part of response) {
    const complete = (rest + (part as string)).split('\n');
    rest = complete.pop()!;
    yield* complete;
  }
}
