/** The agent's admin API: HTTP/1.1 over a Unix socket that only root can open. */
import { chmodSync, rmSync } from 'node:fs';
import { createServer, request, type Server } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { UnderpassError, errorCode, errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';

export interface AdminAnswer {
  status?: number;
  contentType?: string;
  body?: unknown;
  /** In place of a body: text that is long, sent piece by piece as it is read. */
  pieces?: Iterable<string> | AsyncIterable<string> | Readable;
}

export type AdminRoutes = Record<string, (query: URLSearchParams) => AdminAnswer | Promise<AdminAnswer>>;

export class AdminServer implements Closable {
  readonly #server: Server;

  private constructor(readonly socketPath: string, server: Server) {
    this.#server = server;
  }

  /**
   * Replaces the socket of a former agent: whoever listens holds the instance's lock.
   * @param changes what is asked for by POST, its parameters in the query too
   */
  static async listen(socketPath: string, routes: AdminRoutes, changes: AdminRoutes = {}): Promise<AdminServer> {
    rmSync(socketPath, { force: true });
    const server = createServer((incoming, outgoing) => {
      const [path = '/', query = ''] = (incoming.url ?? '/').split('?', 2);
      const send = (status: number, contentType: string, body: string): void => {
        outgoing.writeHead(status, { 'content-type': contentType, 'content-length': Buffer.byteLength(body) });
        outgoing.end(incoming.method === 'HEAD' ? '' : body);
      };
      const wanted = incoming.method === 'POST' ? changes : routes;
      const route = Object.hasOwn(wanted, path) ? wanted[path] : undefined;
      if (!route && !Object.hasOwn(routes, path)) return send(404, 'application/json', json({ message: `${path}: there is ${Object.keys(routes).join(', ')}` }));
      if (!route || !['GET', 'HEAD', 'POST'].includes(incoming.method ?? '')) return send(405, 'application/json', json({ message: `${incoming.method}: only GET and HEAD` }));
      void (async () => {
        try {
          const { status = 200, contentType = 'application/json', body, pieces } = await route(new URLSearchParams(query));
          if (pieces) {
            outgoing.writeHead(status, { 'content-type': contentType });
            if (incoming.method === 'HEAD') {
              if (pieces instanceof Readable) pieces.destroy();
              outgoing.end();
              return;
            }
            // Who listens is to hear that it is heard.
            outgoing.flushHeaders();
            // One that has gone ends what it listened to.
            await pipeline(pieces instanceof Readable ? pieces : Readable.from(pieces), outgoing);
            return;
          }
          send(status, contentType, typeof body === 'string' ? body : json(body));
        } catch (error) {
          if (outgoing.headersSent) return void outgoing.destroy();
          send(500, 'application/json', json({ message: errorMessage(error) }));
        }
      })();
    });
    server.keepAliveTimeout = 5_000;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(socketPath, () => {
        server.off('error', reject);
        resolve();
      });
    });
    chmodSync(socketPath, 0o600);
    return new AdminServer(socketPath, server);
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
    rmSync(this.socketPath, { force: true });
  }
}

/** A refusal whose code and hint who asks has too. */
export const refusal = (status: number, error: UnderpassError): AdminAnswer => ({ status, body: { message: error.message, code: error.code, ...(error.hint === undefined ? {} : { hint: error.hint }) } });

/** 64-bit counters become numbers; those that a number can't hold exactly become strings. */
export function json(value: unknown): string {
  const replace = (_key: string, item: unknown): unknown => {
    if (typeof item === 'bigint') return item <= BigInt(Number.MAX_SAFE_INTEGER) && item >= BigInt(Number.MIN_SAFE_INTEGER) ? Number(item) : item.toString();
    return item instanceof Map ? Object.fromEntries(item) : item;
  };
  return JSON.stringify(value, replace, 2) + '\n';
}

/**
 * Asks a running agent.
 * @throws UnderpassError `UNDERPASS_AGENT_NOT_RUNNING` when nobody listens, `UNDERPASS_NO_PERMISSION` for anybody but root
 */
