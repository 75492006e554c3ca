/** Which real programs speak HTTP with one another, and what the fast path has to make of each. */
import type { Kind } from './plan.js';

export interface Peer {
  /** What probation says of it: all of it stays with Envoy. */
  slow?: 'blocking' | 'spliced';
  /** Its pod's label says that it doesn't splice: its executable is not looked at. */
  cleared?: true;
}

export interface ServerProgram extends Peer {
  kind: Kind;
}

/** What works through a plan. */
export interface ClientProgram extends Peer {
  /** Connections, or requests under way. */
  atOnce: number;
  /** Node asks it, in its pod. */
  proxy?: true;
}

export interface Battery {
  servers: Readonly<Record<string, ServerProgram>>;
  clients: Readonly<Record<string, ClientProgram>>;
}

export const PROGRAMS: Battery = {
  servers: {
    node: { kind: 'echo' }, asyncio: { kind: 'echo' }, nginx: { kind: 'nginx' }, threads: { kind: 'echo', slow: 'blocking' },
    'gunicorn-gevent': { kind: 'echo' }, 'gunicorn-sync': { kind: 'echo', slow: 'blocking' },
  },
  clients: {
    curl: { atOnce: 2, cleared: true }, http: { atOnce: 3, cleared: true }, fetch: { atOnce: 3, cleared: true }, asyncio: { atOnce: 3, cleared: true },
    pipeline: { atOnce: 3, cleared: true }, 'http-client': { atOnce: 2, cleared: true, slow: 'blocking' },
    'nginx-proxy': { atOnce: 3, cleared: true, proxy: true }, 'haproxy-proxy': { atOnce: 3, cleared: true, proxy: true },
  },
};

/** Go's net/http, with and without the label, and some of the others for it to speak with. */
export const GO_PROGRAMS: Battery = {
  servers: { go: { kind: 'echo', cleared: true }, 'go-unlabelled': { kind: 'echo', slow: 'spliced' }, node: { kind: 'echo' }, nginx: { kind: 'nginx' } },
  clients: {
    go: { atOnce: 3, cleared: true }, 'go-unlabelled': { atOnce: 3, slow: 'spliced' },
    curl: { atOnce: 2, cleared: true }, http: { atOnce: 3, cleared: true }, 'nginx-proxy': { atOnce: 3, cleared: true, proxy: true },
  },
};
