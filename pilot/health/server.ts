/**
 * Envoy's health discovery service: the Envoy of a node checks the endpoints on its node for services that ask for it, and
 * what it finds goes into everybody's endpoints. An Envoy that goes away leaves its last word in force for a while.
 */
import { status as GrpcStatus, type ServerDuplexStream } from '@grpc/grpc-js';
import type { Counter } from 'prom-client';
import { errorMessage } from '../../common/errors.js';
import type { Pod } from '../../common/kube/types.js';
import type { Logger } from '../../common/log.js';
import { HealthStatus } from '../../proto/generated/envoy/config/core/v3/health_check.js';
import {
  HealthCheckSpecifier,
  HealthDiscoveryServiceService,
  type EndpointHealth,
  type HealthCheckRequestOrEndpointHealthResponse,
} from '../../proto/generated/envoy/service/health/v3/hds.js';
import { endpointAddress, millis } from '../generate/envoy.js';
import { clusterName, parseClusterName } from '../generate/names.js';
import type { ChangeSet } from '../model/changes.js';
import type { Model } from '../model/model.js';
import type { MeshService } from '../model/types.js';
import type { ServiceRegistry } from '../push/server-group.js';
import { HEALTH_CHECK_ANNOTATION, readHealthCheck, type HealthCheckSpec } from './check.js';

type Call = ServerDuplexStream<HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier>;

/** How often an Envoy reports. */
const REPORT_INTERVAL_MS = 1_000;
/** How long a verdict counts whose Envoy is gone: long enough for a restart. */
export const VERDICT_TTL_MS = 60_000;

/**
 * Lets a stream in. @returns the node that its caller has proven to be of, none where nobody proves anything; undefined: the
 * stream has been ended
 */
export type Enter = (call: Call) => Promise<{ node?: string } | undefined>;

export interface HealthServerOptions {
  model: Model;
  logger: Logger;
  /** Endpoints of these hosts have become healthy or unhealthy. */
  onChange: (change: ChangeSet) => void;
  /** Counts reports about other nodes' endpoints. */
  refused: Counter;
  verdictTtlMs?: number;
}

interface Client {
  call: Call;
  node: string;
  nodeName: string;
  /** The node's cluster: others may have nodes of the same name. */
  cluster: string;
  /** The newest specification as bytes, to send only what is new. */
  sent: string;
  /** It has reported on endpoints that are not its node's. */
  isSuspect: boolean;
  /** What it has said, `host address`. */
  verdicts: Set<string>;
  /**
   * When an endpoint's first failure may be believed, by performance.now(): Envoy calls a host unhealthy until its first check is
   * done. Endpoints that it has called healthy once are not here.
   */
  doubted: Map<string, number>;
}

function isOn({ nodeName, cluster }: Client, pod: Pod | undefined): boolean {
  return pod !== undefined && pod.spec.nodeName === nodeName && (pod.metadata.clusterName ?? '') === cluster;
}

export class HealthServer {
  readonly #options: Required<HealthServerOptions>;
  readonly #clients = new Set<Client>();
  readonly #expiry = new Map<string, NodeJS.Timeout>();
  readonly #complaints = new Map<string, string>();

  constructor(options: HealthServerOptions) {
    this.#options = { verdictTtlMs: VERDICT_TTL_MS, ...options };
  }

