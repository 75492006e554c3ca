/**
 * The dashboard of a lab with two nodes, real traffic by every way, in a real Chromium. UNDERPASS_SCREENSHOTS=FOLDER keeps pictures
 * of its pages there.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { askAgent, instancePaths } from '../../agent/index.js';
import { Collector } from '../../cli/dashboard/collector.js';
import { dashboardFiles } from '../../cli/dashboard/files.js';
import { dashboardRoutes } from '../../cli/dashboard/routes.js';
import { DashboardServer } from '../../cli/dashboard/server.js';
import { EXIT } from '../../cli/exit-codes.js';
import type { ObjectView } from '../../common/dashboard-views.js';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import type { Graph } from '../../common/traffic.js';
import { CLI } from '../agent-harness.js';
import { FAST_NAMESPACE } from '../fast-world.js';
import { MeshWorld } from '../mesh/world.js';
import { Browser, type BrowserPage } from './browser.js';

/** HTTP to who is named first, TCP to the rest, all the time; a connection serves a few requests. */
const LOAD = `
const http = require('node:http'), net = require('node:net');
const [urls, targets] = JSON.parse(process.argv[1]);
let agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
setInterval(() => { agent.destroy(); agent = new http.Agent({ keepAlive: true, maxSockets: 1 }); }, 1000);
setInterval(() => { for (const url of urls) http.get(url, { agent }, (r) => r.resume()).on('error', () => {}); }, 50);
setInterval(() => { for (const host of targets) { const s = net.connect(9000, host, () => s.end('x'.repeat(200))); s.on('error', () => {}).resume(); } }, 200);`;

