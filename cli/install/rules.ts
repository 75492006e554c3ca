/** Rules for Prometheus: sums that dashboards of one's own are quick with, and alerts, each with the command that tells more. */

export interface Alert {
  alert: string;
  expr: string;
  for: string;
  labels: { severity: 'critical' | 'warning' | 'info' };
  /** `runbook` names what to run, and what to do about what it says. */
  annotations: { summary: string; description: string; runbook: string };
}

export interface Recording {
  record: string;
  expr: string;
}

export interface RuleGroup {
  name: string;
  rules: (Alert | Recording)[];
}

const BY = 'reporter, destination_service, destination_service_namespace';
const NODE = '{{ $labels.instance }}';
const LOG = '`kubectl -n underpass-system logs daemonset/underpass-agent -c agent --tail=200` (the pod of that node: `kubectl -n underpass-system get pods -o wide`)';
const FAST = 'sum by (job, instance) (rate(underpass_kernel_http_requests_fast_total[5m]))';
const ENVOYS = 'sum by (job, instance) (rate(underpass_kernel_http_requests_envoy_total[5m]))';
const MOVED = 'sum by (job, instance) (rate(underpass_kernel_bytes_short_circuited_total[5m]))';
const BY_TCP = 'sum by (job, instance) (rate(underpass_kernel_bytes_tcp_total[5m]))';
const FIRST_EXPIRY = 'min by (job, instance) (underpass_certificate_expiry_timestamp_seconds > 0) - time()';
const ERRORS = `sum by (${BY}) (rate(istio_requests_total{response_code=~"5.."}[5m]))`;
const REQUESTS = `sum by (${BY}) (rate(istio_requests_total[5m]))`;

const record = (name: string, expr: string): Recording => ({ record: name, expr });
const alert = (name: string, severity: Alert['labels']['severity'], held: string, expr: string, annotations: Alert['annotations']): Alert => ({ alert: name, expr, for: held, labels: { severity }, annotations });

const quantile = (share: number): Recording => record(`destination_service:istio_request_duration_milliseconds:p${share * 100}_rate5m`, `histogram_quantile(${share}, sum by (le, ${BY}) (rate(istio_request_duration_milliseconds_bucket[5m])))`);

