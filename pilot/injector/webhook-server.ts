/**
 * The HTTPS server of the webhooks: `/inject` for pods, `/validate` for Istio's and the Gateway API's objects, `/ready`. Its
 * certificate comes from the control plane's CA and is renewed at half of its life without a connection being dropped.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { errorMessage } from '../../common/errors.js';
import { issueServerCertificate, type ServerCertificate, type Signer } from '../../common/identity/server-certificate.js';
import type { InjectionConfig } from '../../common/injection/config.js';
import type { Problem } from '../../common/kube/schema.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { OneAtATime } from '../../common/one-at-a-time.js';
import { waitFor } from '../../common/retry.js';
import { BadRequest, parseReview, reviewOf, type AdmissionRequest, type Decision } from './admission-review.js';
import { inject, validate, withPathValues } from './handlers.js';
import type { WebhookMetrics } from './metrics.js';

/** The API server stores nothing over 1.5 MiB; a review of an update holds the object twice. */
const MAX_BODY_BYTES = 4 << 20;
/** Istio's webhooks wait 10 s. */
const REQUEST_TIMEOUT_MS = 10_000;
/** A pod may be made right after its namespace, which the API server knows of before this process's watch does. */
const NAMESPACE_KNOWN_MS = 3_000;
const MAX_TIMER_MS = 2 ** 31 - 1;
/** What has been asked waits no longer than that for its namespace. */
const CLOSE_GRACE_MS = NAMESPACE_KNOWN_MS + 1_000;
const RENEW_RETRY_MS = 10_000;

export interface WebhookOptions {
  /** `host:port`, port 0 for any. */
  listen: string;
  signer: Signer;
  /** Names that the API server calls it by. */
  dnsNames: readonly string[];
  ips?: readonly string[];
  /** Of the serving certificate; default a day. */
  ttlMs?: number;
  /** How long a request may take to come; default 10 s. */
  requestTimeoutMs?: number;
  /** A new certificate is in use: whoever trusts the CA may have to be told of another one. */
  onCertificate?: () => void;
  injection: () => InjectionConfig;
  namespaceLabels: (name: string) => Readonly<Record<string, string>> | undefined;
  check: (object: KubeObject) => readonly Problem[];
  metrics: WebhookMetrics;
  logger: Logger;
}

export class WebhookServer implements Closable {
  readonly #options: WebhookOptions;
  readonly #server: Server;
  readonly #requests = new OneAtATime();
  #certificate: ServerCertificate;
  #timer: NodeJS.Timeout | undefined;
  #isDraining = false;

