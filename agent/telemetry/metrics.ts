/** The agent's `/metrics`: names start with `underpass_`, but for Istio's own; units stand in the name. */
import type { AgentStatus } from '../admin/status.js';
import type { PodCounters } from '../dataplane/kernel.js';
import { addConsistencyMetrics } from './consistency-metrics.js';
import { addFlowMetricsInTurns } from './flow-metrics.js';
import { addHttpMetricsInTurns } from './http-metrics.js';
import { addOutlierMetrics } from './outlier-metrics.js';
import type { FlowTelemetry } from './flow-telemetry.js';
import { addProcessMetrics, type EventLoopWatch } from './process-metrics.js';
import { countProbation } from '../dataplane/probation.js';
import { PrometheusText } from './prometheus.js';
import { addReportMetrics, type Reports } from './report-metrics.js';

export interface Counters {
  node: Record<string, bigint>;
  pods: (PodCounters & { uid: string; pod: string; namespace: string })[];
}

/** The answer to a scrape. */
export async function metricsText(status: AgentStatus, counters: Counters | undefined, flows: Pick<FlowTelemetry, 'refresh' | 'report' | 'httpReport' | 'overrides' | 'logLost'> | undefined, loop: EventLoopWatch, reports?: Reports): Promise<PrometheusText> {
  await Promise.all([flows?.refresh(), reports?.envoy?.refresh()]);
  const text = new PrometheusText();
  text.add('underpass_agent_ready', 'gauge', 'Whether the agent is ready.', Number(status.ready));
  text.add('underpass_agent_start_time_seconds', 'gauge', 'When the agent started, in seconds since the epoch.', Date.parse(status.since) / 1000);
  text.add('underpass_envoy_up', 'gauge', 'Whether the shared Envoy runs.', Number(status.proxy.envoy.pid !== undefined));
  text.add('underpass_envoy_restarts_total', 'counter', 'How often the shared Envoy died and was started anew.', status.proxy.envoy.restarts);
  addProcessMetrics(text, loop, status.proxy.envoy.pid);
  text.add('underpass_control_plane_connected', 'gauge', 'Whether the stream to the control plane is up.', Number(status.proxy.controlPlane.connected));
  text.add('underpass_proxy_rejected_resources', 'gauge', 'Resources that Envoy or the agent rejects; their last good version stays in force.', status.proxy.nacks.length);
  const { certificates, pushes } = status.proxy;
  if (pushes) {
    text.add('underpass_proxy_snapshots_total', 'counter', 'Configurations that were put together for Envoy.', pushes.snapshots);
    text.add('underpass_proxy_nacks_total', 'counter', 'Resources that Envoy refused.', pushes.refusals);
  }
  if (certificates) {
    text.add('underpass_ca_up', 'gauge', 'Whether the CA gave a certificate when it was last asked.', Number(certificates.problem === undefined));
    for (const { id, notAfter, expired } of certificates.identities) {
      text.add('underpass_certificate_expiry_timestamp_seconds', 'gauge', 'When the certificate of a service account of this node expires, in seconds since the epoch; 0: there is none.', notAfter === undefined ? 0 : Date.parse(notAfter) / 1000, { identity: id });
      text.add('underpass_certificate_expired', 'gauge', 'Whether the certificate of a service account of this node has expired, so that its new connections are refused.', Number(expired === true), { identity: id });
    }
  }
  text.add('underpass_workloads_connected', 'gauge', 'Whether the source of pods is connected.', Number(status.workloads.problem === undefined));
  text.add('underpass_acceleration_on', 'gauge', 'Whether the self-test allowed short-circuits.', Number(status.acceleration.on), status.acceleration.reason === undefined ? {} : { reason: status.acceleration.reason });
  if ('checks' in status.selfTest) {
    for (const check of status.selfTest.checks) text.add('underpass_self_test_passed', 'gauge', 'Whether this check of the self-test passed.', Number(check.ok), { check: check.name });
  }
  if (status.policies) {
    text.add('underpass_policy_pods', 'gauge', 'Pods of this node that an authorization policy holds for.', status.policies.pods);
    text.add('underpass_policy_unreadable_pods', 'gauge', 'Pods whose policy can not be judged by: the kernel lets nobody new in.', status.policies.unreadable.length);
    text.add('underpass_policy_connections_closed_total', 'counter', 'Connections that a change of policy ended.', status.policies.connectionsClosed);
  }
  if (status.services) {
    const { services, endpoints, refused } = status.services;
    text.add('underpass_services', 'gauge', 'Addresses and ports of services that are decided at connect().', services);
    text.add('underpass_service_endpoints', 'gauge', 'Endpoints in the table that connections are drawn from.', endpoints);
    text.add('underpass_services_without_room', 'gauge', 'Addresses and ports of services that found no room in the tables and go through Envoy.', refused);
  }
  if (status.consistency) addConsistencyMetrics(text, status.consistency);
  if (status.httpFastPath) {
    const { on, reason, pods: { live, suspended }, endings, upstreams, upstreamsEnded, cutDrains, lostEnds } = status.httpFastPath;
    text.add('underpass_http_fast_path_on', 'gauge', 'Whether the HTTP fast path is on, for pods whose acceleration is l7.', Number(on), reason === undefined ? {} : { reason });
    for (const [state, count] of Object.entries({ live, suspended })) text.add('underpass_http_fast_path_pods', 'gauge', 'Pods whose HTTP requests the kernel repeats, and those that wait for Envoy to acknowledge their newest routes.', count, { state });
    for (const [kind, count] of Object.entries({ client_ended: endings.clientsEnded, client_reset: endings.clientsReset, server_reset: endings.serversReset, failed: endings.failed })) {
      text.add('underpass_http_fast_path_endings_total', 'counter', 'Connections that the agent ended since their other half had ended; failed: that it could not end.', count, { kind });
    }
    text.add('underpass_http_fast_path_upstreams', 'gauge', 'Upstream connections that are one client\'s alone.', upstreams.open);
    text.add('underpass_http_fast_path_upstreams_ended_total', 'counter', 'Upstream connections that were ended since their client was gone.', upstreamsEnded);
    text.add('underpass_http_fast_path_cut_drains_total', 'counter', 'Changes of configuration that did not wait for all exchanges that were under way.', cutDrains);
    text.add('underpass_http_fast_path_lost_ends_total', 'counter', 'Ends of connections that the kernel could not tell the agent of.', lostEnds);
    addOutlierMetrics(text, status.httpFastPath.tables.outliers.clusters);
  }
  const pods = new Map<string, { labels: Record<string, string>; count: number }>();
  for (const { mode, way, state } of status.pods) {
    const key = `${mode} ${way} ${state}`;
    const row = pods.get(key) ?? { labels: { mode, way, state }, count: 0 };
    row.count++;
    pods.set(key, row);
  }
  for (const { labels, count } of pods.values()) text.add('underpass_pods', 'gauge', 'Pods of this node by mode, the way of their new connections, and state.', count, labels);
  for (const { kind, verdict, count } of countProbation(status.probation)) {
    text.add('underpass_probation_programs', 'gauge', 'Listeners and client programs that the kernel has seen, by verdict; only those that are event-driven are short-circuited.', count, { kind, verdict });
  }
  for (const [name, value] of Object.entries(counters?.node ?? {})) {
    text.add(`underpass_kernel_${metricName(name)}_total`, 'counter', 'Counted by the BPF programs of this node.', value);
  }
  for (const { uid: _uid, pod, namespace, ...values } of counters?.pods ?? []) {
    for (const [name, value] of Object.entries(values)) {
      text.add(`underpass_pod_${metricName(name)}_total`, 'counter', 'Counted by the BPF programs, by pod.', value as bigint, { namespace, pod });
    }
  }
  if (reports) addReportMetrics(text, reports);
  if (flows) await addFlowMetricsInTurns(text, await flows.report(), flows.overrides);
  if (flows) await addHttpMetricsInTurns(text, await flows.httpReport(), flows.overrides);
  if (flows?.logLost !== undefined) text.add('underpass_flow_log_lines_lost_total', 'counter', 'Connections that ended and had no line in the flow log, since there were too many.', flows.logLost);
  return text;
}

function metricName(name: string): string {
  return name.replaceAll(/[^a-zA-Z0-9_]/g, '_');
}
