// Rules and alerts of deploy/prometheus by promtool: what it reads, and of each alert what makes it fire and what does not.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Command } from 'commander';
import { stringify } from 'yaml';
import { RULE_GROUPS, type Alert, type Recording } from '../../cli/install/rules.js';
import { buildProgram } from '../../cli/program.js';
import { projectRoot } from '../../common/paths.js';
import { promtool } from './prometheus.js';

const RULES = join(projectRoot, 'deploy', 'prometheus', 'rules.yaml');
const rules = RULE_GROUPS.flatMap((group) => group.rules);
const alerts = rules.filter((rule): rule is Alert => 'alert' in rule);

let folder: string;
before(() => void (folder = mkdtempSync(join(tmpdir(), 'up-rules-'))));
after(() => rmSync(folder, { recursive: true, force: true }));

/** By series what they are, a value a minute, in promtool's words: `1x5` is 1 six times, `0+2x5` counts up by 2, `_` is nothing. */
type Series = Record<string, string>;

interface Case {
  /** Minutes from the first value. */
  at: number;
  fires: Series;
  /** What must not make it fire at that time. */
  quiet: Series[];
}

const A = '{job="nodes",instance="10.0.0.1:15020"}';
const B = '{job="others",instance="10.0.0.2:9100"}';
/** Of a gauge that is 1 or 0. */
const state = (name: string, at: number, bad: number): Case => ({ at, fires: { [`${name}${A}`]: `${bad}x40` }, quiet: [{ [`${name}${A}`]: `${1 - bad}x40` }, { [`${name}${A}`]: `${1 - bad}x${at - 1} ${bad}x40` }] });
/** Of a gauge that is 0 when all is well. */
const count = (name: string, at: number): Case => ({ at, fires: { [name]: '2x40' }, quiet: [{ [name]: '0x40' }, { [name]: `0x${at - 1} 2x40` }] });
/** Of a counter that stands still when all is well. */
const counter = (name: string): Case => ({ at: 6, fires: { [name]: '3x4 4x40' }, quiet: [{ [name]: '3x40' }] });
const certificate = (identity: string): string => `underpass_certificate_expiry_timestamp_seconds{job="nodes",instance="10.0.0.1:15020",identity="${identity}"}`;
const requests = (code: number): string => `istio_requests_total{reporter="source",destination_service="web.shop.svc.cluster.local",destination_service_namespace="shop",response_code="${code}"}`;