  private constructor(options: WebhookOptions, certificate: ServerCertificate) {
    this.#options = options;
    this.#certificate = certificate;
    const timeoutMs = options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS;
    // Node looks for slow requests every 30 s unless told.
    const checking = { connectionsCheckingInterval: Math.min(1_000, timeoutMs) };
    this.#server = createServer({ ...secureContext(certificate), ...checking, minVersion: 'TLSv1.2' }, (request, response) => {
      if (!this.#requests.admits(request, response)) return;
      this.#handle(request, response).catch((error: unknown) => this.#fail(response, error));
    });
    this.#server.requestTimeout = timeoutMs;
    this.#server.headersTimeout = timeoutMs;
    this.#server.on('clientError', refuse);
    this.#server.on('tlsClientError', (error) => options.logger.debug({ reason: error.message }, 'a TLS handshake at the webhook failed'));
  }

  static async listen(options: WebhookOptions): Promise<WebhookServer> {
    const webhook = new WebhookServer(options, await issue(options));
    const { listen } = options;
    const colon = listen.lastIndexOf(':');
    await new Promise<void>((resolve, reject) => {
      webhook.#server.once('error', reject);
      webhook.#server.listen({ host: listen.slice(0, colon).replace(/^\[|\]$/g, ''), port: Number(listen.slice(colon + 1)) }, resolve);
    });
    webhook.#schedule();
    options.onCertificate?.();
    return webhook;
  }

  /** With the port filled in. */
  get address(): string {
    const { address, port, family } = this.#server.address() as AddressInfo;
    return family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`;
  }

  get certificate(): ServerCertificate {
    return this.#certificate;
  }

  /** A new certificate for the connections to come. */
  async renew(): Promise<void> {
    this.#certificate = await issue(this.#options);
    this.#server.setSecureContext(secureContext(this.#certificate));
    this.#schedule();
    this.#options.onCertificate?.();
  }

  /** Until it has succeeded. */
  #renewSurely(): void {
    this.renew().catch((error: unknown) => {
      this.#options.logger.error({ reason: errorMessage(error) }, "the webhook's certificate could not be renewed");
      this.#schedule(RENEW_RETRY_MS);
    });
  }

  /** Another key signs: the certificate of the old one is worth nothing to whoever trusts the new one alone. */
  readonly signerChanged = (): void => this.#renewSurely();

  #schedule(retryMs = 0): void {
    clearTimeout(this.#timer);
    const { notBefore, notAfter } = this.#certificate;
    const halfLifeMs = (notBefore.getTime() + notAfter.getTime()) / 2 - Date.now();
    this.#timer = setTimeout(() => this.#renewSurely(), Math.min(MAX_TIMER_MS, Math.max(retryMs, halfLifeMs, 0)));
    this.#timer.unref();
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = (request.url ?? '/').split('?')[0] ?? '/';
    if (this.#isDraining) response.setHeader('connection', 'close');
    if (path === '/ready' && request.method === 'GET') return void response.end('ready\n');
    const isInject = path === '/inject' || path.startsWith('/inject/');
    if (!isInject && path !== '/validate' && !path.startsWith('/validate/')) throw new BadRequest(404, `${path}: expected /inject, /validate or /ready`);
    if (request.method !== 'POST') throw new BadRequest(405, `${request.method} ${path}: expected POST`);
    const contentType = request.headers['content-type'] ?? '';
    if (!/^application\/json(;|$)/.test(contentType)) throw new BadRequest(415, `content-type: found ${JSON.stringify(contentType)}, expected application/json`);
    const review = parseReview(await body(request));
    const decision = isInject ? await this.#inject(review, path) : this.#validate(review);
    send(response, 200, reviewOf(review, decision));
  }

  async #inject(request: AdmissionRequest, path: string): Promise<Decision> {
    const { metrics, injection, namespaceLabels, logger } = this.#options;
    metrics.requests.inc();
    const { namespace } = request;
    if (namespace !== undefined) await waitFor(`namespace ${namespace}`, () => namespaceLabels(namespace) !== undefined, { timeoutMs: NAMESPACE_KNOWN_MS, everyMs: 20 }).catch(() => logger.warn({ namespace }, 'a pod of a namespace that is not known: its own labels alone decide whether it gets a proxy'));
    const of = { namespace: request.namespace, name: request.name };
    let skipped = false;
    const decision = inject(request, {
      config: withPathValues(injection(), path),
      namespaceLabels,
      onSkip: (reason) => {
        skipped = true;
        logger.debug({ ...of, reason }, 'a pod is left without a proxy');
      },
    });
    if (!decision.allowed) {
      metrics.failure.inc();
      logger.warn({ ...of, reason: decision.message }, 'a pod is refused');
    } else if (skipped) metrics.skip.inc();
    else metrics.success.inc();
    return decision;
  }

  #validate(request: AdmissionRequest): Decision {
    const { metrics, check, logger } = this.#options;
    const { group, kind } = request.kind;
    const decision = validate(request, check);
    if (decision.allowed) metrics.passed.inc({ group, resource: kind });
    else {
      metrics.failed.inc({ group, resource: kind, reason: decision.reason });
      logger.info({ kind, namespace: request.namespace, name: request.name, reason: decision.message }, 'an object is refused');
    }
    return decision;
  }

  #fail(response: ServerResponse, error: unknown): void {
    if (response.headersSent) return void response.destroy();
    const status = error instanceof BadRequest ? error.status : 500;
    if (status === 500) this.#options.logger.error({ reason: errorMessage(error) }, 'the webhook failed');
    // What is left of a body that was too long is not read.
    if (status === 413) response.setHeader('connection', 'close');
    send(response, status, { error: errorMessage(error) });
  }

  /** From now on each connection ends with its next answer, so that close() meets none on which a question is under way. */
  drain(): void {
    this.#isDraining = true;
  }

  close(): Promise<void> {
    clearTimeout(this.#timer);
    return new Promise((resolve) => {
      // What has been asked is answered: a webhook that breaks off refuses the pod.
      const timer = setTimeout(() => this.#server.closeAllConnections(), CLOSE_GRACE_MS);
      this.#server.close(() => {
        clearTimeout(timer);
        resolve();
      });
      this.#server.closeIdleConnections();
    });
  }
}

/** What is no HTTP, or comes too slowly, is told so where the connection still can. */
function refuse(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy();
  const status = error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? '408 Request Timeout' : '400 Bad Request';
  socket.end(`HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
}

function issue({ signer, dnsNames, ips, ttlMs }: WebhookOptions): Promise<ServerCertificate> {
  return issueServerCertificate(signer, { dnsNames, ...(ips ? { ips } : {}), ...(ttlMs === undefined ? {} : { ttlMs }) });
}

function secureContext({ certificatePem, privateKeyPem }: ServerCertificate): { cert: string; key: string } {
  return { cert: certificatePem, key: privateKeyPem };
}

async function body(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > MAX_BODY_BYTES) throw new BadRequest(413, `the body is longer than ${MAX_BODY_BYTES} bytes`);
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function send(response: ServerResponse, status: number, value: unknown): void {
  const text = JSON.stringify(value) + '\n';
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  response.end(text);
}
