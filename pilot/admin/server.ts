/**
 * What istiod shows on its monitoring port, for people and Prometheus: metrics, and what each client has been sent. The latter
 * tells the mesh's configuration, without credentials: over the network it is for callers of the root namespace alone, who prove
 * themselves as on the TLS port.
 */
import { Metadata } from '@grpc/grpc-js';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { isIP, type AddressInfo } from 'node:net';
import { collectDefaultMetrics } from 'prom-client';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import { OneAtATime } from '../../common/one-at-a-time.js';
import { VERSION } from '../../common/version.js';
import type { AuthenticatedCall } from '../ca/authenticate.js';
import type { PeerIdentity } from '../ca/peer-identity.js';
import type { Generators } from '../generate/generator.js';
import { PUSH_ORDER, TYPE } from '../generate/resource.js';
import type { Model } from '../model/model.js';
import { parseProxy } from '../model/proxy.js';
import type { PushMetrics } from '../push/metrics.js';
import { shortType } from '../push/metrics.js';
import type { AdsServer } from '../push/server.js';
import { redactedObject, redactedResource } from './redact.js';

export interface AdminSources {
  model: Model;
  generators: Generators;
  ads: AdsServer;
  metrics: PushMetrics;
  /** Why nobody should connect here; undefined when all is well. */
  notReady: () => string | undefined;
  status: () => unknown;
  /** When the oldest change was made that some client has not acknowledged yet; by performance.now(). */
  behindSince: () => number | undefined;
  /** Who calls, by a bearer token; undefined when nobody can tell. */
  identify: (call: AuthenticatedCall) => Promise<PeerIdentity | undefined>;
}

type Page = (query: URLSearchParams, sources: AdminSources) => unknown;

const MAX_URL_LENGTH = 4_096;

const pages: Record<string, { what: string; page: Page }> = {
  '/debug/syncz': { what: 'per client and type: the nonce sent and the nonce acknowledged', page: (_query, { ads }) => syncz(ads) },
  '/debug/adsz': { what: 'the connections, what they watch, and what they refused', page: (_query, { ads }) => ads.status() },
  '/debug/endpointz': { what: 'endpoints by service and port; ?host=HOST for one service', page: (query, { model }) => endpointz(model, query.get('host')) },
  '/debug/registryz': { what: 'the services', page: (_query, { model }) => model.sortedServices().map(({ object: _object, exportTo, ...service }) => ({ ...service, exportTo: exportTo === 'all' ? ['*'] : [...exportTo] })) },
  '/debug/configz': { what: 'the configuration objects in force; ?kind=KIND for one kind', page: (query, { model }) => configz(model, query.get('kind')) },
  '/debug/distribution': { what: 'which generation of ?object=KIND/NAME.NAMESPACE is in force here, and since when some client has not acknowledged a change', page: (query, sources) => distribution(sources, query.get('object')) },
  '/debug/gatewayz': { what: "status of the Gateway API's objects: attached routes, accepted or why not", page: (_query, { model }) => model.gatewayApi.status },
  '/debug/config_dump': { what: 'what a client of this node id would be sent; ?proxyID=NODE_ID, as /debug/syncz has it', page: (query, sources) => configDump(sources, query.get('proxyID')) },
  '/debug/status': { what: 'counts, problems in the sources, connections', page: (_query, { status }) => status() },
};

function syncz(ads: AdsServer): unknown {
  return ads.status().connections.map(({ node, variant, connectedAt, queued, types }) => {
    const row: Record<string, unknown> = { proxy: node.split('~')[2] ?? node, node, proxy_type: node.split('~')[0], variant, connected_at: connectedAt, queued };
    for (const [typeUrl, { nonce, ackedNonce, watched, resources, nack }] of Object.entries(types)) {
      row[shortType(typeUrl)] = { sent: nonce, acked: ackedNonce, synced: nonce === ackedNonce, watched, resources, ...(nack ? { nack } : {}) };
    }
    return row;
  });
}

