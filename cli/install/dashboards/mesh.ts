/** The whole mesh: what is asked of it, how it answers, and which way the traffic takes. */
import { quantile, quantiles, rate, rates, success, type Dashboard } from './dashboard.js';

const OWN = 'reporter="$reporter"';
const ANY = `${OWN},destination_service!="unknown"`;
const BY = 'destination_service';
const SERVICE = '/d/underpass-service?var-service=${__value.text}&${datasource:queryparam}';
const FAST = 'underpass_kernel_http_requests_fast_total';
const THROUGH_ENVOY = 'underpass_kernel_http_requests_envoy_total';

export const MESH: Dashboard = {
  uid: 'underpass-mesh',
  title: 'Underpass: mesh',
  description: "Requests and connections of all services, by Istio's metrics, and which way they take.",
  variables: [{ name: 'reporter', label: 'Reporter', of: ['source', 'destination'] }],
  rows: [
    {
      title: 'All services',
      panels: [
        { kind: 'stat', title: 'Requests', unit: 'reqps', expr: rates('', 'istio_requests_total', OWN) },
        { kind: 'stat', title: 'Success rate', description: 'Answers other than 5xx.', unit: 'percentunit', expr: success('', OWN), bad: { from: 0.99, isLow: true } },
        { kind: 'stat', title: '4xx', unit: 'reqps', expr: `${rates('', 'istio_requests_total', `${OWN},response_code=~"4.."`)} or vector(0)` },
        { kind: 'stat', title: '5xx', unit: 'reqps', expr: `${rates('', 'istio_requests_total', `${OWN},response_code=~"5.."`)} or vector(0)`, bad: { from: 0.01, worse: 1 } },
        { kind: 'stat', title: 'Latency, p99', unit: 'ms', expr: quantile(0.99, 'istio_request_duration_milliseconds', OWN) },
        { kind: 'stat', title: 'TCP connections opened', unit: 'cps', expr: rates('', 'istio_tcp_connections_opened_total', OWN) },
        { kind: 'stat', title: 'TCP bytes, both ways', unit: 'Bps', expr: `${rates('', 'istio_tcp_sent_bytes_total', OWN)} + ${rates('', 'istio_tcp_received_bytes_total', OWN)}` },
        { kind: 'stat', title: 'Nodes with an agent', unit: 'short', expr: 'count(underpass_agent_ready)' },
      ],
    },
    {
      title: 'Which way it takes',
      panels: [
        {
          kind: 'graph', title: 'HTTP requests by way', description: 'Of pods whose acceleration is l7: those that the kernel repeats, and those that pass Envoy.', unit: 'reqps', isStacked: true,
          queries: [{ expr: rates('', FAST), legend: 'fast path' }, { expr: rates('', THROUGH_ENVOY), legend: 'Envoy' }],
        },
        { kind: 'graph', title: 'Share of the fast path', unit: 'percentunit', max: 1, queries: [{ expr: `${rates('', FAST)} / (${rates('', FAST)} + ${rates('', THROUGH_ENVOY)})`, legend: 'fast path' }] },
        {
          kind: 'graph', title: 'Connections by way', description: 'New connections of pods of the mesh: to Envoy, or past it and, of these, joined in the kernel.', unit: 'cps',
          queries: [
            { expr: rates('', 'underpass_kernel_connections_captured_total'), legend: 'to Envoy' },
            { expr: rates('', 'underpass_kernel_connections_resolved_total'), legend: 'to an endpoint drawn in the kernel' },
            { expr: rates('', 'underpass_kernel_connections_short_circuited_total'), legend: 'short-circuited' },
          ],
        },
        {
          kind: 'graph', title: 'Bytes of sockets that may be short-circuited', description: 'Moved from socket to socket, or sent by TCP all the same.', unit: 'Bps', isStacked: true,
          queries: [{ expr: rates('', 'underpass_kernel_bytes_short_circuited_total'), legend: 'short-circuited' }, { expr: rates('', 'underpass_kernel_bytes_tcp_total'), legend: 'TCP' }],
        },
      ],
    },
    {
      title: 'Services',
      panels: [
        {
          kind: 'table', title: 'HTTP and gRPC', width: 24, by: { label: BY, title: 'Service', link: SERVICE },
          columns: [
            { title: 'Requests', unit: 'reqps', expr: rates(BY, 'istio_requests_total', ANY) },
            { title: 'Success rate', unit: 'percentunit', expr: success(BY, ANY) },
            { title: 'p50', unit: 'ms', expr: quantile(0.5, 'istio_request_duration_milliseconds', ANY, BY) },
            { title: 'p90', unit: 'ms', expr: quantile(0.9, 'istio_request_duration_milliseconds', ANY, BY) },
            { title: 'p99', unit: 'ms', expr: quantile(0.99, 'istio_request_duration_milliseconds', ANY, BY) },
          ],
        },
        {
          kind: 'table', title: 'TCP', width: 24, by: { label: BY, title: 'Service', link: SERVICE },
          columns: [
            { title: 'Received by it', unit: 'Bps', expr: rates(BY, 'istio_tcp_received_bytes_total', ANY) },
            { title: 'Sent by it', unit: 'Bps', expr: rates(BY, 'istio_tcp_sent_bytes_total', ANY) },
            { title: 'Opened', unit: 'cps', expr: rates(BY, 'istio_tcp_connections_opened_total', ANY) },
            { title: 'Open', unit: 'short', expr: `sum by (${BY}) (istio_tcp_connections_opened_total{${ANY}}) - sum by (${BY}) (istio_tcp_connections_closed_total{${ANY}})` },
          ],
        },
      ],
    },
    {
      title: 'Over time',
      panels: [
        { kind: 'graph', title: 'Requests by answer', unit: 'reqps', isStacked: true, queries: [{ expr: rates('response_code', 'istio_requests_total', OWN), legend: '{{response_code}}' }] },
        { kind: 'graph', title: 'Requests by service, the ten busiest', unit: 'reqps', queries: [{ expr: `topk(10, ${rates(BY, 'istio_requests_total', ANY)})`, legend: `{{${BY}}}` }] },
        { kind: 'graph', title: 'Latency', unit: 'ms', queries: quantiles('istio_request_duration_milliseconds', OWN) },
        { kind: 'graph', title: 'gRPC messages', unit: 'mps', queries: [{ expr: rates('', 'istio_request_messages_total', OWN), legend: 'from clients' }, { expr: rates('', 'istio_response_messages_total', OWN), legend: 'from servers' }] },
        { kind: 'graph', title: 'TCP bytes', unit: 'Bps', queries: [{ expr: rates('', 'istio_tcp_received_bytes_total', OWN), legend: 'received by servers' }, { expr: rates('', 'istio_tcp_sent_bytes_total', OWN), legend: 'sent by servers' }] },
        { kind: 'graph', title: 'TCP connections', unit: 'cps', queries: [{ expr: rates('', 'istio_tcp_connections_opened_total', OWN), legend: 'opened' }, { expr: rates('', 'istio_tcp_connections_closed_total', OWN), legend: 'closed' }, { expr: `sum by (response_flags) (${rate('istio_tcp_connections_failed_total', OWN)})`, legend: 'failed: {{response_flags}}' }] },
      ],
    },
  ],
};
