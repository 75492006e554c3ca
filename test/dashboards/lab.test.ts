/**
 * Dashboards and rules over what a real Prometheus scrapes of a lab: an agent and pilot, with requests through Envoy, by the HTTP fast
 * path and in gRPC, TCP without a proxy, what is refused, what drifts and what Envoy rejects.
 */
import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import { request as secureRequest } from 'node:https';
import type { AddressInfo } from 'node:net';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { instancePaths } from '../../agent/index.js';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { CURL, ECHO, FAST_NAMESPACE, fastPod, fastService } from '../fast-world.js';
import { MeshWorld } from '../mesh/world.js';
import { Prometheus, type Sample } from './prometheus.js';

const GRAFANA = join(projectRoot, 'deploy', 'grafana');
const RULES = join(projectRoot, 'deploy', 'prometheus', 'rules.yaml');

interface Panel {
  title: string;
  type: string;
  targets?: { expr: string; legendFormat?: string }[];
  fieldConfig?: { overrides: { matcher: { options: string } }[] };
}
interface Variable {
  name: string;
  type: string;
  query: string | { query: string };
  regex?: string;
}
interface Dashboard {
  uid: string;
  title: string;
  panels: Panel[];
  templating: { list: Variable[] };
}

const dashboards = readdirSync(GRAFANA).map((name): Dashboard => JSON.parse(readFileSync(join(GRAFANA, name), 'utf8')) as Dashboard);

const world = new MeshWorld('dashboards', {
  yaml: (namespace) => (namespace === 'sidecar' ? '' : `---
apiVersion: v1
kind: Pod
metadata: {name: grpc, namespace: node, labels: {app: grpc}}
spec: {serviceAccountName: grpc, containers: [{name: grpc, image: grpc-echo, ports: [{name: grpc, containerPort: 7070}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: grpc, namespace: node}
spec: {selector: {app: grpc}, ports: [{name: grpc, port: 7070}]}
`),
  outside: `${FAST_NAMESPACE}${fastPod('client', CURL)}${fastPod('web-v1', ECHO)}${fastService('web')}`,
  pilot: { monitoringListen: '127.0.0.1:0', webhooks: { listen: '127.0.0.1:0' } },
  agentArgs: ['--metrics-address', '127.0.0.1:0'],
});
let prometheus: Prometheus;
/** Hands on what the agent tells who asks for the text format alone. */
let textOnly: Server;
let agentAddress: string;
let isEnding = false;
let load: Promise<void> | undefined;

before(async () => {
  await world.up();
  agentAddress = (await world.agentStatus()).metrics?.address ?? assert.fail('the agent serves no metrics');
  textOnly = createServer((_, response) => void fetch(`http://${agentAddress}/metrics`, { headers: { accept: 'text/plain' } }).then(async (answer) => response.setHeader('content-type', answer.headers.get('content-type') ?? '').end(await answer.text()), () => response.destroy())).listen(0, '127.0.0.1');
  await waitFor('the relay', () => textOnly.listening, { everyMs: 5 });
  prometheus = await Prometheus.start({
    intervalMs: 2_000,
    rules: [RULES],
    targets: [{ job: 'agents', address: agentAddress }, { job: 'pilots', address: world.pilot.monitoringAddress }, { job: 'as text', address: `127.0.0.1:${(textOnly.address() as AddressInfo).port}` }],
  });
});
after(async () => {
  isEnding = true;
  await load;
  await (prometheus as Prometheus | undefined)?.stop();
  textOnly?.closeAllConnections();
  textOnly?.close();
  await world.down();
});

/** What no Envoy takes. */
const REFUSED = `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: refused}
spec:
  configPatches:
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND, cluster: {service: other.node.svc.cluster.local}}
    patch: {operation: MERGE, value: {ring_hash_lb_config: {minimum_ring_size: 99999999}}}
`;

/** HOST ADDRESS: twenty connections to port 9000 of that host, on each of which some messages are exchanged, and three to where nobody listens. */
const TCP = `
const { connect } = require('node:net');
const [host, nowhere] = process.argv.slice(1);
const exchange = () => new Promise((resolve) => {
  let left = 20;
  const socket = connect({ host, port: 9000 }, () => socket.write('x'.repeat(1000)));
  socket.on('data', () => (--left > 0 ? socket.write('x'.repeat(1000)) : socket.end())).on('close', resolve).on('error', () => {});
});
const refused = () => new Promise((resolve) => connect({ host: nowhere, port: 9999 }).on('error', () => {}).on('close', resolve));
(async () => { for (let i = 0; i < 20; i++) await exchange(); for (let i = 0; i < 3; i++) await refused(); })();`;