function endpointz(model: Model, host: string | null): unknown {
  const services = model.sortedServices().filter((service) => host === null || service.host === host);
  return services.flatMap((service) =>
    service.ports.map((port) => ({
      svc: `${service.host}:${port.name || port.port}`,
      ep: model.endpoints(service).flatMap(({ address, ports, ready, labels, locality, serviceAccount, weight, network, cluster, tlsMode }) => {
        const number = ports.get(port.name);
        return number === undefined ? [] : [{ address, port: number, ready, labels, locality, serviceAccount, weight, network, cluster, tlsMode }];
      }),
    })),
  );
}

function configz(model: Model, kind: string | null): unknown {
  const objects = [...model.objects.values()].map(({ object }) => object);
  return objects.filter((object) => kind === null || object.kind === kind).map(redactedObject);
}

/** Who starts anew counts its time anew. */
const PILOT = `${process.pid}-${Math.round(performance.timeOrigin)}`;

/** Milliseconds by one clock: what was in force at `now` was acknowledged by all who are connected when `behindSince` is later, or none. */
function distribution({ model, behindSince }: AdminSources, name: string | null): unknown {
  const [, kind, own = ''] = /^([A-Za-z]+)\/([^/\s]+)$/.exec(name ?? '') ?? [];
  if (kind === undefined) throw new UnderpassError('UNDERPASS_ADMIN_QUERY', `found object=${name ?? ''}, expected KIND/NAME.NAMESPACE`);
  const found = [...model.objects.values()].find(({ object: { kind: of, metadata } }) => of.toLowerCase() === kind.toLowerCase() && `${metadata.name}.${metadata.namespace ?? 'default'}` === own);
  const { generation, resourceVersion } = found?.object.metadata ?? {};
  return { pilot: PILOT, now: performance.now(), behindSince: behindSince() ?? null, object: found ? { generation: generation ?? null, resourceVersion: resourceVersion ?? null } : null };
}

function configDump({ generators, ads }: AdminSources, id: string | null): unknown {
  const known = ads.proxies();
  if (id === null || id === '') throw new UnderpassError('UNDERPASS_ADMIN_QUERY', `found no proxyID, expected one of ${known.map((proxy) => proxy.id).join(', ') || '(no client is connected)'}`);
  const proxy = known.find((candidate) => candidate.id === id || `${candidate.name}.${candidate.namespace}` === id) ?? parseProxy(id);
  const dump: Record<string, unknown> = {};
  for (const typeUrl of PUSH_ORDER) {
    const generator = generators.get(typeUrl);
    // Never a Secret.
    if (!generator || typeUrl === TYPE.secret) continue;
    const resources = generator.wildcard ? generator.all(proxy) : [...ads.watchedNames(proxy.id, typeUrl)].flatMap((name) => generator.one(proxy, name) ?? []);
    dump[shortType(typeUrl)] = resources.map(({ name, version, body }) => ({ name, version, resource: redactedResource(body.type_url, body.value) }));
  }
  return dump;
}

/** JSON of messages: 64-bit numbers as text, bytes as base64, unknown fields left out. */
function toJson(value: unknown): string {
  return JSON.stringify(
    value,
    (key, item: unknown) => {
      if (key === '_unknownFields' || item === undefined) return undefined;
      if (typeof item === 'bigint') return item.toString();
      if (item instanceof Map) return Object.fromEntries(item);
      if (item instanceof Set) return [...item];
      if (typeof item === 'object' && item !== null && (item as { type?: string }).type === 'Buffer' && 'data' in item) return Buffer.from((item as { data: number[] }).data).toString('base64');
      return item;
    },
    1,
  );
}

/** Those who share the machine's loopback with this process: people at its terminal, or who forward its port. */
function isFromLoopback({ socket: { remoteAddress = '' } }: IncomingMessage): boolean {
  return /^(::ffff:)?127\.|^::1$/.test(remoteAddress);
}

