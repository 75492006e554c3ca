/** Istio's standard metrics: https://istio.io/latest/docs/reference/config/metrics/ */
import type { RequestQuantity } from './stats-logger.js';

export interface IstioMetric {
  readonly name: string;
  readonly help: string;
}

export const REQUESTS = { name: 'istio_requests_total', help: 'The total number of requests.' };
export const REQUEST_HISTOGRAMS: Readonly<Record<RequestQuantity, IstioMetric>> = {
  duration: { name: 'istio_request_duration_milliseconds', help: 'The duration of requests, from their head to the end of their answer.' },
  request: { name: 'istio_request_bytes', help: 'The size of requests, heads and bodies.' },
  answer: { name: 'istio_response_bytes', help: 'The size of answers, heads and bodies.' },
};
export const MESSAGES = {
  request: { name: 'istio_request_messages_total', help: 'The total number of gRPC messages that clients sent.' },
  response: { name: 'istio_response_messages_total', help: 'The total number of gRPC messages that servers sent.' },
};
export const CONNECTIONS = {
  opened: { name: 'istio_tcp_connections_opened_total', help: 'The total number of TCP connections opened.' },
  closed: { name: 'istio_tcp_connections_closed_total', help: 'The total number of TCP connections closed.' },
  received: { name: 'istio_tcp_received_bytes_total', help: 'The total number of bytes received during requests: by the server.' },
  sent: { name: 'istio_tcp_sent_bytes_total', help: 'The total number of bytes sent during responses: by the server.' },
};
/** A close without a flag. */
export const NO_FLAGS = '-';
/** What a label says of what nobody knows. */
export const UNKNOWN = 'unknown';
