/**
 * A port's protocol as Istio selects it: `appProtocol` first, then the port's name up to its first dash, then a few
 * well-known port numbers; else it is sniffed on each connection.
 */
import type { ServicePort } from '../../common/kube/types.js';

export type Protocol = 'HTTP' | 'HTTP2' | 'GRPC' | 'TCP' | 'TLS' | 'UDP' | 'auto';

const BY_NAME: Record<string, Protocol> = {
  http: 'HTTP',
  http2: 'HTTP2',
  h2c: 'HTTP2',
  grpc: 'GRPC',
  'grpc-web': 'GRPC',
  https: 'TLS',
  tls: 'TLS',
  tcp: 'TCP',
  // Envoy has filters for these; here they are plain TCP.
  mongo: 'TCP',
  mysql: 'TCP',
  redis: 'TCP',
  udp: 'UDP',
};

const BY_APP_PROTOCOL: Record<string, Protocol> = { ...BY_NAME, 'kubernetes.io/h2c': 'HTTP2', 'kubernetes.io/ws': 'HTTP', 'kubernetes.io/wss': 'TLS', 'gce:http2': 'HTTP2' };

/** SMTP, DNS, MySQL, MongoDB: their servers speak first or have nothing that could be sniffed. */
const TCP_PORTS = new Set([25, 53, 3306, 27017]);

export function selectProtocol(port: ServicePort): Protocol {
  if (port.protocol === 'UDP' || port.protocol === 'SCTP') return 'UDP';
  if (port.appProtocol) {
    const known = BY_APP_PROTOCOL[port.appProtocol.toLowerCase()];
    if (known) return known;
  }
  const name = port.name?.toLowerCase() ?? '';
  if (name === 'grpc-web' || name.startsWith('grpc-web-')) return 'GRPC';
  const known = BY_NAME[name.split('-')[0]!];
  if (known) return known;
  return TCP_PORTS.has(port.port) ? 'TCP' : 'auto';
}

/** The protocols that Istio's own resources name. */
const BY_ISTIO_NAME: Record<string, Protocol> = {
  HTTP: 'HTTP',
  HTTP2: 'HTTP2',
  GRPC: 'GRPC',
  'GRPC-WEB': 'GRPC',
  HTTPS: 'TLS',
  TLS: 'TLS',
  TCP: 'TCP',
  MONGO: 'TCP',
  MYSQL: 'TCP',
  REDIS: 'TCP',
  UDP: 'UDP',
};

/** Undefined for none, and for one that is to be sniffed. */
export function protocolOf(written: string | undefined): Protocol | undefined {
  return BY_ISTIO_NAME[(written ?? '').toUpperCase()];
}

export function isHttp(protocol: Protocol): boolean {
  return protocol === 'HTTP' || protocol === 'HTTP2' || protocol === 'GRPC';
}

/** Whether the upstream is spoken to in HTTP/2 without being asked. */
export function isHttp2(protocol: Protocol): boolean {
  return protocol === 'HTTP2' || protocol === 'GRPC';
}
