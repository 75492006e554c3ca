/** Configuration objects, and one of them, with their state on each node. */
import type { ObjectDetail, ObjectOnNode, ObjectView } from '../common/dashboard-views.js';
import { h } from './dom.js';
import { follow, nodeLink, objectLink, type Page } from './page.js';
import { Table, type Cell, type Row } from './table.js';

/** With more, a row says how many are in which state. */
const MOST_COLUMNS = 8;
const STYLES: Readonly<Record<ObjectOnNode['state'], string>> = { 'IN FORCE': 'good', ACKED: 'warn', PENDING: 'warn', STALE: 'warn', DRIFT: 'bad', NACK: 'bad', ABSENT: 'soft' };

const stateCell = ({ state, since }: ObjectOnNode): Cell => ({ text: state === 'ABSENT' ? 'not here' : since === undefined ? state : `${state} since ${since}`, style: STYLES[state] });

function counted(nodes: readonly ObjectOnNode[]): Cell {
  const counts = new Map<ObjectOnNode['state'], number>();
  for (const { state } of nodes) counts.set(state, (counts.get(state) ?? 0) + 1);
  const worst = (['NACK', 'DRIFT', 'STALE', 'PENDING', 'ACKED', 'IN FORCE'] as const).find((state) => counts.has(state));
  return { text: [...counts].map(([state, count]) => `${state} on ${count}`).join(', '), style: worst === undefined ? 'soft' : STYLES[worst] };
}

export const objectsPage: Page = (context) => {
  context.title('Configuration');
  const search: HTMLInputElement = h('input', { type: 'search', id: 'search', placeholder: 'part of kind or name', input: () => write() });
  const bad: HTMLInputElement = h('input', { type: 'checkbox', id: 'bad', change: () => write() });
  const place = h('div');
  let table: Table | undefined;
  let shape = '';
  let objects: ObjectView[] = [];
  const write = (): void => {
    const nodes = objects[0]?.nodes.map(({ node }) => node) ?? [];
    const columns = nodes.length <= MOST_COLUMNS ? nodes : ['On nodes'];
    if (!table || shape !== columns.join()) {
      shape = columns.join();
      table = new Table('Configuration objects', ['Object', ...columns], 'No resource names an object.');
      place.replaceChildren(table.element);
    }
    const text = search.value.trim().toLowerCase();
    const isBad = ({ nodes: on }: ObjectView): boolean => on.some(({ state }) => state !== 'IN FORCE' && state !== 'ABSENT');
    table.update(objects.filter((each) => each.object.toLowerCase().includes(text) && (!bad.checked || isBad(each))).map(({ object, nodes: on }): Row => [{ text: object, href: objectLink(object) }, ...(on.length <= MOST_COLUMNS ? on.map(stateCell) : [counted(on)])]));
  };
  context.main.replaceChildren(h('h1', {}, 'Configuration'), h('p', { class: 'soft' }, 'IN FORCE: acknowledged by Envoy, and read back from it and from the kernel. ACKED: not all read back yet. STALE: as it was before the control plane was lost.'),
    h('div', { class: 'controls' }, h('label', { for: 'search' }, 'Search', search), h('label', { for: 'bad' }, bad, 'only what is not in force everywhere')), place);
  return follow<ObjectView[]>(context, '/api/objects', (answer) => {
    objects = answer;
    write();
  });
};

export const objectPage: Page = (context, [name = '']) => {
  context.title(name);
  const nodes = new Table('On nodes', ['Node', 'State', 'Resources', 'Acknowledged', 'Read back'], 'Nothing of it is on any node.', new Set([2, 3, 4]));
  const resources = new Table('Resources', ['Node', 'Type', 'Resource', 'Version', 'Acknowledged', 'Read back', 'Refused'], 'There is none.');
  const said = (is: boolean): Cell => ({ text: is ? 'yes' : 'no', style: is ? 'good' : 'warn' });
  context.main.replaceChildren(h('h1', {}, name), h('h2', {}, 'On nodes'), nodes.element, h('h2', {}, 'Resources'), resources.element);
  return follow<ObjectDetail>(context, `/api/object?${new URLSearchParams({ name }).toString()}`, (object) => {
    nodes.update(object.nodes.map((on): Row => [{ text: on.node, href: nodeLink(on.node) }, stateCell(on), String(on.resources), String(on.acked), String(on.readBack)]));
    resources.update(object.resources.map(({ node, type, name: resource, version, acked, readBack, nack }): Row => [node, type, resource, version.slice(0, 12), said(acked), said(readBack), { text: nack ?? '', style: nack === undefined ? '' : 'bad' }]));
  });
};
