/** The live service graph: a picture that is drawn, and beside it the same as a table, for who can't see it. */
import { h, setText, svg } from './dom.js';
import { bytesPerSecond, milliseconds, percent, perSecond } from './format.js';
import { NODE_HEIGHT, NODE_WIDTH } from './layout.js';
import type { Figures, FromDrawer, FromWorker, Structure, ToDrawer, ToWorker } from './messages.js';
import { GROUPS, type Group, type Wanted } from './model.js';
import { workloadLink, type Page, type PageContext } from './page.js';
import type { Transform } from './painter.js';
import { coloursOf, nodeAt } from './scene.js';
import { Table, type Row } from './table.js';
import { WAYS, type WayStyle } from './ways.js';

const MIN_SCALE = 0.03;
const MAX_SCALE = 3;
const ZOOM_STEP = 1.25;
const PAN_STEP = 60;
const COLUMNS = ['From', 'To', 'Asked for', 'Way', 'Protocol', 'Rate', 'Failed', 'p50', 'p99', 'Received', 'Sent'] as const;
const NUMBERS = new Set([5, 6, 7, 8, 9, 10]);

export const graphPage: Page = (context) => {
  context.title('Service graph');
  new GraphPage(context);
};

class GraphPage {
  readonly #context: PageContext;
  readonly #worker = new Worker('/worker.js', { type: 'module' });
  readonly #drawer = new Worker('/draw-worker.js', { type: 'module' });
  readonly #canvas = h('canvas', { role: 'img', 'aria-label': 'The service graph; the table below has the same' });
  readonly #stage: HTMLElement;
  readonly #summary = h('p', { class: 'soft', role: 'status' }, 'Waiting for the first reading…');
  readonly #spoken = h('p', { 'aria-live': 'polite' });
  readonly #namespaces: HTMLSelectElement = h('select', { id: 'namespace', change: () => this.#want({ namespace: this.#namespaces.value }) }, h('option', { value: '' }, 'all'));
  readonly #selectedTitle = h('h2', {}, 'Nothing selected');
  readonly #selectedLink = h('p', {}, 'Select a node in the graph by the pointer, or by the arrow keys when the graph has the focus.');
  readonly #selectedEdges = new Table('Traffic of the selected node', ['With', 'Way', 'Rate', 'Failed', 'p99'], '', new Set([2, 3, 4]));
  readonly #all = new Table('All traffic', COLUMNS, 'No traffic is known yet.', NUMBERS);
  #wanted: Wanted = { group: 'workload', query: '', namespace: '', hideIdle: false };
  #structure: Structure | undefined;
  #figures: Figures | undefined;
  #transform: Transform = { scale: 1, x: 0, y: 0 };
  #selected = '';
  /** Where it is in the structure; -1: nowhere. */
  #node = -1;
  /** The user has moved the picture: it is not fitted any more. */
  #isMoved = false;

