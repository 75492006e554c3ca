/** The agents: what state nodes are in, which way their traffic takes and why, and what it costs. */
import { quantiles, rate, type Dashboard, type Query } from './dashboard.js';

const HERE = 'instance=~"$instance"';
const NODE = '{{instance}}';

const sum = (metric: string, by = '', labels = ''): string => `sum${by === '' ? '' : ` by (${by})`} (${metric}{${HERE}${labels}})`;
const sumRate = (metric: string, by = ''): string => `sum${by === '' ? '' : ` by (${by})`} (${rate(metric, HERE)})`;
/** How many say 0. */
const lacking = (metric: string): string => `count(${metric}{${HERE}}) - sum(${metric}{${HERE}})`;
/** Counters of the BPF programs as lines of a graph. */
const kernel = (...names: readonly string[]): Query[] => names.map((name) => ({ expr: sumRate(`underpass_kernel_${name}_total`), legend: name.replaceAll('_', ' ') }));
const FAST = sumRate('underpass_kernel_http_requests_fast_total', 'instance');
const SCRAPES = `on (job, instance) underpass_agent_ready{${HERE}}`;

export const NODES: Dashboard = {
  uid: 'underpass-nodes',
  title: 'Underpass: nodes',
  description: "The agents of the nodes: state, ways that traffic takes, what is in force, memory and CPU.",
  variables: [{ name: 'instance', label: 'Agent', of: 'label_values(underpass_agent_ready, instance)', isMany: true }],
  rows: [
    {
      title: 'State',
      panels: [
        { kind: 'stat', title: 'Agents', unit: 'short', expr: `count(underpass_agent_ready{${HERE}})` },
        { kind: 'stat', title: 'Not ready', unit: 'short', expr: lacking('underpass_agent_ready'), bad: { from: 1 } },
        { kind: 'stat', title: 'Without Envoy', unit: 'short', expr: lacking('underpass_envoy_up'), bad: { from: 1 } },
        { kind: 'stat', title: 'Without control plane', unit: 'short', expr: lacking('underpass_control_plane_connected'), bad: { from: 1 } },
        { kind: 'stat', title: 'Without short-circuits', description: 'The self-test did not allow them on this kernel, or it has not ended yet.', unit: 'short', expr: lacking('underpass_acceleration_on'), bad: { from: 1 } },
        { kind: 'stat', title: 'Rejected by Envoy', description: 'Resources whose last good version is in force instead: `underpass ps` names them.', unit: 'short', expr: sum('underpass_proxy_rejected_resources'), bad: { from: 1 } },
        { kind: 'stat', title: 'Drifting', description: 'Entries of the kernel and resources of Envoy that are not what the agent wants there.', unit: 'short', expr: sum('underpass_drifting'), bad: { from: 1 } },
        { kind: 'stat', title: 'First certificate to expire', unit: 's', expr: `min(underpass_certificate_expiry_timestamp_seconds{${HERE}} > 0) - time()`, bad: { from: 7200, isLow: true } },
      ],
    },
    {
      title: 'Pods',
      panels: [
        { kind: 'graph', title: 'By mode, way and state', description: 'enrolling or failed for long: `underpass ps` says why.', unit: 'short', isStacked: true, queries: [{ expr: sum('underpass_pods', 'mode, way, state'), legend: '{{mode}}, {{way}}: {{state}}' }] },
        { kind: 'graph', title: 'Programs by verdict', description: 'Only event-driven ones are short-circuited: `underpass probation` names them.', unit: 'short', isStacked: true, queries: [{ expr: sum('underpass_probation_programs', 'kind, verdict'), legend: '{{kind}}: {{verdict}}' }] },
        { kind: 'graph', title: 'Whom policy holds for', unit: 'short', queries: [{ expr: sum('underpass_policy_pods'), legend: 'pods' }, { expr: sum('underpass_policy_unreadable_pods'), legend: 'pods with a policy that can not be read' }] },
      ],
    },
    {
      title: 'Connections',
      panels: [
        {
          kind: 'graph', title: 'By way', unit: 'cps',
          queries: [
            { expr: sumRate('underpass_kernel_connections_captured_total'), legend: 'to Envoy' },
            { expr: sumRate('underpass_kernel_connections_resolved_total'), legend: 'to an endpoint drawn in the kernel' },
            { expr: sumRate('underpass_kernel_connections_short_circuited_total'), legend: 'short-circuited' },
            { expr: sumRate('underpass_kernel_inbound_steered_total'), legend: 'arriving, steered to Envoy' },
          ],
        },
        {
          kind: 'graph', title: 'Why not short-circuited', description: "docs/kernel-rules.md has the rules. Programs in probation, and those that block, go by plain TCP.", unit: 'cps',
          queries: kernel('connection_not_local', 'connection_client_probation', 'connection_listener_probation', 'connection_client_blocking', 'connection_listener_blocking', 'connection_client_spliced', 'connection_listener_spliced', 'connection_brief', 'connection_behind_nat', 'connection_pod_off', 'connection_switched_off'),
        },
        {
          kind: 'graph', title: 'Bytes', unit: 'Bps', isStacked: true,
          queries: [{ expr: sumRate('underpass_kernel_bytes_short_circuited_total'), legend: 'short-circuited' }, { expr: sumRate('underpass_kernel_bytes_tcp_total'), legend: 'by TCP, although joined or in probation' }],
        },
        { kind: 'graph', title: 'Bytes short-circuited, by pod', unit: 'Bps', queries: [{ expr: `topk(10, ${sumRate('underpass_pod_bytes_short_circuited_total', 'namespace, pod')})`, legend: '{{pod}}.{{namespace}}' }] },
        { kind: 'graph', title: 'Refused', unit: 'cps', queries: [...kernel('policy_connect_refused', 'policy_arrival_refused', 'connections_without_endpoint', 'inbound_unserved'), { expr: sumRate('underpass_policy_connections_closed_total'), legend: 'ended by a change of policy' }] },
        { kind: 'graph', title: 'Round trips of connections without a proxy', unit: 's', queries: quantiles('underpass_tcp_rtt_seconds', HERE) },
      ],
    },
    {
      title: 'The HTTP fast path',
      panels: [
        { kind: 'graph', title: 'Pods', unit: 'short', queries: [{ expr: sum('underpass_http_fast_path_pods', 'state'), legend: '{{state}}' }] },
        { kind: 'graph', title: 'Requests', unit: 'reqps', isStacked: true, queries: kernel('http_requests_fast', 'http_requests_drawn', 'http_requests_envoy') },
        { kind: 'graph', title: 'Share', unit: 'percentunit', max: 1, queries: [{ expr: `${FAST} / (${FAST} + ${sumRate('underpass_kernel_http_requests_envoy_total', 'instance')})`, legend: NODE }] },
        {
          kind: 'graph', title: 'Why Envoy', description: 'docs/http-fast-path.md says what each means.', unit: 'reqps',
          queries: kernel('http_no_routes', 'http_no_host', 'http_class_envoy', 'http_class_paused', 'http_no_endpoint', 'http_policy_envoy', 'http_not_learnt', 'http_not_teachable', 'http_body', 'http_close', 'http_sampled', 'http_traced', 'http_connections_bound', 'http_busy'),
        },
        { kind: 'graph', title: 'Connections that are Envoy\'s for good', unit: 'cps', queries: kernel('http_lost_doubt', 'http_lost_pipelined', 'http_lost_blocking', 'http_lost_answer', 'http_lost_close', 'http_channels_full') },
        { kind: 'graph', title: 'Upstream connections of one client alone', unit: 'short', queries: [{ expr: sum('underpass_http_fast_path_upstreams', 'instance'), legend: NODE }] },
      ],
    },
    {
      title: 'Configuration',
      panels: [
        { kind: 'graph', title: 'Configurations sent to Envoy, and refused resources', unit: 'cps', queries: [{ expr: sumRate('underpass_proxy_snapshots_total', 'instance'), legend: `${NODE} sent` }, { expr: sumRate('underpass_proxy_nacks_total', 'instance'), legend: `${NODE} refused` }] },
        { kind: 'graph', title: 'Refused at this time', unit: 'short', queries: [{ expr: sum('underpass_proxy_rejected_resources', 'instance'), legend: NODE }] },
        { kind: 'graph', title: 'Drift', description: 'What is in force and is not what is wanted, by the last comparison, and what was found so.', unit: 'short', queries: [{ expr: sum('underpass_drifting', 'compared'), legend: 'now: {{compared}}' }, { expr: `sum by (kind, state) (increase(underpass_drift_total{${HERE}}[$__rate_interval]))`, legend: 'found: {{kind}} {{state}}' }] },
        { kind: 'graph', title: 'Repairs', unit: 'short', queries: [{ expr: `sum by (kind, result) (increase(underpass_repairs_total{${HERE}}[$__rate_interval]))`, legend: '{{kind}}: {{result}}' }] },
        { kind: 'graph', title: 'Length of a comparison', unit: 's', queries: [{ expr: `max by (compared) (underpass_consistency_round_seconds{${HERE}})`, legend: '{{compared}}' }] },
        { kind: 'graph', title: 'Services decided in the kernel', unit: 'short', queries: [{ expr: sum('underpass_services', 'instance'), legend: `${NODE} services` }, { expr: sum('underpass_service_endpoints', 'instance'), legend: `${NODE} endpoints` }, { expr: sum('underpass_services_without_room', 'instance'), legend: `${NODE} services without room` }] },
      ],
    },
    {
      title: 'Cost',
      panels: [
        { kind: 'graph', title: 'Memory', unit: 'bytes', queries: [{ expr: sum('underpass_agent_resident_memory_bytes', 'instance'), legend: `${NODE} agent` }, { expr: sum('underpass_envoy_resident_memory_bytes', 'instance'), legend: `${NODE} Envoy` }] },
        { kind: 'graph', title: 'CPU', description: 'Of one CPU. What the kernel does for pods is in none of both.', unit: 'percentunit', queries: [{ expr: sumRate('underpass_agent_cpu_seconds_total', 'instance'), legend: `${NODE} agent` }, { expr: sumRate('underpass_envoy_cpu_seconds_total', 'instance'), legend: `${NODE} Envoy` }] },
        { kind: 'graph', title: 'Longest hold-up of the event loop', description: 'In the last one to two minutes.', unit: 's', queries: [{ expr: `max by (instance) (underpass_agent_event_loop_delay_max_seconds{${HERE}})`, legend: NODE }] },
        { kind: 'graph', title: 'Restarts of Envoy', unit: 'short', queries: [{ expr: `sum by (instance) (increase(underpass_envoy_restarts_total{${HERE}}[$__rate_interval]))`, legend: NODE }] },
        { kind: 'graph', title: 'Length of a scrape', unit: 's', queries: [{ expr: `scrape_duration_seconds and ${SCRAPES}`, legend: NODE }] },
        { kind: 'graph', title: 'Series of a scrape', unit: 'short', queries: [{ expr: `scrape_samples_scraped and ${SCRAPES}`, legend: NODE }] },
      ],
    },
    {
      title: 'What the metrics leave out',
      panels: [
        { kind: 'graph', title: 'Series without room', description: 'Added up in one with otel_metric_overflow="true".', unit: 'short', queries: [{ expr: sum('underpass_metrics_series_dropped_total', 'instance, of'), legend: `${NODE} {{of}}` }] },
        {
          kind: 'graph', title: 'Keys that Envoy counts by', description: 'At 4,096 it counts none of others.', unit: 'short',
          queries: ['request', 'connection', 'message'].map((what) => ({ expr: sum(`underpass_envoy_${what}_keys`, 'instance'), legend: `${NODE} ${what}s` })),
        },
        {
          kind: 'graph', title: 'Counted, and in no series', unit: 'cps',
          queries: [...kernel('flows_full', 'http_totals_full', 'flow_records_lost', 'watch_events_lost'), { expr: sumRate('underpass_envoy_requests_lost_total'), legend: 'Envoy: requests of pods that nobody knows' }, { expr: sumRate('underpass_envoy_connections_lost_total'), legend: 'Envoy: connections of pods that nobody knows' }],
        },
      ],
    },
  ],
};
