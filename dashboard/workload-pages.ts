/** All workloads, and one of them. */
import type { NodeView, PodView } from '../common/dashboard-views.js';
import type { Graph, GraphEdge } from '../common/traffic.js';
import { h, svg } from './dom.js';
import { endName, isWorkload } from './ends.js';
import { bytesPerSecond, milliseconds, percent, perSecond } from './format.js';
import { failedCell, wayCell } from './graph-page.js';
import { follow, nodeLink, workloadLink, type Page } from './page.js';
import { Table, type Row } from './table.js';
import { wayStyle } from './ways.js';

/** Of the little chart. */
const POINTS = 300;

const sum = (edges: readonly GraphEdge[], of: 'rate' | 'received' | 'sent'): number => edges.reduce((total, edge) => total + edge[of], 0);
const failedOf = (edges: readonly GraphEdge[]): number => {
  const rate = sum(edges, 'rate');
  return rate === 0 ? 0 : edges.reduce((total, edge) => total + edge.rate * edge.failed, 0) / rate;
};
const slowest = (edges: readonly GraphEdge[]): number | undefined => edges.reduce<number | undefined>((most, { p99 }) => (p99 === undefined ? most : Math.max(most ?? 0, p99)), undefined);

export const workloadsPage: Page = (context) => {
  context.title('Workloads');
  const table = new Table('Workloads', ['Workload', 'In', 'Failed', 'p99', 'Out', 'Received', 'Sent', 'Ways in'], 'No workload has had traffic yet.', new Set([1, 2, 3, 4, 5, 6]));
  const search: HTMLInputElement = h('input', { type: 'search', id: 'search', placeholder: 'part of a name', input: () => write() });
  let graph: Graph | undefined;
  const write = (): void => {
    if (!graph) return;
    const { ends, edges } = graph;
    const [incoming, outgoing] = [ends.map((): GraphEdge[] => []), ends.map((): GraphEdge[] => [])];
    for (const edge of edges) {
      outgoing[edge.from]!.push(edge);
      incoming[edge.to]!.push(edge);
    }
    const text = search.value.trim().toLowerCase();
    const rates = incoming.map((own) => sum(own, 'rate'));
    const order = [...ends.keys()].filter((index) => isWorkload(ends[index]!) && `${ends[index]!.namespace}/${ends[index]!.workload}`.toLowerCase().includes(text)).sort((a, b) => rates[b]! - rates[a]! || (ends[a]!.workload < ends[b]!.workload ? -1 : 1));
    table.updateFrom(order, (index): Row => {
      const { namespace, workload } = ends[index]!;
      const [own, out] = [incoming[index]!, outgoing[index]!];
      return [{ text: `${namespace}/${workload}`, href: workloadLink(namespace, workload) }, perSecond(rates[index]!), failedCell(failedOf(own)), milliseconds(slowest(own)), perSecond(sum(out, 'rate')), bytesPerSecond(sum(own, 'received')), bytesPerSecond(sum(own, 'sent')), [...new Set(own.map(({ way }) => wayStyle(way).name))].join(', ')];
    });
  };
  context.main.replaceChildren(h('h1', {}, 'Workloads'), h('div', { class: 'controls' }, h('label', { for: 'search' }, 'Search', search)), table.element);
  return follow<Graph>(context, '/api/graph', (answer) => {
    graph = answer;
    write();
  });
};

/** Pods are a workload's by their names, as Kubernetes makes them. */
function isOf(pod: PodView, namespace: string, workload: string, all: readonly string[]): boolean {
  if (pod.namespace !== namespace) return false;
  const fits = (name: string): boolean => pod.name === name || pod.name.startsWith(`${name}-`);
  return fits(workload) && !all.some((other) => other.length > workload.length && fits(other));
}

