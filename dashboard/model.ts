/** What of the mesh's graph is shown: put together by workload, service or namespace, and what is searched for. Runs in the worker. */
import type { Graph, GraphEdge, TrafficEnd } from '../common/traffic.js';
import { endName, isWorkload } from './ends.js';
import { WAYS } from './ways.js';

export const GROUPS = ['workload', 'service', 'namespace'] as const;
export type Group = (typeof GROUPS)[number];

export interface Wanted {
  group: Group;
  /** Part of a node's name; what speaks with it is shown, too. Empty: all. */
  query: string;
  /** Empty: all. */
  namespace: string;
  /** Without what had no traffic in the time that rates are of. */
  hideIdle: boolean;
}

export interface ViewNode {
  /** `namespace/name`, or a namespace. */
  id: string;
  label: string;
  namespace: string;
  /** A workload, which has a page of its own. */
  hasPage: boolean;
}

export interface ViewEdge {
  from: number;
  to: number;
  /** Index of `WAYS`. */
  way: number;
  protocol: GraphEdge['protocol'];
  service: string;
  rate: number;
  failed: number;
  received: number;
  sent: number;
  /** Of what was put together the slowest's; NaN: nothing was measured. */
  p50: number;
  p99: number;
  total: number;
}

export interface View {
  nodes: ViewNode[];
  edges: ViewEdge[];
  /** Of all that there is. */
  namespaces: string[];
  hidden: number;
}

function nodeOf(end: TrafficEnd, group: Group, service: string): ViewNode {
  if (group === 'namespace') return { id: end.namespace, label: end.namespace, namespace: end.namespace, hasPage: false };
  if (group === 'service' && service !== '') {
    const slash = service.indexOf('/');
    return { id: service, label: service.slice(slash + 1), namespace: service.slice(0, slash), hasPage: false };
  }
  const name = group === 'service' && end.what !== 'account' ? end.app : endName(end);
  return { id: `${end.namespace}/${name}`, label: name, namespace: end.namespace, hasPage: group === 'workload' && isWorkload(end) };
}

export function viewOf({ ends, edges }: Pick<Graph, 'ends' | 'edges'>, { group, query, namespace, hideIdle }: Wanted): View {
  const text = query.trim().toLowerCase();
  const namespaces = [...new Set(ends.map((end) => end.namespace))].sort();
  const all = new Map<string, { source: ViewNode; destination: ViewNode; edge: ViewEdge }>();
  for (const edge of edges) {
    const source = nodeOf(ends[edge.from]!, group, '');
    const destination = nodeOf(ends[edge.to]!, group, edge.service);
    const way = WAYS.findIndex((each) => each.way === edge.way);
    const key = `${source.id}\0${destination.id}\0${way}\0${edge.protocol}`;
    const before = all.get(key);
    if (before) before.edge = together(before.edge, edge);
    else all.set(key, { source, destination, edge: { from: 0, to: 0, way, protocol: edge.protocol, service: edge.service, rate: edge.rate, failed: edge.failed, received: edge.received, sent: edge.sent, p50: edge.p50 ?? NaN, p99: edge.p99 ?? NaN, total: edge.total } });
  }
  const nodes: ViewNode[] = [];
  const indexes = new Map<string, number>();
  const indexOf = (node: ViewNode): number => {
    let index = indexes.get(node.id);
    if (index === undefined) indexes.set(node.id, (index = nodes.push(node) - 1));
    return index;
  };
  const shown: ViewEdge[] = [];
  for (const { source, destination, edge } of [...all.values()].sort((a, b) => order(a.source.id, b.source.id) || order(a.destination.id, b.destination.id) || a.edge.way - b.edge.way)) {
    if (hideIdle && edge.rate === 0 && edge.received + edge.sent === 0) continue;
    if (namespace !== '' && source.namespace !== namespace && destination.namespace !== namespace) continue;
    if (text !== '' && !source.id.toLowerCase().includes(text) && !destination.id.toLowerCase().includes(text)) continue;
    shown.push({ ...edge, from: indexOf(source), to: indexOf(destination) });
  }
  return { nodes, edges: shown, namespaces, hidden: all.size - shown.length };
}

const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function together(a: ViewEdge, b: GraphEdge): ViewEdge {
  const rate = a.rate + b.rate;
  const slower = (x: number, y = NaN): number => (Number.isNaN(x) ? y : Number.isNaN(y) ? x : Math.max(x, y));
  return { ...a, service: a.service === b.service ? a.service : '', rate, failed: rate > 0 ? (a.failed * a.rate + b.failed * b.rate) / rate : 0, received: a.received + b.received, sent: a.sent + b.sent, p50: slower(a.p50, b.p50), p99: slower(a.p99, b.p99), total: a.total + b.total };
}
