/** Pilot: who is connected, what is pushed to them, how long it takes until it is in force, and what is refused. */
import { quantile, quantiles, rates, type Dashboard } from './dashboard.js';

const PILOT = 'and on (job, instance) pilot_info';
const POD = '{{instance}}';

export const CONTROL_PLANE: Dashboard = {
  uid: 'underpass-control-plane',
  title: 'Underpass: control plane',
  description: "Underpass's own control plane, under istiod's names of metrics.",
  variables: [],
  rows: [
    {
      title: 'State',
      panels: [
        { kind: 'stat', title: 'Replicas', unit: 'short', expr: 'count(pilot_info)' },
        { kind: 'stat', title: 'Connected clients', unit: 'short', expr: 'sum(pilot_xds)' },
        { kind: 'stat', title: 'Services', unit: 'short', expr: 'max(pilot_services)' },
        { kind: 'stat', title: 'VirtualServices', unit: 'short', expr: 'max(pilot_virt_services)' },
        { kind: 'stat', title: 'Change in force everywhere, p99', unit: 's', expr: quantile(0.99, 'pilot_proxy_convergence_time', ''), bad: { from: 10, worse: 30 } },
        { kind: 'stat', title: 'Internal errors', unit: 'short', expr: 'sum(increase(pilot_total_xds_internal_errors[$__range]))', bad: { from: 1 } },
      ],
    },
    {
      title: 'Pushes',
      panels: [
        { kind: 'graph', title: 'Responses by type', unit: 'cps', isStacked: true, queries: [{ expr: rates('type', 'pilot_xds_pushes'), legend: '{{type}}' }] },
        { kind: 'graph', title: 'Refused by clients', description: 'NACKs: `underpass ps` and `underpass config-status` name node, object and reason.', unit: 'cps', queries: [{ expr: rates('type', 'pilot_total_xds_rejects'), legend: '{{type}}' }] },
        { kind: 'graph', title: 'From a change to its acknowledgement', unit: 's', queries: quantiles('pilot_proxy_convergence_time', '') },
        { kind: 'graph', title: 'Making and handing over one response, p99', unit: 's', queries: [{ expr: quantile(0.99, 'pilot_xds_push_time', '', 'type'), legend: '{{type}}' }] },
        { kind: 'graph', title: 'Waiting in the queue', unit: 's', queries: quantiles('pilot_proxy_queue_time', '') },
        { kind: 'graph', title: 'From the first change of a burst to its push', unit: 's', queries: quantiles('pilot_debounce_time', '') },
        { kind: 'graph', title: 'Size of responses, p99', unit: 'bytes', queries: [{ expr: quantile(0.99, 'pilot_xds_config_size_bytes', '', 'type'), legend: '{{type}}' }] },
        { kind: 'graph', title: 'Clients by version', unit: 'short', isStacked: true, queries: [{ expr: 'sum by (version) (pilot_xds)', legend: '{{version}}' }] },
      ],
    },
    {
      title: 'Changes',
      panels: [
        { kind: 'graph', title: 'By kind', unit: 'cps', queries: [{ expr: rates('type', 'pilot_inbound_updates'), legend: '{{type}}' }] },
        { kind: 'graph', title: 'What made pushes necessary', unit: 'cps', queries: [{ expr: rates('type', 'pilot_push_triggers'), legend: '{{type}}' }] },
        { kind: 'graph', title: 'Services', unit: 'short', queries: [{ expr: 'pilot_services', legend: `${POD} services` }, { expr: 'pilot_virt_services', legend: `${POD} VirtualServices` }] },
      ],
    },
    {
      title: 'Webhooks',
      panels: [
        { kind: 'graph', title: 'Validation', unit: 'cps', queries: [{ expr: rates('resource', 'galley_validation_passed'), legend: 'valid: {{resource}}' }, { expr: rates('resource, reason', 'galley_validation_failed'), legend: 'refused: {{resource}}, {{reason}}' }] },
        {
          kind: 'graph', title: 'Injection', unit: 'cps',
          queries: [{ expr: rates('', 'sidecar_injection_success_total'), legend: 'got a proxy' }, { expr: rates('', 'sidecar_injection_skip_total'), legend: 'left alone' }, { expr: rates('', 'sidecar_injection_failure_total'), legend: 'refused' }],
        },
      ],
    },
    {
      title: 'Cost',
      panels: [
        { kind: 'graph', title: 'Memory', unit: 'bytes', queries: [{ expr: `process_resident_memory_bytes ${PILOT}`, legend: POD }] },
        { kind: 'graph', title: 'CPU', description: 'Of one CPU.', unit: 'percentunit', queries: [{ expr: `rate(process_cpu_seconds_total[$__rate_interval]) ${PILOT}`, legend: POD }] },
        { kind: 'graph', title: 'Hold-up of the event loop, p99', unit: 's', queries: [{ expr: `nodejs_eventloop_lag_p99_seconds ${PILOT}`, legend: POD }] },
      ],
    },
  ],
};