/** Until the tests end. */
async function traffic(): Promise<void> {
  const other = world.lab.pod('node', 'other').ips[0]!;
  const http = (url: string, from: string, count = 20): Promise<unknown> => world.load('outside', url, count, { from });
  while (!isEnding) {
    await Promise.all([http('http://web/', 'node/client'), http('http://web/', 'fast/client', 60), world.lab.exec('node/client', [process.execPath, '-e', TCP, 'other', other], { timeoutMs: 60_000 })]);
    await http('http://web/status/404', 'node/client', 5);
    await http('http://web/status/503', 'node/client', 3);
    await http('http://other/', 'node/web-v1', 5);
    await http('http://web/', 'node/other', 5);
    await world.lab.exec('node/client', ['grpc-client', 'grpc:7070', 'Unary', '{"message":"x"}'], { timeoutMs: 60_000 });
  }
}

const textOf = (variable: Variable): string => (typeof variable.query === 'string' ? variable.query : variable.query.query);

/** All values of a dashboard's variables, each combination once. */
async function choices({ templating }: Dashboard): Promise<Record<string, string>[]> {
  let all: Record<string, string>[] = [{}];
  for (const variable of templating.list) {
    if (variable.type === 'datasource') continue;
    const next: Record<string, string>[] = [];
    for (const known of all) {
      const [, series, label] = /^label_values\((.*), (\w+)\)$/.exec(textOf(variable)) ?? [];
      const [, query] = /^query_result\((.*)\)$/.exec(textOf(variable)) ?? [];
      const values = series !== undefined ? await prometheus.labelValues(filled(series, known), label!) : query !== undefined ? resultsOf(await prometheus.query(filled(query, known)), variable.regex!) : textOf(variable).split(',');
      for (const value of values) next.push({ ...known, [variable.name]: value });
    }
    all = next;
  }
  return all;
}