/** What of a request proves who makes it. */
function asCall({ headers: { authorization }, socket }: IncomingMessage): AuthenticatedCall {
  const metadata = new Metadata();
  if (authorization !== undefined) metadata.set('authorization', authorization);
  return { metadata, getPeer: () => `${socket.remoteAddress}:${socket.remotePort}`, getAuthContext: () => ({}) };
}

/** On loopback only browsers come by other names, led by a site that has its name resolved to this address. */
function isOwnHost({ socket, headers: { host = '' } }: IncomingMessage): boolean {
  const local = socket.localAddress ?? '';
  if (!/^(::ffff:)?127\.|^::1$/.test(local)) return true;
  const name = host.replace(/:\d+$/, '').replace(/^\[|\]$/g, '').toLowerCase();
  return name === '' || name === 'localhost' || isIP(name) !== 0;
}

export class AdminServer implements Closable {
  readonly #server: Server;
  readonly #requests = new OneAtATime();
  #address = '';

  constructor(readonly sources: AdminSources) {
    this.#server = createServer((request, response) => void this.#answer(request, response));
    this.#server.requestTimeout = 10_000;
  }

  get address(): string {
    return this.#address;
  }

  /** @param address `host:port`, port 0 for any */
  async listen(address: string): Promise<void> {
    const colon = address.lastIndexOf(':');
    const [host, port] = [address.slice(0, colon).replace(/^\[|\]$/g, ''), Number(address.slice(colon + 1))];
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', (error) => reject(new UnderpassError('UNDERPASS_PILOT_LISTEN', `listening on ${address}: ${errorMessage(error)}`, { cause: error, hint: 'is another pilot running there? choose another --monitoring-listen' })));
      this.#server.listen(port, host, resolve);
    });
    this.#address = `${address.slice(0, colon)}:${(this.#server.address() as AddressInfo).port}`;
    // Memory, CPU and how long the event loop was held up since the last look.
    collectDefaultMetrics({ register: this.sources.metrics.registry });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (!this.#requests.admits(request, response)) return;
    const send = (code: number, body: string, type = 'text/plain; charset=utf-8'): void => {
      response.writeHead(code, { 'content-type': type, 'content-length': Buffer.byteLength(body) }).end(body);
    };
    try {
      const text = request.url ?? '/';
      if (request.method !== 'GET' || text.length > MAX_URL_LENGTH) return send(405, 'only GET is served here\n');
      if (!isOwnHost(request)) return send(403, 'found another Host than localhost or an address, which a page of some web site may have made the browser send\n');
      const url = new URL(text, 'http://pilot');
      if (url.pathname === '/live') return send(200, 'live\n');
      if (url.pathname === '/ready') {
        const reason = this.sources.notReady();
        return reason === undefined ? send(200, 'ready\n') : send(503, `${reason}\n`);
      }
      if (url.pathname === '/version') return send(200, `${VERSION}\n`);
      if (url.pathname === '/metrics') {
        const { metrics, model } = this.sources;
        metrics.services.set(model.services.size);
        metrics.virtualServices.set(model.configs.all('VirtualService').length);
        metrics.info.set({ version: VERSION }, 1);
        return send(200, await metrics.registry.metrics(), metrics.registry.contentType);
      }
      const found = pages[url.pathname];
      if (found && !isFromLoopback(request)) {
        const caller = await this.sources.identify(asCall(request));
        if (!caller) return send(401, 'authentication failed\n');
        const { rootNamespace } = this.sources.model.mesh;
        if (caller.namespace !== rootNamespace) return send(403, `debug pages are for callers of namespace ${rootNamespace}\n`);
      }
      if (found) return send(200, `${toJson(found.page(url.searchParams, this.sources))}\n`, 'application/json');
      const index = ['/ready', '/live', '/version', '/metrics', ...Object.entries(pages).map(([path, { what }]) => `${path}: ${what}`)].join('\n');
      return send(url.pathname === '/debug' || url.pathname === '/' ? 200 : 404, `${index}\n`);
    } catch (error) {
      send(400, `${errorMessage(error)}\n`);
    }
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}