  addTo(server: ServiceRegistry, enter: Enter): void {
    server.addService(HealthDiscoveryServiceService, {
      streamHealthCheck: (call: Call) => void enter(call).then((caller) => caller && this.#accept(call, caller.node)),
      // As istiod: only streams are served.
      fetchHealthCheck: (_call: unknown, callback: (error: { code: number; details: string }) => void) => callback({ code: GrpcStatus.UNIMPLEMENTED, details: 'only StreamHealthCheck is served' }),
    });
  }

  /** Who checks what; for the debug pages. */
  status(): { node: string; nodeName: string; verdicts: number }[] {
    return [...this.#clients].map(({ node, nodeName, verdicts }) => ({ node, nodeName, verdicts: verdicts.size }));
  }

  /** Tells the Envoys what to check now, as far as that has changed. */
  changed(change: ChangeSet): void {
    if (this.#clients.size === 0 || (!change.full && change.endpoints.size + change.services.size + change.pods.size === 0)) return;
    for (const client of this.#clients) this.#specify(client);
  }

  close(): void {
    for (const timer of this.#expiry.values()) clearTimeout(timer);
    for (const { call } of this.#clients) call.end();
  }

  #accept(call: Call, provenNode: string | undefined): void {
    let client: Client | undefined;
    call.on('data', ({ request_type }: HealthCheckRequestOrEndpointHealthResponse) => {
      try {
        if (request_type?.$case === 'health_check_request') {
          const { node } = request_type.value;
          const nodeName = node?.metadata?.['NODE_NAME'] ?? provenNode;
          if (typeof nodeName !== 'string' || nodeName === '') {
            call.emit('error', { code: GrpcStatus.INVALID_ARGUMENT, details: `reading node ${JSON.stringify(node?.id ?? '')}: expected metadata NODE_NAME, the node whose endpoints are to be checked` });
            return;
          }
          if (provenNode !== undefined && nodeName !== provenNode) {
            call.emit('error', { code: GrpcStatus.PERMISSION_DENIED, details: `the caller's pod runs on node ${provenNode}, its metadata says NODE_NAME ${nodeName}` });
            return;
          }
          const cluster = provenNode === undefined ? this.#options.model.clusters.named(node?.metadata?.['CLUSTER_ID']) : '';
          client ??= { call, node: node?.id ?? '', nodeName, cluster, sent: '', isSuspect: false, verdicts: new Set(), doubted: new Map() };
          client.nodeName = nodeName;
          this.#clients.add(client);
          this.#options.logger.info({ node: client.node, nodeName }, 'an Envoy checks the health of its node\'s endpoints');
          this.#specify(client);
        } else if (request_type?.$case === 'endpoint_health_response' && client) {
          for (const { cluster_name, locality_endpoints_health } of request_type.value.cluster_endpoints_health) {
            for (const { endpoints_health } of locality_endpoints_health) for (const health of endpoints_health) this.#heard(client, cluster_name, health);
          }
        }
      } catch (error) {
        this.#options.logger.warn({ err: error, node: client?.node }, 'a health report could not be taken');
        call.emit('error', { code: GrpcStatus.INTERNAL, details: errorMessage(error) });
      }
    });
    const gone = (): void => {
      if (client && this.#clients.delete(client)) this.#lost(client);
    };
    call.on('end', () => {
      call.end();
      gone();
    });
    for (const event of ['finish', 'cancelled', 'error', 'close']) call.on(event, gone);
  }

  #specify(client: Client): void {
    const specifier = HealthCheckSpecifier.fromPartial({ interval: millis(REPORT_INTERVAL_MS), cluster_health_checks: this.#checks(client) });
    const bytes = Buffer.from(HealthCheckSpecifier.encode(specifier).finish()).toString('base64');
    if (bytes === client.sent) return;
    client.sent = bytes;
    client.call.write(specifier);
  }

  #checks(client: Client): Parameters<typeof HealthCheckSpecifier.fromPartial>[0]['cluster_health_checks'] {
    const { model } = this.#options;
    const { doubted, verdicts } = client;
    return model.sortedServices().flatMap((service) => {
      const check = this.#checkOf(service);
      if (!check) return [];
      const believedFrom = performance.now() + check.unhealthyThreshold * check.intervalMs + check.timeoutMs + REPORT_INTERVAL_MS;
      const endpoints = model.endpoints(service).flatMap(({ address, ports, pod }) => {
        const port = ports.get(check.port.name);
        if (!isOn(client, pod) || port === undefined) return [];
        const key = `${service.host} ${address}`;
        if (!verdicts.has(key) && !doubted.has(key)) doubted.set(key, believedFrom);
        return [{ address: endpointAddress(address, port) }];
      });
      if (endpoints.length === 0) return [];
      const http = { path: check.path, host: service.host };
      return [
        {
          cluster_name: clusterName(check.port.port, '', service.host),
          health_checks: [
            {
              timeout: millis(check.timeoutMs),
              interval: millis(check.intervalMs),
              // Nothing is sent there by this cluster: Envoy's own pause for clusters without traffic would be a minute.
              no_traffic_interval: millis(check.intervalMs),
              unhealthy_threshold: check.unhealthyThreshold,
              healthy_threshold: check.healthyThreshold,
              health_checker: check.kind === 'http' ? { $case: 'http_health_check' as const, value: http } : { $case: 'tcp_health_check' as const, value: {} },
            },
          ],
          locality_endpoints: [{ endpoints }],
        },
      ];
    });
  }

  #checkOf(service: MeshService): HealthCheckSpec | undefined {
    const check = readHealthCheck(service);
    if (typeof check !== 'string') {
      this.#complaints.delete(service.key);
      return check;
    }
    if (this.#complaints.get(service.key) !== check) {
      this.#complaints.set(service.key, check);
      this.#options.logger.error({ service: service.key }, `Service ${service.namespace}/${service.name}: metadata.annotations["${HEALTH_CHECK_ANNOTATION}"]: ${check}; it is not checked`);
    }
    return undefined;
  }

  #heard(client: Client, cluster: string, { endpoint, health_status }: EndpointHealth): void {
    const host = parseClusterName(cluster)?.host;
    const socket = endpoint?.address?.address;
    if (host === undefined || socket?.$case !== 'socket_address') return;
    const { model, onChange } = this.#options;
    const { address } = socket.value;
    const key = `${host} ${address}`;
    // An Envoy speaks for the endpoints of its own node alone.
    const known = model.services.get(host);
    const places = known ? model.endpoints(known).filter((candidate) => candidate.address === address) : [];
    if (!places.some(({ pod }) => isOn(client, pod))) {
      // What is not there any more was its own a moment ago, as far as can be told.
      if (places.length > 0) this.#refuse(client, key);
      return;
    }
    const isHealthy = health_status === HealthStatus.HEALTHY;
    if (!isHealthy && performance.now() < (client.doubted.get(key) ?? 0)) return;
    client.doubted.delete(key);
    clearTimeout(this.#expiry.get(key));
    this.#expiry.delete(key);
    client.verdicts.add(key);
    const change = model.setHealth(host, address, isHealthy);
    if (!change.empty) onChange(change);
  }

  #refuse(client: Client, about: string): void {
    this.#options.refused.inc();
    if (client.isSuspect) return;
    client.isSuspect = true;
    this.#options.logger.warn({ node: client.node, nodeName: client.nodeName, about }, "refused a health report about another node's endpoint; further ones of this stream are only counted");
  }

  #lost(client: Client): void {
    const { model, onChange, logger, verdictTtlMs } = this.#options;
    logger.info({ node: client.node, nodeName: client.nodeName }, 'an Envoy that checked health is gone; its last word counts for a while');
    for (const key of client.verdicts) {
      const [host, address] = key.split(' ') as [string, string];
      const timer = setTimeout(() => {
        this.#expiry.delete(key);
        const change = model.setHealth(host, address, undefined);
        if (!change.empty) onChange(change);
      }, verdictTtlMs);
      timer.unref();
      clearTimeout(this.#expiry.get(key));
      this.#expiry.set(key, timer);
    }
  }
}
