/** One service: its requests and connections, by who asks, who answers, and who reports. */
import { quantile, quantiles, rates, success, type Dashboard, type Panel, type Variable } from './dashboard.js';

const SERIES = '{__name__=~"istio_requests_total|istio_tcp_connections_opened_total",destination_service!="unknown"}';
const OWN = 'reporter="$reporter",destination_service="$service"';
const BOTH = 'destination_service="$service"';
const DURATION = 'istio_request_duration_milliseconds';
const CALLER = 'source_workload, source_workload_namespace';
const CALLERS = '{{source_workload}}.{{source_workload_namespace}}';
const SERVER = 'destination_workload, destination_workload_namespace';
const SERVERS = '{{destination_workload}}.{{destination_workload_namespace}}';

const variables: Variable[] = [
  { name: 'reporter', label: 'Reporter', of: ['source', 'destination'] },
  { name: 'service', label: 'Service', of: `label_values(${SERIES}, destination_service)` },
];

/** Of one end of the connections. */
const by = (labels: string, legend: string): Panel[] => [
  { kind: 'graph', title: 'Requests', unit: 'reqps', isStacked: true, queries: [{ expr: rates(`${labels}, response_code`, 'istio_requests_total', OWN), legend: `${legend}: {{response_code}}` }] },
  { kind: 'graph', title: 'Success rate', unit: 'percentunit', max: 1, queries: [{ expr: success(labels, OWN), legend }] },
  { kind: 'graph', title: 'Latency, p90', unit: 'ms', queries: [{ expr: quantile(0.9, DURATION, OWN, labels), legend }] },
];

export const SERVICE: Dashboard = {
  uid: 'underpass-service',
  title: 'Underpass: service',
  description: "One service by Istio's metrics.",
  variables,
  rows: [
    {
      title: '$service',
      panels: [
        { kind: 'stat', title: 'Requests', unit: 'reqps', expr: rates('', 'istio_requests_total', OWN) },
        { kind: 'stat', title: 'Success rate', description: 'Answers other than 5xx.', unit: 'percentunit', expr: success('', OWN), bad: { from: 0.99, isLow: true } },
        { kind: 'stat', title: 'p50', unit: 'ms', expr: quantile(0.5, DURATION, OWN) },
        { kind: 'stat', title: 'p90', unit: 'ms', expr: quantile(0.9, DURATION, OWN) },
        { kind: 'stat', title: 'p99', unit: 'ms', expr: quantile(0.99, DURATION, OWN) },
        { kind: 'stat', title: 'TCP received', unit: 'Bps', expr: rates('', 'istio_tcp_received_bytes_total', OWN) },
        { kind: 'stat', title: 'TCP sent', unit: 'Bps', expr: rates('', 'istio_tcp_sent_bytes_total', OWN) },
      ],
    },
    {
      title: 'HTTP and gRPC',
      panels: [
        { kind: 'graph', title: 'Requests by answer', unit: 'reqps', isStacked: true, queries: [{ expr: rates('request_protocol, response_code', 'istio_requests_total', OWN), legend: '{{request_protocol}} {{response_code}}' }] },
        { kind: 'graph', title: 'Requests by reporter', description: 'What callers report, and what reaches its pods: they differ by what was retried, refused, or came from outside of the mesh.', unit: 'reqps', queries: [{ expr: rates('reporter', 'istio_requests_total', BOTH), legend: '{{reporter}}' }] },
        { kind: 'graph', title: 'How they ended', description: "Envoy's response flags; - is an answer as usual.", unit: 'reqps', queries: [{ expr: rates('response_flags', 'istio_requests_total', OWN), legend: '{{response_flags}}' }] },
        { kind: 'graph', title: 'Latency', unit: 'ms', queries: quantiles(DURATION, OWN) },
        { kind: 'graph', title: 'Size of requests', unit: 'bytes', queries: quantiles('istio_request_bytes', OWN) },
        { kind: 'graph', title: 'Size of answers', unit: 'bytes', queries: quantiles('istio_response_bytes', OWN) },
      ],
    },
    { title: 'By caller', panels: by(CALLER, CALLERS) },
    { title: 'By workload that answers', panels: by(SERVER, SERVERS) },
    {
      title: 'TCP',
      panels: [
        { kind: 'graph', title: 'Received, by caller', unit: 'Bps', queries: [{ expr: rates(CALLER, 'istio_tcp_received_bytes_total', OWN), legend: CALLERS }] },
        { kind: 'graph', title: 'Sent, by caller', unit: 'Bps', queries: [{ expr: rates(CALLER, 'istio_tcp_sent_bytes_total', OWN), legend: CALLERS }] },
        { kind: 'graph', title: 'Connections', unit: 'cps', queries: [{ expr: rates('', 'istio_tcp_connections_opened_total', OWN), legend: 'opened' }, { expr: rates('response_flags', 'istio_tcp_connections_closed_total', OWN), legend: 'closed: {{response_flags}}' }] },
      ],
    },
  ],
};