const load = (urls: string[], targets: string[] = []): string => `name: load, image: node, command: [node, -e, ${JSON.stringify(LOAD)}, ${JSON.stringify(JSON.stringify([urls, targets]))}]`;
const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';
const pod = (namespace: string, name: string, node: string, container: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}}}
spec: {nodeName: ${node}, serviceAccountName: ${name}, containers: [{${container}}]}
---
`;
const service = (namespace: string, name: string): string => `apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec: {selector: {app: ${name}}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
---
`;

const mesh = new MeshWorld('dashboard', {
  nodes: 2,
  bare: true,
  outside: [
    FAST_NAMESPACE,
    pod('node', 'shopper', 'node-1', load(['http://cart/', 'http://cart/broken', 'http://stock/'], ['cart'])), pod('node', 'cart', 'node-1', ECHO), pod('node', 'stock', 'node-2', ECHO), service('node', 'cart'), service('node', 'stock'),
    pod('fast', 'reader', 'node-1', load(['http://pages/'])), pod('fast', 'pages', 'node-1', ECHO), service('fast', 'pages'),
  ].join(''),
});
const socketOf = (node: string): string => instancePaths({ instance: node === 'node-1' ? mesh.name : `${mesh.name}-${node}` }).adminSocket;

let browser: Browser;
let collector: Collector;
let dashboard: DashboardServer;
let page: BrowserPage;
before(async () => {
  browser = await Browser.start();
  await mesh.up();
  await mesh.apply('node', `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec:
  hosts: [cart]
  http:
  - {match: [{uri: {prefix: /broken}}], fault: {abort: {httpStatus: 503, percentage: {value: 20}}}, route: [{destination: {host: cart}}]}
  - {route: [{destination: {host: cart}}]}
`);
  collector = new Collector({ everyMs: 1_000, agents: ['node-1', 'node-2'].map((node) => ({ node, place: node, ask: (path, ask) => askAgent(socketOf(node), path, ask) })) });
  const report = join(projectRoot, 'docs', 'results', 'bench.html');
  dashboard = await DashboardServer.listen({ port: 0, files: dashboardFiles(), api: dashboardRoutes(collector, { version: '0.1.0', place: 'two nodes of a lab', everySeconds: 1, report }) });
  page = await browser.page();
  await page.open(dashboard.address);
});
after(async () => {
  await browser?.close();
  await dashboard?.close();
  await collector?.close();
  await mesh.down();
});

interface Told { from: string; to: string; what: string; way: string; protocol: string; rate: number; failed: number; p99: number | undefined }
async function edges(): Promise<Told[]> {
  const answer = await fetch(`${dashboard.origin}/api/graph`, { headers: { authorization: `Bearer ${dashboard.token}` } });
  const { ends, edges: all } = (await answer.json()) as Graph;
  return all.map(({ from, to, way, protocol, rate, failed, p99 }) => ({ from: ends[from]!.workload, to: ends[to]!.workload, what: ends[to]!.what ?? '', way, protocol, rate, failed, p99 }));
}

/** Rows of the table under the graph, by its columns. */
const rows = (): Promise<string[][]> => page.evaluate('[...document.querySelectorAll("main > div:last-child tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent))');
const isOpen = (hash: string, what: string): Promise<void> => page.evaluate(`location.hash = ${JSON.stringify(hash)}`).then(() => page.until(`${hash} to show ${what}`, `document.querySelector("main").innerText.includes(${JSON.stringify(what)})`));

test('each edge has the way that its traffic takes: kernel, fast path, Envoy, HBONE; with its rate, what fails, and its latency', async () => {
  let last: Told[] = [];
  const find = (from: string, to: string, way: string, what = ''): Told | undefined => last.find((edge) => edge.from === from && edge.to === to && edge.way === way && edge.what === what);
  await waitFor('all ways in the graph', async () => {
    last = await edges();
    return [['shopper', 'cart', 'envoy'], ['shopper', 'cart', 'kernel'], ['shopper', 'stock', 'hbone'], ['reader', 'pages', 'fast-path']].every(([from, to, way]) => (find(from!, to!, way!)?.rate ?? 0) > 0);
  }, { timeoutMs: 300_000, everyMs: 500 }).catch((error: unknown) => {
    throw new Error(`${String(error)}\n${JSON.stringify(last, undefined, 1)}`);
  });
  await waitFor('aborted requests as failed ones', async () => {
    last = await edges();
    return find('shopper', 'cart', 'envoy', 'service')?.failed === 1;
  }, { timeoutMs: 300_000, everyMs: 500 });
  assert.ok((find('shopper', 'cart', 'envoy')!.p99 ?? 0) > 0 && (find('reader', 'pages', 'fast-path')!.p99 ?? 0) > 0);
  // What both ends tell of is there once: nothing of it came by another way.
  assert.deepEqual(last.filter(({ from, to, what, protocol }) => from === 'shopper' && to === 'stock' && what === '' && protocol === 'http').map(({ way }) => way), ['hbone']);
  assert.equal(find('shopper', 'cart', 'kernel')!.protocol, 'tcp');
  // What Envoy aborts has no workload; who came through a tunnel proved whom it is by its account.
  assert.deepEqual(last.filter((edge) => [edge.from, edge.to].includes('unknown') || edge.what === 'outside'), []);
});

test('the page has the same in its table, and its picture is drawn', async () => {
  await page.until('all ways on the page', '["kernel", "fast path", "Envoy", "HBONE"].every((way) => [...document.querySelectorAll("td.way")].some((cell) => cell.textContent === way))');
  const [failing] = (await rows()).filter(([from, to, , way, protocol]) => from === 'node/shopper' && to === 'node/cart (service)' && way === 'Envoy' && protocol === 'http');
  assert.equal(failing![6], '100 %');
  await page.until('a whole picture', 'document.querySelector("canvas").dataset.whole > 1');
});

test('pages of a workload, a node and an object are of what is there; the object is read back on the node whose Envoy has it', async () => {
  await isOpen('#/workload/node/cart', 'node/shopper');
  await page.until('its pod', 'document.querySelector("main").innerText.includes("10.244.")');
  await isOpen('#/node/node-2', 'node/stock');
  await isOpen('#/objects', 'VirtualService/cart.node');
  await isOpen(`#/object/${encodeURIComponent('VirtualService/cart.node')}`, 'RDS');
  await page.until('it to be in force on both nodes', '(() => { const rows = [...document.querySelector("table").tBodies[0].rows]; return rows.length === 2 && rows.every((row) => row.cells[1].textContent === "IN FORCE"); })()');
  await isOpen('#/report', 'Benchmark report');
  await page.until('the report', '[...document.querySelectorAll("main div")].some((each) => each.shadowRoot?.textContent.includes("short-circuited"))');
  assert.deepEqual(page.problems, []);
});