/** As Grafana asks, but for `or vector(0)`, with which everything has data. */
function filled(expr: string, values: Record<string, string>): string {
  let text = expr.replaceAll(' or vector(0)', '').replaceAll('$__rate_interval', '30s').replaceAll('$__range', '5m');
  for (const [name, value] of Object.entries(values)) text = text.replaceAll(`$${name}`, value);
  assert.doesNotMatch(text, /\$(?!1")/, `a variable that there is not: ${expr}`);
  return text;
}

/** As Grafana makes choices of a query's result, by what a pattern takes out of its text. */
const resultsOf = (samples: readonly Sample[], regex: string): string[] => samples.flatMap(({ metric }) => new RegExp(regex.slice(1, -1)).exec(Object.entries(metric).map(([name, value]) => `${name}="${value}"`).join())?.[1] ?? []);

const hasData = (samples: readonly Sample[]): boolean => samples.some(({ value: [, text] }) => text !== 'NaN');
const labelsIn = (legend: string): string[] => [...legend.matchAll(/\{\{\s*(\w+)\s*\}\}/g)].map(([, name = '']) => name);

test('rules are loaded and evaluated, and a mesh in which all is well fires no alert', async () => {
  load = traffic();
  await prometheus.scraped();
  let groups = await prometheus.rules();
  await waitFor('all rules to be evaluated', async () => {
    groups = await prometheus.rules();
    return groups.every(({ rules }) => rules.every(({ health }) => health !== 'unknown'));
  }, { timeoutMs: 60_000, everyMs: 200 });
  assert.deepEqual(groups.flatMap(({ rules }) => rules.filter(({ health }) => health !== 'ok')), []);
  assert.ok(groups.length >= 6 && groups.every(({ rules }) => rules.length > 0));
  // 503 are asked for, and agents are held up while they load their programs.
  assert.deepEqual((await prometheus.alerts()).filter(({ state, labels }) => state === 'firing' && !['UnderpassHighErrorRate', 'UnderpassEventLoopBlocked'].includes(labels['alertname']!)), []);
});

test('a series is the same whichever format is asked for, and promtool finds nothing new to say of it', async () => {
  const series = async (job: string): Promise<string[]> => (await prometheus.query(`{job="${job}",__name__=~"istio_.*|underpass_.*"}`)).map(({ metric: { instance: _, job: __, ...labels } }) => JSON.stringify(Object.entries(labels).sort())).sort();
  const open = await fetch(`http://${agentAddress}/metrics`, { headers: { accept: 'application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5' } });
  assert.deepEqual([open.headers.get('content-type'), (await open.text()).endsWith('\n# EOF\n')], ['application/openmetrics-text; version=1.0.0; charset=utf-8', true]);
  await waitFor('the same series in both', async () => {
    const [asOpen, asText] = [await series('agents'), await series('as text')];
    return asOpen.length > 500 && JSON.stringify(asOpen) === JSON.stringify(asText);
  }, { timeoutMs: 120_000, everyMs: 300 });
  const text = await (await fetch(`http://${agentAddress}/metrics`, { headers: { accept: 'text/plain' } })).text();
  const said = (await run('sh', ['-c', 'exec "$0" check metrics', join(projectRoot, 'build/prometheus/usr/bin/promtool')], { input: text, okCodes: [0, 3] })).stderr.trim().split('\n').filter((line) => !line.startsWith('istio_request_duration_milliseconds'));
  assert.deepEqual(said.filter((line) => line !== ''), []);
});

test('each panel of each dashboard has data, with the labels that its legend and its columns name', { timeout: 900_000 }, async () => {
  await provoked();
  const panels = dashboards.flatMap((dashboard) => dashboard.panels.filter(({ type }) => type !== 'row').map((panel) => ({ dashboard, panel })));
  assert.ok(panels.length > 80, `${panels.length} panels`);
  let missing = panels.flatMap(({ dashboard, panel }) => (panel.targets ?? []).map((target) => ({ dashboard, panel, target })));
  assert.ok(missing.length >= panels.length);
  await waitFor('data in all panels', async () => {
    const still: typeof missing = [];
    for (const dashboard of dashboards) {
      const values = await choices(dashboard);
      for (const one of missing.filter((each) => each.dashboard === dashboard)) {
        let found: Sample[] = [];
        for (const chosen of values) {
          found = await prometheus.query(filled(one.target.expr, chosen));
          if (hasData(found)) break;
        }
        if (!hasData(found)) {
          still.push(one);
          continue;
        }
        const { title, type, fieldConfig } = one.panel;
        const wanted = type === 'table' ? [fieldConfig!.overrides[0]!.matcher.options] : labelsIn(one.target.legendFormat ?? '');
        for (const label of wanted) assert.ok(found.every(({ metric }) => label in metric), `${dashboard.title}: ${title}: no label ${label} in ${JSON.stringify(found[0])}`);
      }
    }
    missing = still;
    return missing.length === 0;
  }, { timeoutMs: 240_000, everyMs: 2_000 }).catch((error: unknown) => {
    throw new Error(`${String(error)}\n${missing.map(({ dashboard, panel, target }) => `${dashboard.title}: ${panel.title}: ${target.expr}`).join('\n')}`);
  });
});

/** What there is only where something is wrong, or somebody asks. */
async function provoked(): Promise<void> {
  await world.apply('sidecar', REFUSED);
  await review('/validate', 'AuthorizationPolicy', { apiVersion: 'security.istio.io/v1', kind: 'AuthorizationPolicy', metadata: { name: 'a', namespace: 'node' }, spec: {} });
  await review('/validate', 'AuthorizationPolicy', { apiVersion: 'security.istio.io/v1', kind: 'AuthorizationPolicy', metadata: { name: 'a', namespace: 'node' }, spec: { action: 'PERHAPS' } });
  await drift();
}

/** As the API server asks a webhook. */
async function review(path: string, kind: string, object: unknown): Promise<void> {
  const body = JSON.stringify({ apiVersion: 'admission.k8s.io/v1', kind: 'AdmissionReview', request: { uid: 'u', kind: { group: 'security.istio.io', version: 'v1', kind }, operation: 'CREATE', namespace: 'node', object } });
  const [host, port] = world.pilot.webhookAddress.split(':');
  await new Promise<void>((resolve, reject) => {
    // Whose certificate it has is none of this test's.
    secureRequest({ host, port, path, method: 'POST', agent: false, rejectUnauthorized: false, headers: { 'content-type': 'application/json' } }, (response) => response.resume().on('end', resolve)).on('error', reject).end(body);
  });
}

/** Somebody else takes an entry out of the kernel's table of services. */
async function drift(): Promise<void> {
  const { bpffsDir, instance } = instancePaths({ instance: world.name });
  const map = ['pinned', join(bpffsDir, instance, 'maps', 'service_indexes')];
  const [entry] = JSON.parse((await run('bpftool', ['-j', 'map', 'dump', ...map], { timeoutMs: 60_000 })).stdout) as { key: string[] }[];
  await run('bpftool', ['map', 'delete', ...map, 'key', 'hex', ...entry!.key.map((byte) => byte.slice(2))], { timeoutMs: 60_000 });
}

test('an alert says of which node it is, and what to run', async () => {
  await world.apply('node', REFUSED);
  const pending = await waitFor('the alert', async () => (await prometheus.alerts()).find(({ labels }) => labels['alertname'] === 'UnderpassConfigurationRejected' && labels['job'] === 'agents'), { timeoutMs: 60_000, everyMs: 200 });
  assert.equal(pending.annotations['summary'], `${(await world.agentStatus()).proxy.nacks.length} resources are rejected at ${agentAddress}`);
  assert.match(pending.annotations['runbook'] ?? '', /`underpass ps --node NODE`/);
  await world.clear('node');
  await world.stopAgent('node-1', 'SIGKILL');
  const down = await waitFor('the alert', async () => (await prometheus.alerts()).find(({ labels }) => labels['alertname'] === 'UnderpassAgentDown' && labels['job'] === 'agents'), { timeoutMs: 60_000, everyMs: 200 });
  assert.equal(down.annotations['summary'], `The agent at ${agentAddress} does not answer`);
});
