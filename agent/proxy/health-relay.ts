/**
 * Health checks that the control plane asks of this node's Envoy (HDS), handed on with each check made inside the network
 * namespace of the pod that it is about: from the node's own a pod's address need not be reachable, and NetworkPolicy is for
 * others. A control plane without HDS, as istiod, is asked again now and then.
 */
import type { ClientDuplexStream, Server, ServerDuplexStream, ServiceError } from '@grpc/grpc-js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { BindConfig } from '../../proto/generated/envoy/config/core/v3/address.js';
import type { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import {
  HealthCheckSpecifier,
  HealthCheckRequestOrEndpointHealthResponse,
  HealthDiscoveryServiceService,
  type ClusterHealthCheck,
} from '../../proto/generated/envoy/service/health/v3/hds.js';
import { markOption } from './fold-clusters.js';
import { socketAddress } from './fold-endpoints.js';

type Report = HealthCheckRequestOrEndpointHealthResponse;
export type HealthStream = ClientDuplexStream<Report, HealthCheckSpecifier>;
type EnvoyCall = ServerDuplexStream<Report, HealthCheckSpecifier>;

const RETRY_MS = 2_000;
/** gRPC's UNIMPLEMENTED: this control plane checks no health. */
const UNIMPLEMENTED = 12;
const UNIMPLEMENTED_RETRY_MS = 300_000;
/** Between the cluster's name and the pod's uid; in neither. */
const SEPARATOR = '~pod~';

export interface HealthRelayOptions {
  /** Opens a stream to the control plane. */
  open: () => HealthStream;
  nodeName: string;
  /** Whether this is the Envoy that is to be served. */
  accepts?: (node: Node) => boolean;
  /** The enrolled pod of this address. */
  podOf: (ip: string) => { uid: string; netnsPath: string } | undefined;
  logger: Logger;
}

export class HealthRelay implements Closable {
  readonly #options: HealthRelayOptions;
  #envoy: EnvoyCall | undefined;
  #upstream: HealthStream | undefined;
  #request: Report | undefined;
  #specifier: HealthCheckSpecifier | undefined;
  #sent = '';
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: HealthRelayOptions) {
    this.#options = options;
  }

  addTo(server: Server): void {
    server.addService(HealthDiscoveryServiceService, {
      streamHealthCheck: (call: EnvoyCall) => this.#accept(call),
      fetchHealthCheck: (_call: unknown, callback: (error: { code: number; details: string }) => void) => callback({ code: UNIMPLEMENTED, details: 'only StreamHealthCheck is served' }),
    });
  }

  /** Pods came or went: checks of theirs begin or end. */
  podsChanged(): void {
    this.#tell();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#upstream?.cancel();
    this.#envoy?.end();
  }

  #accept(call: EnvoyCall): void {
    let isFirst = true;
    call.on('data', (message: Report) => {
      if (isFirst) {
        const node = message.request_type?.$case === 'health_check_request' ? message.request_type.value.node : undefined;
        if (node && this.#options.accepts?.(node) === false) return call.end();
        this.#envoy?.end();
        this.#envoy = call;
        this.#sent = '';
        isFirst = false;
      }
      if (this.#envoy !== call) return;
      if (message.request_type?.$case === 'health_check_request') {
        this.#request = this.#asNode(message);
        this.#connect();
        this.#tell();
      } else if (message.request_type?.$case === 'endpoint_health_response') this.#upstream?.write(withoutPods(message));
    });
    const gone = (): void => {
      if (this.#envoy !== call) return;
      this.#envoy = undefined;
      this.#upstream?.end();
      this.#upstream = undefined;
      clearTimeout(this.#timer);
    };
    call.on('end', () => {
      call.end();
      gone();
    });
    for (const event of ['cancelled', 'error', 'close']) call.on(event, gone);
  }

  /** Envoy does not know its node's name in the control plane's words. */
  #asNode({ request_type }: Report): Report {
    const request = request_type?.$case === 'health_check_request' ? request_type.value : undefined;
    return HealthCheckRequestOrEndpointHealthResponse.fromPartial({
      request_type: { $case: 'health_check_request', value: { ...request, node: { ...request?.node, metadata: { ...request?.node?.metadata, NODE_NAME: this.#options.nodeName } } } },
    });
  }

  #connect(): void {
    if (this.#closed || this.#upstream || !this.#request) return;
    const stream = (this.#upstream = this.#options.open());
    let isDone = false;
    const ended = (error?: Partial<ServiceError>): void => {
      if (isDone) return;
      isDone = true;
      if (this.#upstream !== stream) return;
      this.#upstream = undefined;
      if (error?.code === UNIMPLEMENTED) this.#options.logger.info('the control plane asks for no health checks');
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#connect(), error?.code === UNIMPLEMENTED ? UNIMPLEMENTED_RETRY_MS : RETRY_MS);
      this.#timer.unref();
    };
    stream.on('data', (specifier: HealthCheckSpecifier) => {
      this.#specifier = specifier;
      this.#tell();
    });
    stream.on('error', ended);
    stream.on('end', () => ended());
    stream.write(this.#request);
  }

  /** Checks that were asked for before stay when the control plane is away. */
  #tell(): void {
    if (!this.#envoy || !this.#specifier) return;
    const specifier = { ...this.#specifier, cluster_health_checks: this.#specifier.cluster_health_checks.flatMap((check) => this.#inPods(check)) };
    const bytes = Buffer.from(HealthCheckSpecifier.encode(specifier).finish()).toString('base64');
    if (bytes === this.#sent) return;
    this.#sent = bytes;
    this.#envoy.write(specifier);
  }

  /** One cluster for each enrolled pod, bound to its namespace; endpoints that are no enrolled pod's stay together. */
  #inPods(check: ClusterHealthCheck): ClusterHealthCheck[] {
    const own: ClusterHealthCheck[] = [];
    const others = check.locality_endpoints.map((group) => ({
      ...group,
      endpoints: group.endpoints.filter((endpoint) => {
        const address = endpoint.address?.address;
        const pod = address?.$case === 'socket_address' ? this.#options.podOf(address.value.address) : undefined;
        if (!pod || address?.$case !== 'socket_address') return true;
        const any = address.value.address.includes(':') ? '::' : '0.0.0.0';
        const source = socketAddress(any, 0, pod.netnsPath).address;
        own.push({
          ...check,
          cluster_name: `${check.cluster_name}${SEPARATOR}${pod.uid}`,
          locality_endpoints: [{ ...group, endpoints: [endpoint] }],
          upstream_bind_config: BindConfig.fromPartial({ ...(source?.$case === 'socket_address' ? { source_address: source.value } : {}), socket_options: [markOption()] }),
        });
        return false;
      }),
    }));
    const rest = others.filter(({ endpoints }) => endpoints.length > 0);
    return rest.length > 0 ? [...own, { ...check, locality_endpoints: rest }] : own;
  }
}

function withoutPods(message: Report): Report {
  if (message.request_type?.$case !== 'endpoint_health_response') return message;
  const { value } = message.request_type;
  const cluster_endpoints_health = value.cluster_endpoints_health.map((cluster) => ({ ...cluster, cluster_name: cluster.cluster_name.split(SEPARATOR)[0]! }));
  return { ...message, request_type: { $case: 'endpoint_health_response', value: { ...value, cluster_endpoints_health } } };
}
