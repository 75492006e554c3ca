/** A mesh of a thousand services that is none, for pages that are to be tried at that size. */
import { DashboardServer } from '../../cli/dashboard/server.js';
import { dashboardFiles } from '../../cli/dashboard/files.js';
import type { About, NodeView, ObjectDetail, ObjectView } from '../../common/dashboard-views.js';
import type { Graph, GraphEdge, TrafficWay } from '../../common/traffic.js';

export const SERVICES = 1_000;
const NAMESPACES = 20;
const CALLS = 2.5;
const WAYS: readonly TrafficWay[] = ['kernel', 'fast-path', 'envoy', 'hbone'];

/** Equal in every run. */
function random(seed: number): () => number {
  return () => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    return seed / 2 ** 32;
  };
}

/** Services call those behind them, mostly of their own namespace. */
export function syntheticGraph(turn: number, services = SERVICES): Graph {
  const pick = random(7);
  const change = random(turn + 1);
  const namespaceOf = (index: number): number => index % Math.min(NAMESPACES, services);
  const ends = Array.from({ length: services }, (_, index) => ({ namespace: `team-${namespaceOf(index)}`, workload: `service-${index}`, app: `service-${index}` }));
  const edges: GraphEdge[] = [];
  for (let from = 0; from < services - 1; from++) {
    for (let call = 0; call < CALLS; call++) {
      let to = from + 1 + Math.floor(pick() * (services - from - 1));
      if (pick() < 0.8) to = Math.min(services - 1, from + NAMESPACES * (1 + Math.floor(pick() * 6)));
      if (to === from) continue;
      const way = WAYS[Math.floor(pick() * WAYS.length)]!;
      const rate = pick() < 0.1 ? 0 : pick() * 300 * (0.8 + 0.4 * change());
      const p50 = 0.5 + pick() * 5;
      edges.push({ from, to, service: `${ends[to]!.namespace}/${ends[to]!.app}`, protocol: way === 'kernel' ? 'tcp' : 'http', way, rate, failed: pick() < 0.03 ? pick() * 0.2 : 0, received: rate * 300, sent: rate * 900, p50, p99: p50 * (2 + pick() * 6), total: Math.round(rate * 1_000) + 1 });
    }
  }
  return { at: new Date(1_700_000_000_000 + turn * 1_000).toISOString(), seconds: 15, nodes: [{ node: 'node-1' }, { node: 'node-2' }], ends, edges };
}

const DRIFT = { kind: 'service', name: '10.96.0.7:80', state: 'wrong', objects: ['Service/service-7.team-7'], since: '2026-01-01T00:00:00.000Z', times: 2, repair: 'done', detail: 'an endpoint is missing' };
const node = (name: string, ready: boolean): NodeView => ({
  node: name, ready, notReady: ready ? [] : ['the control plane does not answer'], facts: [['Kernel', '6.18'], ['Envoy', 'process 7, version 1.40.0']], selfTest: [{ name: 'capture', ok: true }, { name: 'acceleration', ok: ready }],
  nacks: ready ? [] : [{ type: 'CDS', name: 'outbound|80||service-7', message: 'an unknown field', objects: ['DestinationRule/service-7.team-7'] }], drifting: ready ? [] : [DRIFT], recent: [{ ...DRIFT, repair: 'repaired' }],
  pods: [{ namespace: 'team-7', name: 'service-7-6b9-x', addresses: ['10.244.1.7'], mode: 'node', state: 'enrolled', way: 'bpf', acceleration: 'l7', sync: ready ? 'in sync' : 'NACK CDS', note: '' }],
  programs: [{ pod: 'team-7/service-7-6b9-x', kind: 'listener', what: 'nginx :80', verdict: 'event-driven', reason: '' }],
});
const OBJECTS: ObjectView[] = Array.from({ length: 300 }, (_, index) => ({
  object: `VirtualService/service-${index}.team-${index % NAMESPACES}`, nodes: [{ node: 'node-1', state: 'IN FORCE', resources: 2, acked: 2, readBack: 2 }, { node: 'node-2', state: index === 7 ? 'NACK' : index === 8 ? 'DRIFT' : index % 5 === 0 ? 'ABSENT' : 'ACKED', resources: 2, acked: 1, readBack: 0 }],
}));
const DETAIL: ObjectDetail = { ...OBJECTS[7]!, resources: [{ node: 'node-2', type: 'RDS', name: 'pod/x/80', version: '0123456789abcdef', acked: false, readBack: false, nack: '<b>not a field</b>' }] };

const REPORT = `<!doctype html><html><head><title>x</title><style>:root { --ink: #1c2230; } @media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; } } body { color: var(--ink); }</style><script>globalThis.hasRun = true</script></head>
<body><h1>Bench</h1><h2>Ratios</h2><div class="wide"><table><tr><th></th><th>requests/s</th></tr><tr><td>a</td><td>1.76 ×</td></tr></table></div><p onclick="globalThis.hasRun = true">Text <a href="https://example.org/">link</a><img src="https://example.org/x.png" alt="x"></p></body></html>`;

/** @param report in place of its own */
export async function syntheticDashboard(services = SERVICES, report = REPORT): Promise<DashboardServer> {
  const about: About = { version: '0', place: 'a mesh that is none', everySeconds: 1, report: 'of the test' };
  let turn = 0;
  return DashboardServer.listen({
    port: 0, files: dashboardFiles(),
    api: {
      '/api/about': async () => ({ body: about }),
      '/api/graph': async () => ({ body: syntheticGraph(turn++, services) }),
      '/api/nodes': async () => ({ body: [node('node-1', true), node('node-2', false), { ...node('node-3', false), problem: 'no answer within 10000 ms' }] }),
      '/api/objects': async () => ({ body: OBJECTS }),
      '/api/object': async (query) => (query.get('name') === DETAIL.object ? { body: DETAIL } : { status: 404, body: { message: 'there is none' } }),
      '/api/report': async () => ({ contentType: 'text/plain', body: report }),
    },
  });
}
