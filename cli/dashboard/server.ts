/**
 * The dashboard's own HTTP server: GET alone, on 127.0.0.1 alone. Files of the pages are anybody's; what is said of the mesh is for
 * who has the token, which is in the fragment of the address that is opened, and so in no request's line. A name that another
 * has pointed to 127.0.0.1 is refused by its Host header.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { errorCode, errorMessage, UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import { OneAtATime } from '../../common/one-at-a-time.js';

const HOST = '127.0.0.1';
const MAX_CONNECTIONS = 64;
const MAX_HEADER_BYTES = 8_192;
const TIMEOUT_MS = 10_000;
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy': POLICY,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
};

/** Of what is said of the mesh. */
export interface ApiAnswer {
  status?: number;
  contentType?: string;
  /** Text as it is, all else as JSON. */
  body: unknown;
}

export interface DashboardFile {
  path: string;
  type: string;
}

export interface DashboardOptions {
  /** 0: any that is free. */
  port: number;
  /** By the path that is asked for. */
  files: ReadonlyMap<string, DashboardFile>;
  api: Readonly<Record<string, (query: URLSearchParams) => Promise<ApiAnswer>>>;
  /** Default: 256 bits at random. */
  token?: string;
}

export class DashboardServer implements Closable {
  readonly #options: DashboardOptions;
  readonly #server: Server;
  readonly #requests = new OneAtATime();
  readonly token: string;

  private constructor(options: DashboardOptions) {
    this.#options = options;
    this.token = options.token ?? randomBytes(32).toString('base64url');
    this.#server = createServer({ maxHeaderSize: MAX_HEADER_BYTES, requestTimeout: TIMEOUT_MS, headersTimeout: TIMEOUT_MS, connectionsCheckingInterval: 1_000 }, (request, response) => void this.#answer(request, response));
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  /** @throws UnderpassError `UNDERPASS_PORT_TAKEN` */
  static async listen(options: DashboardOptions): Promise<DashboardServer> {
    const dashboard = new DashboardServer(options);
    await new Promise<void>((resolve, reject) => {
      dashboard.#server.once('error', (cause) => reject(errorCode(cause) === 'EADDRINUSE' ? new UnderpassError('UNDERPASS_PORT_TAKEN', `listening on ${HOST}:${options.port}: something else does`, { cause, hint: 'name another by --port, or leave it out for any that is free' }) : cause));
      dashboard.#server.listen({ host: HOST, port: options.port }, resolve);
    });
    return dashboard;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get origin(): string {
    return `http://${HOST}:${this.port}`;
  }

  /** For the browser of who may look. */
  get address(): string {
    return `${this.origin}/#token=${this.token}`;
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (!this.#requests.admits(request, response)) return;
    const send = (status: number, type: string, body: string | Buffer, more: Record<string, string> = {}): void => {
      response.writeHead(status, { ...HEADERS, 'content-type': type, 'content-length': Buffer.byteLength(body), ...more });
      response.end(request.method === 'HEAD' ? '' : body);
    };
    const refuse = (status: number, message: string, more: Record<string, string> = {}): void => send(status, 'application/json', `${JSON.stringify({ message })}\n`, { connection: 'close', ...more });
    const hosts = [`${HOST}:${this.port}`, `localhost:${this.port}`];
    if (!hosts.includes(request.headers.host ?? '')) return refuse(403, `Host: expected ${hosts.join(' or ')}`);
    if (request.method !== 'GET' && request.method !== 'HEAD') return refuse(405, `${request.method}: only GET and HEAD`, { allow: 'GET, HEAD' });
    const [path = '/', query = ''] = (request.url ?? '/').split('?', 2);
    try {
      const file = this.#options.files.get(path);
      if (file) return send(200, file.type, await readFile(file.path));
      const answer = Object.hasOwn(this.#options.api, path) ? this.#options.api[path] : undefined;
      if (!answer) return refuse(404, `${path}: there is no such page`);
      if (!this.#knows(request.headers.authorization)) return refuse(401, 'the address that `underpass dashboard` printed has the token: open it as it is', { 'www-authenticate': 'Bearer' });
      const { status = 200, contentType = 'application/json', body } = await answer(new URLSearchParams(query));
      send(status, contentType, typeof body === 'string' ? body : `${JSON.stringify(body)}\n`);
    } catch (error) {
      if (response.headersSent) return void response.destroy();
      refuse(502, errorMessage(error));
    }
  }

  #knows(authorization = ''): boolean {
    const [given, own] = [authorization, `Bearer ${this.token}`].map((text) => Buffer.from(text));
    return given!.length === own!.length && timingSafeEqual(given!, own!);
  }
}
