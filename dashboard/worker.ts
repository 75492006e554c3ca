/** Asks for the graph once a second, puts it together and lays it out, so that the page only draws. */
import type { Graph } from '../common/traffic.js';
import { ApiError, ask } from './api.js';
import { layout } from './layout.js';
import type { Figures, FromWorker, Structure, ToWorker } from './messages.js';
import { viewOf, type View, type Wanted } from './model.js';

const scope = self as unknown as { postMessage(message: FromWorker, transfer: Transferable[]): void; addEventListener(type: 'message', listener: (event: MessageEvent<ToWorker>) => void): void };

let wanted: Wanted = { group: 'workload', query: '', namespace: '', hideIdle: false };
let graph: Graph | undefined;
let shape = '';
let revision = 0;

function tell(): void {
  if (!graph) return;
  const view = viewOf(graph, wanted);
  const now = JSON.stringify([view.nodes.map(({ id }) => id), view.edges.map(({ from, to, way, protocol, service }) => [from, to, way, protocol, service]), view.namespaces]);
  if (now !== shape) {
    shape = now;
    revision++;
    tellStructure(view);
  }
  tellFigures(view, graph);
}

function tellStructure({ nodes, edges, namespaces }: View): void {
  const { x, y, boxes, width, height } = layout(nodes, edges);
  const [from, to, ways] = [Uint32Array.from(edges, (edge) => edge.from), Uint32Array.from(edges, (edge) => edge.to), Uint8Array.from(edges, (edge) => edge.way)];
  const structure: Structure = { type: 'structure', revision, nodes, x, y, boxes, width, height, from, to, ways, protocols: edges.map(({ protocol }) => protocol), services: edges.map(({ service }) => service), namespaces };
  scope.postMessage(structure, [x, y, from, to, ways].map(({ buffer }) => buffer as ArrayBuffer));
}

function tellFigures({ edges, hidden }: View, { at, seconds, nodes }: Graph): void {
  const numbers = (key: 'rate' | 'failed' | 'received' | 'sent' | 'p50' | 'p99' | 'total'): Float64Array => Float64Array.from(edges, (edge) => edge[key]);
  const problems = nodes.flatMap(({ node, problem }) => (problem === undefined ? [] : [`${node}: ${problem}`]));
  const figures: Figures = { type: 'figures', revision, at, seconds, hidden, problems, rate: numbers('rate'), failed: numbers('failed'), received: numbers('received'), sent: numbers('sent'), p50: numbers('p50'), p99: numbers('p99'), total: numbers('total') };
  scope.postMessage(figures, [figures.rate, figures.failed, figures.received, figures.sent, figures.p50, figures.p99, figures.total].map(({ buffer }) => buffer as ArrayBuffer));
}

async function run(token: string, everyMs: number): Promise<void> {
  for (;;) {
    const started = performance.now();
    try {
      graph = await ask<Graph>(token, '/api/graph');
      tell();
    } catch (error) {
      scope.postMessage({ type: 'problem', status: error instanceof ApiError ? error.status : 0, message: error instanceof Error ? error.message : String(error) }, []);
    }
    await new Promise((resolve) => setTimeout(resolve, Math.max(100, everyMs - (performance.now() - started))));
  }
}

scope.addEventListener('message', ({ data }) => {
  if (data.type === 'start') void run(data.token, data.everyMs);
  else {
    wanted = data.wanted;
    tell();
  }
});