  constructor(context: PageContext) {
    this.#context = context;
    this.#stage = h('div', { class: 'graph', tabindex: '0', role: 'application', 'aria-label': 'Service graph. Arrow keys go from node to node, Enter opens the workload, plus and minus zoom, 0 shows all, Escape selects nothing.', keydown: (event) => this.#onKey(event as KeyboardEvent) }, this.#canvas);
    context.main.replaceChildren(
      h('h1', {}, 'Service graph'), this.#controls(), this.#summary,
      h('div', { class: 'stage' }, h('div', {}, this.#stage, legend()), h('aside', { 'aria-label': 'Selected node' }, this.#selectedTitle, this.#selectedLink, this.#selectedEdges.element, this.#spoken)),
      h('h2', {}, 'All traffic'), h('div', { class: 'below' }, this.#all.element),
    );
    const canvas = this.#canvas.transferControlToOffscreen();
    this.#drawer.postMessage({ type: 'start', canvas, colours: coloursOf(this.#stage) } satisfies ToDrawer, [canvas]);
    this.#drawer.addEventListener('message', ({ data: { drawn } }: MessageEvent<FromDrawer>) => Object.assign(this.#canvas.dataset, drawn));
    this.#drawer.addEventListener('error', () => context.problem('the part of this page that draws the graph could not be started'));
    this.#listen();
    this.#worker.addEventListener('message', ({ data }: MessageEvent<FromWorker>) => this.#hear(data));
    this.#worker.addEventListener('error', () => context.problem('the part of this page that reads the graph could not be started'));
    this.#tell({ type: 'start', token: context.token, everyMs: context.about.everySeconds * 1_000 });
    this.#selectedEdges.element.hidden = true;
  }

  #controls(): HTMLElement {
    const search: HTMLInputElement = h('input', { type: 'search', id: 'search', placeholder: 'part of a name', input: () => this.#want({ query: search.value }) });
    const group: HTMLSelectElement = h('select', { id: 'group', change: () => this.#want({ group: group.value as Group }) }, ...GROUPS.map((name) => h('option', { value: name }, name)));
    const idle: HTMLInputElement = h('input', { type: 'checkbox', id: 'idle', change: () => this.#want({ hideIdle: idle.checked }) });
    return h('div', { class: 'controls', role: 'search', 'aria-label': 'What the graph shows' },
      h('label', { for: 'search' }, 'Search', search), h('label', { for: 'namespace' }, 'Namespace', this.#namespaces), h('label', { for: 'group' }, 'A node is a', group), h('label', { for: 'idle' }, idle, 'without what is idle'),
      h('button', { type: 'button', click: () => this.#fit() }, 'Show all'));
  }

  #listen(): void {
    const { signal } = this.#context;
    const stage = this.#stage;
    const resize = new ResizeObserver(() => {
      this.#draw({ type: 'size', width: stage.clientWidth, height: stage.clientHeight, ratio: devicePixelRatio });
      this.#place();
    });
    resize.observe(stage);
    const dark = matchMedia('(prefers-color-scheme: dark)');
    dark.addEventListener('change', () => this.#draw({ type: 'colours', colours: coloursOf(stage) }), { signal });
    let drag: { x: number; y: number; moved: boolean } | undefined;
    stage.addEventListener('pointerdown', (event) => {
      drag = { x: event.clientX, y: event.clientY, moved: false };
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener('pointermove', (event) => {
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
      drag = { x: event.clientX, y: event.clientY, moved: true };
      this.#move({ ...this.#transform, x: this.#transform.x + dx, y: this.#transform.y + dy });
    });
    stage.addEventListener('pointerup', (event) => {
      if (drag && !drag.moved) this.#pick(event);
      drag = undefined;
    });
    stage.addEventListener('pointercancel', () => (drag = undefined));
    stage.addEventListener('wheel', (event) => {
      event.preventDefault();
      const { left, top } = stage.getBoundingClientRect();
      this.#zoom(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, event.clientX - left, event.clientY - top);
    }, { passive: false });
    signal.addEventListener('abort', () => {
      resize.disconnect();
      this.#worker.terminate();
      this.#drawer.terminate();
    }, { once: true });
  }

  #tell(message: ToWorker): void {
    this.#worker.postMessage(message);
  }

  #draw(message: ToDrawer): void {
    this.#drawer.postMessage(message);
  }

  #want(change: Partial<Wanted>): void {
    this.#wanted = { ...this.#wanted, ...change };
    this.#isMoved = false;
    this.#tell({ type: 'want', wanted: this.#wanted });
  }

  #hear(message: FromWorker): void {
    if (message.type === 'problem') return this.#context.problem(message.message);
    if (message.type === 'structure') {
      this.#structure = message;
      this.#figures = undefined;
      this.#node = message.nodes.findIndex(({ id }) => id === this.#selected);
      this.#writeNamespaces(message.namespaces);
      this.#draw(message);
      this.#place();
      return;
    }
    if (message.revision !== this.#structure?.revision) return;
    this.#figures = message;
    this.#draw(message);
    this.#context.problem(message.problems.length === 0 ? undefined : message.problems.join('; '));
    this.#writeTables();
  }

  #place(): void {
    if (this.#isMoved) this.#paint();
    else this.#fit();
  }

  #fit(): void {
    const { width = 1, height = 1 } = this.#structure ?? {};
    const { clientWidth, clientHeight } = this.#stage;
    const scale = Math.max(MIN_SCALE, Math.min(1.2, (clientWidth - 30) / Math.max(1, width), (clientHeight - 30) / Math.max(1, height)));
    this.#transform = { scale, x: (clientWidth - width * scale) / 2, y: (clientHeight - height * scale) / 2 };
    this.#isMoved = false;
    this.#paint();
  }

  #move(transform: Transform): void {
    this.#transform = transform;
    this.#isMoved = true;
    this.#paint();
  }

  #zoom(factor: number, x: number, y: number): void {
    const scale = Math.max(MIN_SCALE, Math.min(MAX_SCALE, this.#transform.scale * factor));
    const by = scale / this.#transform.scale;
    this.#move({ scale, x: x - (x - this.#transform.x) * by, y: y - (y - this.#transform.y) * by });
  }

  #paint(): void {
    this.#draw({ type: 'view', transform: this.#transform, selected: this.#node });
  }

  #pick(event: PointerEvent): void {
    const { left, top } = this.#stage.getBoundingClientRect();
    const { scale, x, y } = this.#transform;
    this.#select(this.#structure ? nodeAt(this.#structure, (event.clientX - left - x) / scale, (event.clientY - top - y) / scale) : -1);
  }

  #select(node: number): void {
    this.#selected = this.#structure?.nodes[node]?.id ?? '';
    this.#node = node;
    this.#paint();
    this.#writeSelected();
    setText(this.#spoken, this.#selected === '' ? 'Nothing selected' : this.#sentence(node));
  }

  #sentence(node: number): string {
    const { from, to, nodes } = this.#structure!;
    let [incoming, outgoing, failing] = [0, 0, 0];
    for (let edge = 0; edge < from.length; edge++) {
      if (to[edge] === node) incoming += this.#figures?.rate[edge] ?? 0;
      if (from[edge] === node) outgoing += this.#figures?.rate[edge] ?? 0;
      if (to[edge] === node && (this.#figures?.failed[edge] ?? 0) > 0) failing++;
    }
    return `${nodes[node]!.id}: ${perSecond(incoming)} in, ${perSecond(outgoing)} out${failing > 0 ? `, ${failing} callers see failures` : ''}`;
  }

  #onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const { clientWidth, clientHeight } = this.#stage;
    const middle = [clientWidth / 2, clientHeight / 2] as const;
    const directions: Record<string, readonly [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const direction = directions[event.key];
    if (direction && event.shiftKey) this.#move({ ...this.#transform, x: this.#transform.x - direction[0] * PAN_STEP, y: this.#transform.y - direction[1] * PAN_STEP });
    else if (direction) this.#go(...direction);
    else if (event.key === '+' || event.key === '=') this.#zoom(ZOOM_STEP, ...middle);
    else if (event.key === '-') this.#zoom(1 / ZOOM_STEP, ...middle);
    else if (event.key === '0') this.#fit();
    else if (event.key === 'Escape') this.#select(-1);
    else if (event.key === 'Enter') this.#open();
    else return;
    event.preventDefault();
  }

  /** To the nearest node in that direction. */
  #go(dx: number, dy: number): void {
    const { x = new Float32Array(), y = new Float32Array() } = this.#structure ?? {};
    const now = this.#node;
    if (now < 0) return x.length > 0 ? this.#reveal(0) : undefined;
    let [best, least] = [-1, Infinity];
    for (let node = 0; node < x.length; node++) {
      const along = (x[node]! - x[now]!) * dx + (y[node]! - y[now]!) * dy;
      const across = Math.abs((x[node]! - x[now]!) * dy) + Math.abs((y[node]! - y[now]!) * dx);
      if (along > 1 && along + 2 * across < least) [best, least] = [node, along + 2 * across];
    }
    if (best >= 0) this.#reveal(best);
  }

  #reveal(node: number): void {
    const { x, y } = this.#structure!;
    const { scale } = this.#transform;
    const [left, top] = [x[node]! * scale + this.#transform.x, y[node]! * scale + this.#transform.y];
    const { clientWidth, clientHeight } = this.#stage;
    const isSeen = left >= 0 && top >= 0 && left + NODE_WIDTH * scale <= clientWidth && top + NODE_HEIGHT * scale <= clientHeight;
    if (!isSeen) this.#move({ scale, x: clientWidth / 2 - x[node]! * scale, y: clientHeight / 2 - y[node]! * scale });
    this.#select(node);
  }

  #open(): void {
    const node = this.#structure?.nodes.find(({ id }) => id === this.#selected);
    if (node?.hasPage) location.hash = workloadLink(node.namespace, node.label);
  }

  #writeNamespaces(namespaces: readonly string[]): void {
    const chosen = this.#wanted.namespace;
    this.#namespaces.replaceChildren(h('option', { value: '' }, 'all'), ...namespaces.map((name) => h('option', { value: name }, name)));
    this.#namespaces.value = namespaces.includes(chosen) ? chosen : '';
  }

  #writeTables(): void {
    const { nodes, from, to, ways, protocols, services } = this.#structure!;
    const figures = this.#figures!;
    const seconds = Math.round(figures.seconds);
    setText(this.#summary, `${nodes.length} nodes, ${from.length} edges${figures.hidden > 0 ? `, ${figures.hidden} not shown` : ''}; ${figures.seconds === 0 ? 'rates come with the next reading' : `means of the last ${seconds} s`}`);
    const nodeCell = (node: number) => ({ text: nodes[node]!.id, ...(nodes[node]!.hasPage ? { href: workloadLink(nodes[node]!.namespace, nodes[node]!.label) } : {}) });
    const order = [...from.keys()].sort((a, b) => figures.rate[b]! - figures.rate[a]! || figures.received[b]! - figures.received[a]! || a - b);
    this.#all.updateFrom(order, (edge): Row => [
      nodeCell(from[edge]!), nodeCell(to[edge]!), services[edge]!, wayCell(WAYS[ways[edge]!]!), protocols[edge]!, perSecond(figures.rate[edge]!), failedCell(figures.failed[edge]!),
      milliseconds(figures.p50[edge]), milliseconds(figures.p99[edge]), bytesPerSecond(figures.received[edge]!), bytesPerSecond(figures.sent[edge]!),
    ]);
    this.#writeSelected();
  }

  #writeSelected(): void {
    const structure = this.#structure;
    const node = this.#node;
    this.#selectedEdges.element.hidden = node < 0;
    setText(this.#selectedTitle, node < 0 ? 'Nothing selected' : this.#selected);
    if (node < 0 || !structure) return;
    const { nodes, from, to, ways } = structure;
    const figures = this.#figures;
    const { namespace, label, hasPage } = nodes[node]!;
    if (hasPage) this.#selectedLink.replaceChildren(h('a', { href: workloadLink(namespace, label) }, 'Its page'));
    else this.#selectedLink.replaceChildren();
    const own = [...from.keys()].filter((edge) => from[edge] === node || to[edge] === node).sort((a, b) => (figures?.rate[b] ?? 0) - (figures?.rate[a] ?? 0));
    this.#selectedEdges.update(own.map((edge): Row => [
      `${to[edge] === node ? 'from' : 'to'} ${nodes[to[edge] === node ? from[edge]! : to[edge]!]!.id}`, wayCell(WAYS[ways[edge]!]!), perSecond(figures?.rate[edge] ?? 0), failedCell(figures?.failed[edge] ?? 0), milliseconds(figures?.p99[edge]),
    ]));
  }
}

export const wayCell = ({ name, way }: WayStyle) => ({ text: name, style: `way ${way}` });
export const failedCell = (share: number) => ({ text: percent(share), style: share > 0 ? 'bad' : '' });

function legend(): HTMLElement {
  const line = ({ way, dash, isDouble }: WayStyle): SVGElement => svg('svg', { viewBox: '0 0 44 14', 'aria-hidden': 'true' }, ...(isDouble ? [5, 9] : [7]).map((y) => svg('line', { class: way, x1: '0', x2: '44', y1: String(y), y2: String(y), 'stroke-dasharray': dash.join(' ') })));
  return h('ul', { class: 'legend', 'aria-label': 'Ways' }, ...WAYS.map((style) => h('li', { title: style.meaning }, line(style), `${style.letter} ${style.name}: ${style.meaning}`)));
}
