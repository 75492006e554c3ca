/** Which servers a gateway's proxy has, from all Gateways that select it, by the port that its pod listens on. */
import type { GatewayServer } from '../../../common/kube/types.js';
import { PROXY_NAMESPACE_ANNOTATION } from '../../gateway-api/listeners.js';
import { selects } from '../../model/configs.js';
import { targetPortOf, type Model } from '../../model/model.js';
import type { Proxy } from '../../model/proxy.js';
import { podOf } from '../inbound-ports.js';

export interface BoundServer {
  /** `namespace/name` */
  gateway: string;
  namespace: string;
  server: GatewayServer;
  /** The port that the pod listens on: where the gateway's Service leads, else the server's own. */
  listenPort: number;
}

const HTTP: ReadonlySet<string> = new Set(['HTTP', 'HTTP2', 'GRPC', 'GRPC-WEB']);
/** TLS that ends at the gateway, with what is inside known to be HTTP. */
export const isHttps = ({ server }: BoundServer): boolean => server.port.protocol.toUpperCase() === 'HTTPS' && terminates(server);
/** Of its TLS settings the redirect alone counts. */
export const isPlainHttp = ({ server }: BoundServer): boolean => HTTP.has(server.port.protocol.toUpperCase());

/** The connection is TLS, and this proxy has the certificate. No mode is PASSTHROUGH, the API's zero. */
export function terminates({ tls }: GatewayServer): boolean {
  return tls?.mode !== undefined && tls.mode !== 'PASSTHROUGH' && tls.mode !== 'AUTO_PASSTHROUGH';
}

/** Of an east-west gateway: mutual TLS and an HTTP/2 CONNECT end here, HBONE between workloads is inside. */
export const isHbone = ({ server }: BoundServer): boolean => server.port.protocol === 'HBONE';
export const isAutoPassthrough = ({ server }: BoundServer): boolean => server.tls?.mode === 'AUTO_PASSTHROUGH';

/** All servers, the oldest Gateway's first. */
export function gatewayServers(model: Model, proxy: Proxy): BoundServer[] {
  const pod = podOf(model, proxy);
  const labels = pod?.metadata.labels ?? proxy.labels;
  const services = model.servicesSelecting(proxy.namespace, labels);
  const listenPorts = (port: number): number[] => {
    const targets = services.flatMap((service) => service.ports.filter((candidate) => candidate.port === port).flatMap((candidate) => targetPortOf(candidate, pod) ?? []));
    return targets.length > 0 ? [...new Set(targets)] : [port];
  };
  return model.gateways.flatMap(({ object }) => {
    const namespace = object.metadata.namespace ?? 'default';
    if (!selects(object.spec.selector, labels) || (object.metadata.annotations?.[PROXY_NAMESPACE_ANNOTATION] ?? proxy.namespace) !== proxy.namespace) return [];
    return (object.spec.servers ?? []).map(onAllAddresses).flatMap((server) => listenPorts(server.port.number).map((listenPort) => ({ gateway: `${namespace}/${object.metadata.name}`, namespace, server, listenPort })));
  });
}

/** A server that names every address is one of those that name none: two listeners could not have the port. */
const onAllAddresses = (server: GatewayServer): GatewayServer => (server.bind === '0.0.0.0' || server.bind === '::' ? { ...server, bind: '' } : server);

/** Of `ns/host` the host. */
export const bareHost = (written: string): string => written.slice(written.indexOf('/') + 1);

/** Name of the route configuration of a server; all plaintext servers of a port and address share one. */
export function routeName(bound: BoundServer): string {
  const { server, gateway, listenPort } = bound;
  if (isHbone(bound)) return `hbone.${listenPort}`;
  if (!isHttps(bound)) return `http.${listenPort}${server.bind ? `.${server.bind}` : ''}`;
  const [namespace, name] = gateway.split('/') as [string, string];
  return `https.${server.port.number}.${server.port.name}.${name}.${namespace}`;
}