test('underpass dashboard: prints an address that the pages are at, asks the agent of this machine, and ends by SIGINT', async () => {
  const child = spawn(process.execPath, [CLI, 'dashboard', '--no-browser', '--instance', mesh.name], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const [, origin, token] = /^(http:\/\/127\.0\.0\.1:\d+)\/#token=([\w-]+)\n$/.exec(line.toString()) ?? [];
  assert.ok(origin !== undefined && token !== undefined, line.toString());
  const ask = (path: string): Promise<Response> => fetch(`${origin}${path}`, { headers: { authorization: `Bearer ${token}` } });
  assert.match(await (await fetch(origin)).text(), /<title>Underpass<\/title>/);
  assert.deepEqual(((await (await ask('/api/graph')).json()) as Graph).nodes, [{ node: 'node-1' }]);
  assert.equal((await fetch(`${origin}/api/graph`)).status, 401);
  child.kill('SIGINT');
  assert.deepEqual(await once(child, 'exit'), [0, null]);
});

const folder = process.env['UNDERPASS_SCREENSHOTS'];
test('pictures for the documentation', { skip: !folder ? 'UNDERPASS_SCREENSHOTS names no folder' : false }, async () => {
  for (const scheme of ['light', 'dark'] as const) {
    const own = await browser.page({ scheme, width: 1_280, height: 860 });
    await own.open(dashboard.address);
    await own.until('a whole picture', 'document.querySelector("canvas")?.dataset.whole > 3');
    await own.evaluate('document.querySelector(".graph").focus()');
    await own.press('ArrowRight');
    await own.until('another picture', `document.querySelector("canvas").dataset.whole > ${await own.evaluate<number>('Number(document.querySelector("canvas").dataset.whole)') + 1}`);
    await own.screenshot(join(folder!, `dashboard-graph-${scheme}.png`));
    await own.evaluate(`location.hash = ${JSON.stringify('#/objects')}`);
    await own.until('objects', 'document.querySelector("main").innerText.includes("VirtualService/cart.node")');
    await own.screenshot(join(folder!, `dashboard-objects-${scheme}.png`));
    await own.close();
  }
});

test('while the control plane is away each object is STALE on every node, with the time since when; with it again in force', async () => {
  const objects = async (): Promise<string[]> => ((await (await fetch(`${dashboard.origin}/api/objects`, { headers: { authorization: `Bearer ${dashboard.token}` } })).json()) as ObjectView[]).filter(({ object }) => object === 'VirtualService/cart.node').flatMap(({ nodes }) => nodes.map(({ node, state, since }) => `${node} ${state}${since === undefined ? '' : ' since'}`));
  await mesh.pilot.stop();
  await waitFor('STALE on both', async () => (await objects()).join() === 'node-1 STALE since,node-2 STALE since', { timeoutMs: 120_000, everyMs: 500 });
  const stale = await run(process.execPath, [CLI, 'config-status', '--instance', mesh.name], { timeoutMs: 60_000 });
  assert.match(stale.stdout, /^VirtualService\/cart\.node +node-1 +STALE since \d{4}-\d\d-\d\dT\S+Z /m);
  const waited = await run(process.execPath, [CLI, 'wait', 'VirtualService/cart.node', '--timeout', '1s', '--instance', mesh.name], { okCodes: [EXIT.timedOut], timeoutMs: 60_000 });
  assert.match(waited.stderr, /node-1: STALE since /);
  await isOpen('#/objects', 'STALE');
  await mesh.startPilot();
  await waitFor('IN FORCE on both', async () => (await objects()).join() === 'node-1 IN FORCE,node-2 IN FORCE', { timeoutMs: 120_000, everyMs: 500 });
});