const CASES: Record<string, Case> = {
  UnderpassAgentDown: {
    at: 12,
    fires: { [`up${A}`]: '1x4 0x20', [`underpass_agent_ready${A}`]: '1x4 _x20' },
    quiet: [{ [`up${A}`]: '1x20', [`underpass_agent_ready${A}`]: '1x20' }, { [`up${B}`]: '0x20', [`underpass_agent_ready${A}`]: '1x20' }, { [`up${A}`]: '1x9 0x20', [`underpass_agent_ready${A}`]: '1x9 _x20' }],
  },
  UnderpassAgentNotReady: state('underpass_agent_ready', 12, 0),
  UnderpassEnvoyDown: state('underpass_envoy_up', 3, 0),
  UnderpassEnvoyRestarted: counter(`underpass_envoy_restarts_total${A}`),
  UnderpassControlPlaneDisconnected: state('underpass_control_plane_connected', 7, 0),
  UnderpassConfigurationRejected: count(`underpass_proxy_rejected_resources${A}`, 7),
  UnderpassDriftNotRepaired: count('underpass_drifting{job="nodes",instance="10.0.0.1:15020",compared="kernel"}', 4),
  UnderpassPodsNotEnrolled: {
    at: 12,
    fires: { 'underpass_pods{job="nodes",instance="n",mode="node",way="plain",state="failed"}': '1x40' },
    quiet: [{ 'underpass_pods{job="nodes",instance="n",mode="node",way="bpf",state="enrolled"}': '5x40' }, { 'underpass_pods{job="nodes",instance="n",mode="off",way="plain",state="off"}': '5x40' }, { 'underpass_pods{job="nodes",instance="n",mode="node",way="plain",state="enrolling"}': '1x8 stale' }],
  },
  UnderpassPolicyUnreadable: count(`underpass_policy_unreadable_pods${A}`, 3),
  UnderpassAccelerationOff: state('underpass_acceleration_on', 17, 0),
  UnderpassEventLoopBlocked: { at: 7, fires: { [`underpass_agent_event_loop_delay_max_seconds${A}`]: '2.5x40' }, quiet: [{ [`underpass_agent_event_loop_delay_max_seconds${A}`]: '0.04x40' }, { [`underpass_agent_event_loop_delay_max_seconds${A}`]: '0.04x3 2.5 0.04x40' }] },
  UnderpassCaUnreachable: state('underpass_ca_up', 17, 0),
  UnderpassCertificateNearExpiry: {
    at: 10,
    // Ten minutes after the beginning of time.
    fires: { [certificate('a')]: '90000x40', [certificate('b')]: '2000x40', [`underpass_ca_up${A}`]: '1x40' },
    quiet: [
      { [certificate('a')]: '43200x40', [`underpass_ca_up${A}`]: '1x40' },
      // None yet.
      { [certificate('a')]: '0x40', [`underpass_ca_up${A}`]: '1x40' },
      // A CA whose certificates live for an hour, half over.
      { [certificate('a')]: '2500x40', [`underpass_ca_up${A}`]: '1x40' },
      { [certificate('a')]: '43200x40', [`underpass_ca_up${A}`]: '0x40' },
    ],
  },
  UnderpassCertificateExpired: { at: 2, fires: { 'underpass_certificate_expired{job="nodes",instance="n",identity="a"}': '1x40' }, quiet: [{ 'underpass_certificate_expired{job="nodes",instance="n",identity="a"}': '0x40' }] },
  UnderpassSeriesCut: counter('underpass_metrics_series_dropped_total{job="nodes",instance="n",of="requests"}'),
  UnderpassEnvoyMetricsUnread: state('underpass_envoy_requests_read', 17, 0),
  UnderpassHighErrorRate: {
    at: 12,
    fires: { [requests(200)]: '0+54x40', [requests(503)]: '0+6x40' },
    quiet: [{ [requests(200)]: '0+600x40', [requests(503)]: '0+6x40' }, { [requests(200)]: '0+60x40' }, { [requests(404)]: '0+60x40' }, { [requests(503)]: '0+1x40' }],
  },
  UnderpassPilotDown: { at: 12, fires: { [`up${A}`]: '1x4 0x20', 'pilot_info{job="nodes",instance="10.0.0.1:15020",version="1"}': '1x4 _x20' }, quiet: [{ [`up${A}`]: '0x20' }] },
  UnderpassPilotRejects: counter('pilot_total_xds_rejects{job="pilot",instance="p",type="lds"}'),
  UnderpassPilotInternalError: counter('pilot_total_xds_internal_errors{job="pilot",instance="p"}'),
  UnderpassSlowPushes: {
    at: 25,
    fires: { 'pilot_proxy_convergence_time_bucket{job="pilot",instance="p",le="30"}': '0x40', 'pilot_proxy_convergence_time_bucket{job="pilot",instance="p",le="60"}': '0+5x40', 'pilot_proxy_convergence_time_bucket{job="pilot",instance="p",le="+Inf"}': '0+5x40' },
    quiet: [{ 'pilot_proxy_convergence_time_bucket{job="pilot",instance="p",le="0.5"}': '0+5x40', 'pilot_proxy_convergence_time_bucket{job="pilot",instance="p",le="+Inf"}': '0+5x40' }],
  },
};

test('promtool finds nothing wrong with the rules', async () => {
  const { code, stdout, stderr } = await promtool('check', 'rules', '--lint=all', '--lint-fatal', RULES);
  assert.equal(code, 0, stdout + stderr);
  assert.match(stdout, new RegExp(`${rules.length} rules found`));
});