export const workloadPage: Page = async (context, [namespace = '', workload = '']) => {
  const name = `${namespace}/${workload}`;
  context.title(name);
  const columns = ['With', 'Asked for', 'Way', 'Protocol', 'Rate', 'Failed', 'p50', 'p99', 'Received', 'Sent'];
  const numbers = new Set([4, 5, 6, 7, 8, 9]);
  const [incoming, outgoing] = [new Table('Traffic in', columns, 'None is known.', numbers), new Table('Traffic out', columns, 'None is known.', numbers)];
  const pods = new Table('Pods', ['Pod', 'Node', 'Addresses', 'Mode', 'State', 'Way', 'Acceleration', 'Sync', 'Note'], 'No node that was asked has a pod of this name.');
  const programs = new Table('Programs', ['Pod', 'Kind', 'Program', 'Verdict', 'Reason'], 'The kernel has seen no program of its pods yet.');
  const line = svg('polyline');
  const chart = svg('svg', { class: 'spark', viewBox: `0 0 ${POINTS} 100`, preserveAspectRatio: 'none', role: 'img', 'aria-label': 'Rate in' }, line);
  const caption = h('p', { class: 'soft' });
  context.main.replaceChildren(h('h1', {}, name), caption, chart, h('h2', {}, 'Traffic in'), incoming.element, h('h2', {}, 'Traffic out'), outgoing.element, h('h2', {}, 'Pods'), pods.element, h('h2', {}, 'Programs'), programs.element);
  const rates: number[] = [];
  let known: readonly string[] = [];
  const graphs = follow<Graph>(context, '/api/graph', ({ ends, edges }) => {
    known = ends.filter((end) => end.namespace === namespace && isWorkload(end)).map((end) => end.workload);
    const isOwn = (index: number): boolean => isWorkload(ends[index]!) && ends[index]!.namespace === namespace && ends[index]!.workload === workload;
    const row = (edge: GraphEdge, other: number): Row => {
      const end = ends[other]!;
      return [{ text: `${end.namespace}/${endName(end)}`, ...(isWorkload(end) ? { href: workloadLink(end.namespace, end.workload) } : {}) }, edge.service, wayCell(wayStyle(edge.way)), edge.protocol, perSecond(edge.rate), failedCell(edge.failed), milliseconds(edge.p50), milliseconds(edge.p99), bytesPerSecond(edge.received), bytesPerSecond(edge.sent)];
    };
    const byRate = (a: GraphEdge, b: GraphEdge): number => b.rate - a.rate;
    const [to, from] = [edges.filter((edge) => isOwn(edge.to)).sort(byRate), edges.filter((edge) => isOwn(edge.from)).sort(byRate)];
    incoming.update(to.map((edge) => row(edge, edge.from)));
    outgoing.update(from.map((edge) => row(edge, edge.to)));
    rates.push(sum(to, 'rate'));
    if (rates.length > POINTS) rates.shift();
    const most = Math.max(...rates, 1e-9);
    line.setAttribute('points', rates.map((rate, index) => `${POINTS - rates.length + index},${(96 - (rate / most) * 90).toFixed(1)}`).join(' '));
    const said = `${perSecond(rates.at(-1)!)} in, ${percent(failedOf(to))} failed, p99 ${milliseconds(slowest(to))}; at most ${perSecond(most < 1e-6 ? 0 : most)} since this page was opened`;
    caption.textContent = said;
    chart.setAttribute('aria-label', `Rate in: ${said}`);
  });
  const nodes = follow<NodeView[]>(context, '/api/nodes', (views) => {
    const own = views.flatMap((view) => view.pods.filter((pod) => isOf(pod, namespace, workload, known)).map((pod) => ({ node: view.node, pod })));
    pods.update(own.map(({ node, pod }): Row => podRow(pod, node)));
    const names = new Set(own.map(({ pod }) => `${pod.namespace}/${pod.name}`));
    programs.update(views.flatMap((view) => view.programs.filter(({ pod }) => names.has(pod))).map(({ pod, kind, what, verdict, reason }): Row => [pod, kind, what, verdict, reason]));
  });
  await Promise.all([graphs, nodes]);
};

export const syncStyle = (sync: string): string => (sync === 'in sync' ? 'good' : /NACK|DRIFT/.test(sync) ? 'bad' : sync === '' ? '' : 'warn');

function podRow({ namespace, name, addresses, mode, state, way, acceleration, sync, note }: PodView, node: string): Row {
  return [`${namespace}/${name}`, { text: node, href: nodeLink(node) }, addresses.join(', '), mode, state, way, acceleration, { text: sync, style: syncStyle(sync) }, note];
}