export async function askAgent(socketPath: string, path: string, options: { timeoutMs?: number; okStatus?: readonly number[]; method?: 'GET' | 'POST'; signal?: AbortSignal } = {}): Promise<string> {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const { status, text } = await new Promise<{ status: number; text: string }>((resolve, reject) => {
    const outgoing = request({ socketPath, path, method: options.method ?? 'GET', agent: false, timeout: timeoutMs, ...(options.signal ? { signal: options.signal } : {}) }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.once('error', reject);
      response.once('end', () => resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString('utf8') }));
    });
    outgoing.once('timeout', () => outgoing.destroy(new Error(`no answer within ${timeoutMs} ms`)));
    outgoing.once('error', (cause) => reject(notAnswered(socketPath, cause)));
    outgoing.end();
  });
  if (!(options.okStatus ?? [200]).includes(status)) throw refusedBy(path, status, text);
  return text;
}

/**
 * Lines of a running agent's answer, as they come, until it ends or `signal` aborts.
 * @throws UnderpassError as `askAgent`
 */
export async function followAgent(socketPath: string, path: string, onLine: (line: string) => void, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const outgoing = request({ socketPath, path, method: 'GET', agent: false, signal }, (response) => {
      response.setEncoding('utf8');
      let rest = '';
      response.on('data', (chunk: string) => {
        const lines = (rest + chunk).split('\n');
        rest = lines.pop() ?? '';
        if (response.statusCode === 200) for (const line of lines) onLine(line);
        else rest = [...lines, rest].join('\n');
      });
      response.once('error', (cause) => (signal.aborted ? resolve() : reject(new UnderpassError('UNDERPASS_AGENT_REQUEST', `listening to the agent at ${socketPath}: ${cause.message}`, { cause }))));
      response.once('end', () => (response.statusCode === 200 ? resolve() : reject(refusedBy(path, response.statusCode, rest))));
    });
    outgoing.once('error', (cause) => (signal.aborted ? resolve() : reject(notAnswered(socketPath, cause))));
    outgoing.end();
  });
}

/**
 * A running agent's answer, as bytes that come as it goes.
 * @throws UnderpassError as `askAgent`
 */
export async function openAgentStream(socketPath: string, path: string, signal: AbortSignal): Promise<Readable> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath, path, method: 'GET', agent: false, signal }, (response) => {
      if (response.statusCode === 200) return resolve(response);
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.once('end', () => reject(refusedBy(path, response.statusCode, text)));
      response.once('error', reject);
    });
    outgoing.once('error', (cause) => reject(notAnswered(socketPath, cause)));
    outgoing.end();
  });
}

/** @returns the agent's own error, if it gave its code */
function refusedBy(path: string, status: number | undefined, text: string): UnderpassError {
  let said: { message?: unknown; code?: unknown; hint?: unknown } = {};
  try {
    said = JSON.parse(text) as typeof said;
  } catch {
    // Its words as they are.
  }
  const { message, code, hint } = said;
  if (isCode(code) && typeof message === 'string') return new UnderpassError(code, message, typeof hint === 'string' ? { hint } : {});
  return new UnderpassError('UNDERPASS_AGENT_REQUEST', `asking the agent for ${path}: ${status ?? ''} ${typeof message === 'string' ? message : text.trim()}`);
}

const isCode = (value: unknown): value is `UNDERPASS_${string}` => typeof value === 'string' && /^UNDERPASS_[A-Z_]+$/.test(value);

function notAnswered(socketPath: string, cause: Error): UnderpassError {
  const gone = ['ENOENT', 'ECONNREFUSED'].includes(errorCode(cause) ?? '');
  const isForbidden = ['EACCES', 'EPERM'].includes(errorCode(cause) ?? '');
  const hint = gone ? { hint: 'start it with `underpass node` or `underpass agent`, or name it with --instance and --run-dir' } : isForbidden ? { hint: 'the socket is root\'s alone: run it as root, e.g. by sudo' } : {};
  return new UnderpassError(gone ? 'UNDERPASS_AGENT_NOT_RUNNING' : isForbidden ? 'UNDERPASS_NO_PERMISSION' : 'UNDERPASS_AGENT_REQUEST', `asking the agent at ${socketPath}: ${cause.message}`, { cause, ...hint });
}