test('each alert fires at what it is for, after the time that it waits, and not at what is usual', async () => {
  assert.deepEqual(Object.keys(CASES).sort(), alerts.map(({ alert }) => alert).sort());
  const group = (name: string, series: Series, alert: string, at: number, fires: boolean): object => ({
    name, interval: '1m',
    input_series: Object.entries(series).map(([key, values]) => ({ series: key, values })),
    promql_expr_test: [{ expr: `count(ALERTS{alertname="${alert}",alertstate="firing"})`, eval_time: `${at}m`, exp_samples: fires ? [{ labels: '{}', value: 1 }] : [] }],
  });
  const tests = Object.entries(CASES).flatMap(([alert, { at, fires, quiet }]) => [group(`${alert} fires`, fires, alert, at, true), ...quiet.map((series, index) => group(`${alert} is quiet ${index}`, series, alert, at, false))]);
  const file = join(folder, 'alerts.yaml');
  writeFileSync(file, stringify({ rule_files: [RULES], evaluation_interval: '1m', tests }));
  const { code, stdout, stderr } = await promtool('test', 'rules', file);
  assert.equal(code, 0, stdout + stderr);
});

test('recordings are what their names say', async () => {
  const web = '{reporter="source",destination_service="web",destination_service_namespace="shop"}';
  const expected: Record<string, [labels: string, value: number]> = {
    'destination_service:istio_requests:rate5m': [web, 2],
    'destination_service:istio_requests_failed:ratio_rate5m': [web, 0.5],
    'destination_service:istio_request_duration_milliseconds:p50_rate5m': [web, 5],
    'destination_service:istio_request_duration_milliseconds:p90_rate5m': [web, 9],
    'destination_service:istio_request_duration_milliseconds:p99_rate5m': [web, 9.9],
    'destination_service:istio_tcp_bytes:rate5m': [web, 30],
    'instance:underpass_http_requests_fast:ratio_rate5m': [A, 0.75],
    'instance:underpass_bytes_short_circuited:ratio_rate5m': [A, 0.75],
  };
  assert.deepEqual(Object.keys(expected), rules.filter((rule): rule is Recording => 'record' in rule).map(({ record }) => record));
  const inner = web.slice(1, -1);
  const series: Series = {
    [`istio_requests_total{${inner},response_code="200"}`]: '0+60x20', [`istio_requests_total{${inner},response_code="503"}`]: '0+60x20',
    [`istio_request_duration_milliseconds_bucket{${inner},le="10"}`]: '0+60x20', [`istio_request_duration_milliseconds_bucket{${inner},le="+Inf"}`]: '0+60x20',
    [`istio_tcp_sent_bytes_total${web}`]: '0+600x20', [`istio_tcp_received_bytes_total${web}`]: '0+1200x20',
    [`underpass_kernel_http_requests_fast_total${A}`]: '0+90x20', [`underpass_kernel_http_requests_envoy_total${A}`]: '0+30x20',
    [`underpass_kernel_bytes_short_circuited_total${A}`]: '0+90x20', [`underpass_kernel_bytes_tcp_total${A}`]: '0+30x20',
  };
  const file = join(folder, 'recordings.yaml');
  writeFileSync(file, stringify({
    rule_files: [RULES], evaluation_interval: '1m',
    tests: [{ interval: '1m', input_series: Object.entries(series).map(([key, values]) => ({ series: key, values })), promql_expr_test: Object.entries(expected).map(([record, [labels, value]]) => ({ expr: record, eval_time: '12m', exp_samples: [{ labels: labels.replace('{', `{__name__="${record}",`), value }] })) }],
  }));
  const { code, stdout, stderr } = await promtool('test', 'rules', file);
  assert.equal(code, 0, stdout + stderr);
});

test('the runbook of each alert names commands and options that there are, and pages that there are', async () => {
  const program = await buildProgram('all');
  const knows = (command: Command, word: string): boolean => command.options.some(({ long, short }) => long === word || short === word);
  for (const { alert, annotations } of alerts) {
    assert.match(annotations.runbook, /`(underpass|kubectl) /, `${alert} has no command`);
    for (const [, line = ''] of annotations.runbook.matchAll(/`underpass ([^`]*)`/g)) {
      let command: Command = program;
      for (const word of line.split(' ')) {
        const option = word.split('=')[0]!;
        if (option.startsWith('-')) assert.ok(knows(command, option), `${alert}: underpass ${line}: ${option}`);
        else command = command.commands.find((each) => each.name() === word) ?? command;
      }
      assert.notEqual(command, program, `${alert}: underpass ${line}`);
    }
    for (const [page] of annotations.runbook.matchAll(/docs\/[\w./-]+\.md/g)) assert.ok(existsSync(join(projectRoot, page)), `${alert}: ${page}`);
  }
});
