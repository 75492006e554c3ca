/** One workload: what is asked of it, and what it asks of others. */
import { quantile, quantiles, rates, success, type Dashboard } from './dashboard.js';

const DURATION = 'istio_request_duration_milliseconds';
const HERE = 'reporter="destination",destination_workload="$workload",destination_workload_namespace="$namespace"';
const AWAY = 'reporter="source",source_workload="$workload",source_workload_namespace="$namespace"';
const CALLER = 'source_workload, source_workload_namespace';
const CALLERS = '{{source_workload}}.{{source_workload_namespace}}';
const TO = 'destination_service';
const RTT = 'source_workload="$workload",source_workload_namespace="$namespace",reporter="source"';

/** Of both ends, since one may only ask, or only answer. */
const either = (name: string, label: string, labels: (end: string) => string): string =>
  ['source', 'destination'].map((end) => `group by (${name}) (label_replace({__name__=~"istio_requests_total|istio_tcp_connections_opened_total",${labels(end)}}, "${name}", "$1", "${end}_${label}", "(.+)"))`).join(' or ');

export const WORKLOAD: Dashboard = {
  uid: 'underpass-workload',
  title: 'Underpass: workload',
  description: "One workload by Istio's metrics: what comes to it, as it reports itself, and what it asks of others.",
  variables: [
    { name: 'namespace', label: 'Namespace', of: { label: 'namespace', query: either('namespace', 'workload_namespace', (end) => `${end}_workload_namespace!="unknown"`) } },
    { name: 'workload', label: 'Workload', of: { label: 'workload', query: either('workload', 'workload', (end) => `${end}_workload_namespace="$namespace"`) } },
  ],
  rows: [
    {
      title: '$workload.$namespace',
      panels: [
        { kind: 'stat', title: 'Requests to it', unit: 'reqps', expr: rates('', 'istio_requests_total', HERE) },
        { kind: 'stat', title: 'Success rate', unit: 'percentunit', expr: success('', HERE), bad: { from: 0.99, isLow: true } },
        { kind: 'stat', title: 'p50', unit: 'ms', expr: quantile(0.5, DURATION, HERE) },
        { kind: 'stat', title: 'p99', unit: 'ms', expr: quantile(0.99, DURATION, HERE) },
        { kind: 'stat', title: 'Requests of its own', unit: 'reqps', expr: rates('', 'istio_requests_total', AWAY) },
        { kind: 'stat', title: 'Success rate of these', unit: 'percentunit', expr: success('', AWAY), bad: { from: 0.99, isLow: true } },
      ],
    },
    {
      title: 'What comes to it',
      panels: [
        { kind: 'graph', title: 'Requests by caller and answer', unit: 'reqps', isStacked: true, queries: [{ expr: rates(`${CALLER}, response_code`, 'istio_requests_total', HERE), legend: `${CALLERS}: {{response_code}}` }] },
        { kind: 'graph', title: 'Success rate by caller', unit: 'percentunit', max: 1, queries: [{ expr: success(CALLER, HERE), legend: CALLERS }] },
        { kind: 'graph', title: 'Latency', unit: 'ms', queries: quantiles(DURATION, HERE) },
        { kind: 'graph', title: 'Size of requests', unit: 'bytes', queries: quantiles('istio_request_bytes', HERE) },
        { kind: 'graph', title: 'Size of answers', unit: 'bytes', queries: quantiles('istio_response_bytes', HERE) },
        { kind: 'graph', title: 'By the security of the connection', description: 'unknown: within a node, where nothing is encrypted, or as the source reports it.', unit: 'reqps', queries: [{ expr: rates('connection_security_policy', 'istio_requests_total', HERE), legend: '{{connection_security_policy}}' }] },
        { kind: 'graph', title: 'TCP bytes', unit: 'Bps', queries: [{ expr: rates('', 'istio_tcp_received_bytes_total', HERE), legend: 'received' }, { expr: rates('', 'istio_tcp_sent_bytes_total', HERE), legend: 'sent' }] },
        { kind: 'graph', title: 'TCP connections by caller', unit: 'cps', queries: [{ expr: rates(CALLER, 'istio_tcp_connections_opened_total', HERE), legend: CALLERS }] },
      ],
    },
    {
      title: 'What it asks of others',
      panels: [
        { kind: 'graph', title: 'Requests by service and answer', unit: 'reqps', isStacked: true, queries: [{ expr: rates(`${TO}, response_code`, 'istio_requests_total', AWAY), legend: `{{${TO}}}: {{response_code}}` }] },
        { kind: 'graph', title: 'Success rate by service', unit: 'percentunit', max: 1, queries: [{ expr: success(TO, AWAY), legend: `{{${TO}}}` }] },
        { kind: 'graph', title: 'Latency by service, p90', unit: 'ms', queries: [{ expr: quantile(0.9, DURATION, AWAY, TO), legend: `{{${TO}}}` }] },
        { kind: 'graph', title: 'TCP bytes by service, both ways', unit: 'Bps', queries: [{ expr: `${rates(TO, 'istio_tcp_sent_bytes_total', AWAY)} + ${rates(TO, 'istio_tcp_received_bytes_total', AWAY)}`, legend: `{{${TO}}}` }] },
        { kind: 'graph', title: 'TCP connections by service', unit: 'cps', queries: [{ expr: rates(`${TO}, response_flags`, 'istio_tcp_connections_closed_total', AWAY), legend: `{{${TO}}} closed: {{response_flags}}` }] },
        { kind: 'graph', title: 'Round trips of connections without a proxy', unit: 's', queries: quantiles('underpass_tcp_rtt_seconds', RTT) },
      ],
    },
  ],
};
