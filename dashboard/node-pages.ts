/** All nodes, and one of them. */
import type { DriftView, NodeView } from '../common/dashboard-views.js';
import { h, setText } from './dom.js';
import { follow, nodeLink, objectLink, type Page } from './page.js';
import { Table, type Row } from './table.js';
import { syncStyle } from './workload-pages.js';

const stateOf = ({ problem, ready }: NodeView) => (problem !== undefined ? { text: 'no answer', style: 'bad' } : ready ? { text: 'ready', style: 'good' } : { text: 'not ready', style: 'warn' });

export const nodesPage: Page = (context) => {
  context.title('Nodes');
  const table = new Table('Nodes', ['Node', 'State', 'Pods in the mesh', 'Drift', 'Refused', 'Missing'], 'There is no node.', new Set([2, 3, 4]));
  context.main.replaceChildren(h('h1', {}, 'Nodes'), table.element);
  return follow<NodeView[]>(context, '/api/nodes', (views) => table.update(views.map((view): Row => [
    { text: view.node, href: nodeLink(view.node) }, stateOf(view), String(view.pods.filter(({ mode }) => mode !== 'off').length),
    { text: String(view.drifting.length), style: view.drifting.length > 0 ? 'bad' : '' }, { text: String(view.nacks.length), style: view.nacks.length > 0 ? 'bad' : '' }, view.problem ?? view.notReady.join('; '),
  ])));
};

export const nodePage: Page = (context, [name = '']) => {
  context.title(name);
  const state = h('p', { role: 'status' });
  const facts = h('dl');
  const pods = new Table('Pods', ['Pod', 'Addresses', 'Mode', 'State', 'Way', 'Acceleration', 'Sync', 'Note'], 'There is none.');
  const columns = ['What', 'Name', 'State', 'Objects', 'Since', 'Times', 'Repair'];
  const drifting = new Table('Drift', columns, 'What is in force is what is wanted.', new Set([5]));
  const recent = new Table('Repaired lately', columns, 'Nothing drifted lately.', new Set([5]));
  const refused = new Table('Refused by Envoy', ['Type', 'Name', 'Objects', 'Why'], 'Nothing is.');
  const tests = new Table('Self-test', ['Check', 'Result'], 'It has not run yet.');
  const programs = new Table('Programs', ['Pod', 'Kind', 'Program', 'Verdict', 'Reason'], 'The kernel has seen none yet.');
  const parts: [string, HTMLElement][] = [['Pods', pods.element], ['Drift', drifting.element], ['Repaired lately', recent.element], ['Refused by Envoy', refused.element], ['Self-test of the kernel', tests.element], ['Programs', programs.element]];
  context.main.replaceChildren(h('h1', {}, `Node ${name}`), state, facts, ...parts.flatMap(([title, element]) => [h('h2', {}, title), element]));
  const driftRow = ({ kind, name: what, state: is, objects, since, times, repair, detail }: DriftView): Row => [kind, what, detail === '' ? is : `${is}: ${detail}`, objects.join(', '), since, String(times), repair];
  return follow<NodeView[]>(context, '/api/nodes', (views) => {
    const view = views.find((each) => each.node === name);
    if (!view) return setText(state, `No node of this name was asked; there are ${views.map(({ node }) => node).join(', ')}.`);
    const { text, style } = stateOf(view);
    state.className = style;
    setText(state, [text, view.problem, ...view.notReady].filter((part) => part !== undefined && part !== '').join('; '));
    view.facts.forEach(([term, value], index) => {
      const dt = facts.children[2 * index] ?? facts.appendChild(h('dt'));
      const dd = facts.children[2 * index + 1] ?? facts.appendChild(h('dd'));
      setText(dt, term);
      setText(dd, value);
    });
    while (facts.children.length > 2 * view.facts.length) facts.lastElementChild!.remove();
    pods.update(view.pods.map((pod): Row => [`${pod.namespace}/${pod.name}`, pod.addresses.join(', '), pod.mode, pod.state, pod.way, pod.acceleration, { text: pod.sync, style: syncStyle(pod.sync) }, pod.note]));
    drifting.update(view.drifting.map(driftRow));
    recent.update(view.recent.map(driftRow));
    refused.update(view.nacks.map(({ type, name: what, objects, message }): Row => [type, what, objects.length === 1 ? { text: objects[0]!, href: objectLink(objects[0]!) } : objects.join(', '), message]));
    tests.update(view.selfTest.map(({ name: check, ok }): Row => [check, { text: ok ? 'passed' : 'failed', style: ok ? 'good' : 'warn' }]));
    programs.update(view.programs.map(({ pod, kind, what, verdict, reason }): Row => [pod, kind, what, verdict, reason]));
  });
};