export const RULE_GROUPS: readonly RuleGroup[] = [
  {
    name: 'underpass.recordings',
    rules: [
      record('destination_service:istio_requests:rate5m', REQUESTS),
      record('destination_service:istio_requests_failed:ratio_rate5m', `${ERRORS} / ${REQUESTS}`),
      ...[0.5, 0.9, 0.99].map(quantile),
      record('destination_service:istio_tcp_bytes:rate5m', `sum by (${BY}) (rate(istio_tcp_sent_bytes_total[5m])) + sum by (${BY}) (rate(istio_tcp_received_bytes_total[5m]))`),
      record('instance:underpass_http_requests_fast:ratio_rate5m', `${FAST} / (${FAST} + ${ENVOYS})`),
      record('instance:underpass_bytes_short_circuited:ratio_rate5m', `${MOVED} / (${MOVED} + ${BY_TCP})`),
    ],
  },
  {
    name: 'underpass.nodes',
    rules: [
      // Whatever the job is called: what was an agent within the last day, and still is a target.
      alert('UnderpassAgentDown', 'critical', '5m', 'up == 0 and on (job, instance) last_over_time(underpass_agent_ready[1d])', {
        summary: `The agent at ${NODE} does not answer`,
        description: "Nothing of the node's traffic depends on it: kernel and Envoy go on as they are. New pods of labelled namespaces wait, changes of configuration and policy do not arrive, certificates are not renewed.",
        runbook: `\`kubectl -n underpass-system describe pod --selector app=underpass-agent\` says whether it was killed, and why; ${LOG} what it said last. If the process runs: \`underpass ps --node NODE\`, and \`underpass wait --for=ready\` when it has been started again.`,
      }),
      alert('UnderpassAgentNotReady', 'warning', '10m', 'underpass_agent_ready == 0', {
        summary: `The agent at ${NODE} is not ready`,
        description: 'It lacks its pods, its Envoy, its control plane or certificates; the readiness of its pod says the same.',
        runbook: `\`underpass ps --node NODE\` says what is missing (in -o json: notReady). Then ${LOG}.`,
      }),
      alert('UnderpassEnvoyDown', 'critical', '1m', 'underpass_envoy_up == 0', {
        summary: `The node at ${NODE} has no Envoy`,
        description: "New connections of the node's pods that need a proxy are refused. What the kernel alone carries goes on.",
        runbook: `\`kubectl -n underpass-system logs daemonset/underpass-agent -c envoy --tail=200\` has Envoy's last words, \`kubectl -n underpass-system describe pod --selector app=underpass-agent\` whether it ran out of memory (agent.envoyResources). \`underpass bug-report --node NODE\` keeps both.`,
      }),
      alert('UnderpassEnvoyRestarted', 'warning', '0m', 'increase(underpass_envoy_restarts_total[15m]) > 0', {
        summary: `The Envoy of the node at ${NODE} died and was started anew`,
        description: 'All connections through it were cut. More than once in a quarter of an hour it is likely to go on so.',
        runbook: `\`kubectl -n underpass-system logs daemonset/underpass-agent -c envoy --tail=500\` for a signal or an assertion, \`kubectl -n underpass-system describe pod --selector app=underpass-agent\` for OOMKilled; \`underpass bug-report --node NODE\` before it dies again. A configuration that was applied last: \`underpass config-status\`.`,
      }),
      alert('UnderpassControlPlaneDisconnected', 'warning', '5m', 'underpass_control_plane_connected == 0', {
        summary: `The agent at ${NODE} has no control plane`,
        description: 'The last configuration stays in force; nothing newer arrives: endpoints of pods that are replaced go stale.',
        runbook: `\`underpass ps --node NODE\` says why it does not connect (controlPlane.lastError in -o json). \`kubectl -n istio-system get pods,endpoints istiod\` says whether anybody serves, and ${LOG} whether the certificate or the token is refused.`,
      }),
      alert('UnderpassConfigurationRejected', 'warning', '5m', 'underpass_proxy_rejected_resources > 0', {
        summary: `{{ $value }} resources are rejected at ${NODE}`,
        description: 'Envoy, or the agent, does not take them; their last good version stays in force (NACK).',
        runbook: '`underpass ps --node NODE` names resource, object and reason, `underpass config-status KIND/NAME.NAMESPACE` the versions on every node. `underpass analyze` finds what is wrong in the written configuration; taking back the object that was changed last ends it.',
      }),
      alert('UnderpassDriftNotRepaired', 'critical', '2m', 'underpass_drifting > 0', {
        summary: `{{ $value }} entries of {{ $labels.compared }} at ${NODE} are not what is wanted, and stay so`,
        description: 'Something else writes into the maps of the kernel or into Envoy, or a repair fails or is withheld since it was undone again and again. Traffic may take another way than the configuration says.',
        runbook: '`underpass ps --node NODE` names each entry (DRIFT), its object and what came of the repair; docs/consistency.md what is repaired and what is not. On the node `bpftool prog show` and `bpftool map show` find another program that uses the maps. `underpass bug-report --node NODE` keeps the state.',
      }),
      alert('UnderpassPodsNotEnrolled', 'warning', '10m', 'sum by (job, instance, state) (underpass_pods{mode="node",state=~"enrolling|failed"}) > 0', {
        summary: `{{ $value }} pods at ${NODE} are labelled and not in the mesh (state {{ $labels.state }})`,
        description: 'Their new connections go their plain way, without routing; or, in a namespace that waits for enrolment, they do not start.',
        runbook: `\`underpass ps --node NODE --all\` says for each pod what it waits for, or why it failed; \`underpass describe pod NAMESPACE/POD\` what applies to it. \`underpass doctor\` on the node says what the kernel lacks.`,
      }),
      alert('UnderpassPolicyUnreadable', 'critical', '1m', 'underpass_policy_unreadable_pods > 0', {
        summary: `The policy of {{ $value }} pods at ${NODE} can not be judged by`,
        description: 'The kernel lets no new connection in to them.',
        runbook: `\`underpass ps --node NODE -o json\` names them (policies.unreadable); \`underpass analyze\` the AuthorizationPolicy. ${LOG}.`,
      }),
      alert('UnderpassAccelerationOff', 'info', '15m', 'underpass_acceleration_on == 0', {
        summary: `Nothing is short-circuited at ${NODE}`,
        description: 'The self-test did not allow it: {{ $labels.reason }}. Traffic goes on by TCP.',
        runbook: '`underpass ps --node NODE` has the reason, `underpass doctor` on the node what the kernel lacks and what that costs.',
      }),
      alert('UnderpassEventLoopBlocked', 'warning', '5m', 'underpass_agent_event_loop_delay_max_seconds > 1', {
        summary: `The agent at ${NODE} is held up for {{ $value | humanizeDuration }} at a time`,
        description: 'Enrolment, configuration and scrapes wait for that long. The node has too little CPU for it, or too much changes at once.',
        runbook: `\`kubectl -n underpass-system top pod --containers\` and \`underpass top\` show who is busy; compare with agent.resources. \`underpass bug-report --node NODE\` keeps sizes and rates for a report.`,
      }),
    ],
  },
  {
    name: 'underpass.identity',
    rules: [
      alert('UnderpassCaUnreachable', 'warning', '15m', 'underpass_ca_up == 0', {
        summary: `The CA gives the agent at ${NODE} no certificates`,
        description: 'Those that are there are used until they expire; new service accounts have none, and their connections that need one are refused.',
        runbook: `\`underpass ps --node NODE\` has the CA's answer (proxy.certificates in -o json). An istiod has to trust the account underpass-system/underpass-agent (CA_TRUSTED_NODE_ACCOUNTS). ${LOG}.`,
      }),
      alert('UnderpassCertificateNearExpiry', 'critical', '0m', `${FIRST_EXPIRY} < 1800 or (${FIRST_EXPIRY} < 14400 and on (job, instance) underpass_ca_up == 0)`, {
        summary: `A certificate at ${NODE} expires in {{ $value | humanizeDuration }}`,
        description: 'It should have been renewed at half of its life. When it has expired, new connections of its service account that need mutual TLS are refused.',
        runbook: '`underpass proxy-config secrets POD` has the dates, `underpass ps --node NODE -o json` which identity and why (proxy.certificates). `kubectl -n istio-system get pods` and the log of istiod or pilot say whether the CA signs.',
      }),
      alert('UnderpassCertificateExpired', 'critical', '0m', 'sum by (job, instance) (underpass_certificate_expired) > 0', {
        summary: `{{ $value }} service accounts at ${NODE} have a certificate that has expired`,
        description: 'Their new connections that need mutual TLS are refused.',
        runbook: '`underpass ps --node NODE -o json` names identity and reason (proxy.certificates). Compare the clocks of node and CA (`date`); then as of UnderpassCertificateNearExpiry.',
      }),
    ],
  },
  {
    name: 'underpass.metrics',
    rules: [
      alert('UnderpassSeriesCut', 'warning', '0m', 'sum by (job, instance, of) (increase(underpass_metrics_series_dropped_total[1h])) > 0 or label_replace(sum by (job, instance) (increase(underpass_kernel_flows_full_total[1h]) + increase(underpass_kernel_http_totals_full_total[1h])) > 0, "of", "kernel", "", "")', {
        summary: `Series of {{ $labels.of }} at ${NODE} found no room`,
        description: 'They are added up in one series, with otel_metric_overflow="true" or unknown workloads: totals are right, single services and workloads are not.',
        runbook: '`underpass top` shows who talks to whom. docs/http-fast-path.md#telemetry and docs/architecture.md#telemetry-of-what-no-proxy-sees have the bounds. What makes many: short-lived workloads with names of their own, clients from many addresses.',
      }),
      alert('UnderpassEnvoyMetricsUnread', 'warning', '15m', 'underpass_envoy_requests_read == 0 or underpass_envoy_connections_read == 0', {
        summary: `Envoy's part of the metrics of the node at ${NODE} is not told`,
        description: 'What the kernel counts is. What Envoy counts is added when it answers again.',
        runbook: `${LOG} has the reason. An Envoy that is up and does not answer within two seconds is too busy: \`kubectl -n underpass-system top pod --containers\`.`,
      }),
    ],
  },
  {
    name: 'underpass.services',
    rules: [
      alert('UnderpassHighErrorRate', 'warning', '5m', `${ERRORS} / ${REQUESTS} > 0.05 and ${REQUESTS} > 0.1`, {
        summary: '{{ $value | humanizePercentage }} of the requests to {{ $labels.destination_service }} are answered by 5xx (reporter {{ $labels.reporter }})',
        description: 'At the source alone: something between, as no healthy endpoint or a timeout. At the destination too: the service itself.',
        runbook: '`underpass flows -f --to WORKLOAD` on a node shows the requests with flags and way, `underpass explain POD SERVICE:PORT --http "GET /"` route, endpoints, ejections and policy. `underpass fast-path off` on a node takes the kernel out of the way, to compare.',
      }),
    ],
  },
  {
    name: 'underpass.control-plane',
    rules: [
      alert('UnderpassPilotDown', 'critical', '5m', 'up == 0 and on (job, instance) last_over_time(pilot_info[1d])', {
        summary: `The control plane's replica at ${NODE} does not answer`,
        description: 'With no replica left configuration stays as it is, new proxies do not start, and certificates are not renewed.',
        runbook: '`kubectl -n istio-system describe pod --selector app=underpass-pilot` and `kubectl -n istio-system logs deployment/underpass-pilot --tail=200`.',
      }),
      alert('UnderpassPilotRejects', 'warning', '0m', 'sum by (type) (increase(pilot_total_xds_rejects[10m])) > 0', {
        summary: 'Proxies refuse what the control plane sends them ({{ $labels.type }})',
        description: 'Their last good configuration stays in force.',
        runbook: '`kubectl -n istio-system logs deployment/underpass-pilot --tail=500` names client, resource and reason; `underpass config-status` the objects that are not in force. `underpass analyze` finds what is wrong in them, most often an EnvoyFilter.',
      }),
      alert('UnderpassPilotInternalError', 'critical', '0m', 'sum by (job, instance) (increase(pilot_total_xds_internal_errors[10m])) > 0', {
        summary: `The control plane at ${NODE} ends streams by errors of its own`,
        description: 'Clients come again and may meet the same error: configuration does not reach them.',
        runbook: '`kubectl -n istio-system logs deployment/underpass-pilot --tail=500` has the error with its stack; `underpass bug-report` keeps what is needed to report it.',
      }),
      alert('UnderpassSlowPushes', 'warning', '10m', 'histogram_quantile(0.99, sum by (le) (rate(pilot_proxy_convergence_time_bucket[10m]))) > 30', {
        summary: 'A change takes {{ $value | humanizeDuration }} until proxies have it in force',
        description: 'The control plane lacks CPU, or a client is slow to acknowledge.',
        runbook: '`kubectl -n istio-system top pod` shows the CPU; `kubectl -n istio-system port-forward deployment/underpass-pilot 15014`, then `curl localhost:15014/debug/syncz` which clients are behind.',
      }),
    ],
  },
];
