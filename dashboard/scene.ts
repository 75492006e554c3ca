/** The service graph as things to draw: boxes of namespaces, edges, nodes. Ways differ in colour, kind of line and letter. */
import { percent, perSecond, significant } from './format.js';
import { NODE_HEIGHT, NODE_WIDTH } from './layout.js';
import type { Figures, Structure } from './messages.js';
import type { Scene, Transform } from './painter.js';
import { WAYS } from './ways.js';

export interface Colours {
  ink: string;
  soft: string;
  line: string;
  page: string;
  panel: string;
  accent: string;
  bad: string;
  /** By the number of the way. */
  ways: readonly string[];
}

export function coloursOf(element: Element): Colours {
  const style = getComputedStyle(element);
  const of = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  return { ink: of('ink'), soft: of('soft'), line: of('line'), page: of('page'), panel: of('panel'), accent: of('accent'), bad: of('bad'), ways: WAYS.map(({ way }) => of(way)) };
}

/** Below this scale text can't be read, and is not drawn. */
const READABLE = 0.45;
const BADGES = 0.5;
const LABELS = 0.9;
const LABEL_CHARACTERS = 24;
const LABEL_WIDTH = 112;
const FONT = '12px system-ui, sans-serif';

export class GraphScene implements Scene {
  readonly length: number;
  readonly #boxes: number;
  readonly #edges: number;
  /** So that edges of several ways between two nodes lie beside each other. */
  readonly #offsets: Float32Array;
  readonly #labels: string[];
  #figures: Figures | undefined;
  #nodeRate: Float64Array;
  #nodeFailed: Uint8Array;
  selected = -1;

  constructor(readonly structure: Structure, public colours: Colours, public size: { width: number; height: number }) {
    const { boxes, from, to, nodes } = structure;
    this.#boxes = boxes.length;
    this.#edges = from.length;
    this.length = this.#boxes + this.#edges + nodes.length;
    this.#labels = nodes.map(({ label }) => (label.length > LABEL_CHARACTERS ? `${label.slice(0, LABEL_CHARACTERS - 1)}…` : label));
    this.#nodeRate = new Float64Array(nodes.length);
    this.#nodeFailed = new Uint8Array(nodes.length);
    this.#offsets = new Float32Array(from.length);
    const counts = new Map<number, number>();
    for (let edge = 0; edge < from.length; edge++) {
      const pair = Math.min(from[edge]!, to[edge]!) * nodes.length + Math.max(from[edge]!, to[edge]!);
      const before = counts.get(pair) ?? 0;
      counts.set(pair, before + 1);
      this.#offsets[edge] = (before % 2 === 0 ? 1 : -1) * Math.ceil(before / 2) * 20;
    }
  }

  set figures(figures: Figures) {
    if (figures.revision !== this.structure.revision) return;
    this.#figures = figures;
    this.#nodeRate.fill(0);
    this.#nodeFailed.fill(0);
    for (let edge = 0; edge < this.#edges; edge++) {
      const to = this.structure.to[edge]!;
      this.#nodeRate[to]! += figures.rate[edge]!;
      if (figures.failed[edge]! > 0) this.#nodeFailed[to] = 1;
    }
  }

  draw(context: OffscreenCanvasRenderingContext2D, index: number, transform: Transform): boolean {
    if (index < this.#boxes) return this.#box(context, index, transform);
    if (index < this.#boxes + this.#edges) return this.#edge(context, index - this.#boxes, transform, false);
    return this.#node(context, index - this.#boxes - this.#edges, transform);
  }

  finish(context: OffscreenCanvasRenderingContext2D, transform: Transform): void {
    const { selected, structure: { from, to } } = this;
    if (selected < 0) return;
    let left = 200;
    for (let edge = 0; edge < this.#edges && left > 0; edge++) {
      if (from[edge] !== selected && to[edge] !== selected) continue;
      this.#edge(context, edge, transform, true);
      left--;
    }
    this.#node(context, selected, transform);
  }

  #isInView({ scale, x, y }: Transform, left: number, top: number, right: number, bottom: number): boolean {
    return right * scale + x >= 0 && left * scale + x <= this.size.width && bottom * scale + y >= 0 && top * scale + y <= this.size.height;
  }

  #box(context: OffscreenCanvasRenderingContext2D, index: number, transform: Transform): boolean {
    const { namespace, x, y, width, height } = this.structure.boxes[index]!;
    if (!this.#isInView(transform, x, y, x + width, y + height)) return false;
    context.fillStyle = this.colours.panel;
    context.strokeStyle = this.colours.line;
    context.lineWidth = 1;
    context.setLineDash([]);
    context.fillRect(x, y, width, height);
    context.strokeRect(x, y, width, height);
    context.fillStyle = this.colours.soft;
    // Names of namespaces are to be read in a picture of all, too.
    context.font = `600 ${Math.min(40, Math.max(13, 12 / transform.scale))}px system-ui, sans-serif`;
    context.textBaseline = 'top';
    context.textAlign = 'left';
    context.fillText(namespace, x + 10, y + 6, width - 20);
    return true;
  }

  #edge(context: OffscreenCanvasRenderingContext2D, edge: number, transform: Transform, isSelected: boolean): boolean {
    const { x, y, from, to, ways } = this.structure;
    const [source, target] = [from[edge]!, to[edge]!];
    const offset = this.#offsets[edge]!;
    const isForward = x[target]! > x[source]!;
    const [x0, y0] = [x[source]! + (isForward ? NODE_WIDTH : 0), y[source]! + NODE_HEIGHT / 2 + offset / 5];
    const [x1, y1] = [x[target]! + (isForward ? 0 : NODE_WIDTH), y[target]! + NODE_HEIGHT / 2 + offset / 5];
    if (!this.#isInView(transform, Math.min(x0, x1) - 60, Math.min(y0, y1) - 60, Math.max(x0, x1) + 60, Math.max(y0, y1) + 60)) return false;
    const way = WAYS[ways[edge]!]!;
    const figures = this.#figures;
    const rate = figures?.rate[edge] ?? 0;
    const failed = figures?.failed[edge] ?? 0;
    const isIdle = rate === 0 && (figures?.received[edge] ?? 0) + (figures?.sent[edge] ?? 0) === 0;
    const bend = Math.max(30, Math.abs(x1 - x0) / 2.5) * (isForward ? 1 : -1);
    const [cx0, cx1] = source === target ? [x0 + 70, x1 + 70] : [x0 + bend, x1 - bend];
    const [cy0, cy1] = source === target ? [y0 - 60, y1 + 40] : [y0 + offset * 1.1, y1 + offset * 1.1];
    context.globalAlpha = isSelected ? 1 : isIdle ? 0.3 : this.selected >= 0 ? 0.35 : 0.85;
    context.strokeStyle = this.colours.ways[ways[edge]!]!;
    context.fillStyle = context.strokeStyle;
    // At least a pixel, also in a picture of all.
    context.lineWidth = Math.max(1, 0.7 / transform.scale, 1 + Math.log10(1 + rate)) + (isSelected ? 1 : 0);
    context.setLineDash(way.dash as number[]);
    const curve = (shift: number): void => {
      context.beginPath();
      context.moveTo(x0, y0 + shift);
      context.bezierCurveTo(cx0, cy0 + shift, cx1, cy1 + shift, x1, y1 + shift);
      context.stroke();
    };
    if (way.isDouble && transform.scale >= READABLE) {
      curve(-2);
      curve(2);
    } else curve(0);
    context.setLineDash([]);
    const tip = isForward ? -8 : 8;
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x1 + tip, y1 - 4);
    context.lineTo(x1 + tip, y1 + 4);
    context.fill();
    if (transform.scale >= BADGES || isSelected || failed > 0) this.#badge(context, (x0 + 3 * cx0 + 3 * cx1 + x1) / 8, (y0 + 3 * cy0 + 3 * cy1 + y1) / 8, edge, transform, isSelected);
    context.globalAlpha = 1;
    return true;
  }

  /** The way's letter, what fails, and, where there is room for it, figures. */
  #badge(context: OffscreenCanvasRenderingContext2D, x: number, y: number, edge: number, { scale }: Transform, isSelected: boolean): void {
    const figures = this.#figures;
    const failed = figures?.failed[edge] ?? 0;
    const way = this.structure.ways[edge]!;
    const size = Math.min(3, Math.max(1, 0.8 / scale));
    context.globalAlpha = 1;
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    context.font = `600 ${11 * size}px system-ui, sans-serif`;
    const text = `${WAYS[way]!.letter}${failed > 0 ? ` ✕ ${percent(failed)}` : ''}`;
    const width = (failed > 0 ? 58 : 16) * size;
    const isLabelled = figures !== undefined && (isSelected || scale >= LABELS);
    // Beside each other they are in the middle together.
    if (isLabelled) x -= LABEL_WIDTH / 2;
    context.fillStyle = this.colours.page;
    context.strokeStyle = failed > 0 ? this.colours.bad : this.colours.ways[way]!;
    context.lineWidth = size;
    context.fillRect(x - width / 2, y - 8 * size, width, 16 * size);
    context.strokeRect(x - width / 2, y - 8 * size, width, 16 * size);
    context.fillStyle = failed > 0 ? this.colours.bad : this.colours.ways[way]!;
    context.fillText(text, x, y, width - 2);
    if (!isLabelled) return;
    const p99 = figures.p99[edge]!;
    context.font = FONT;
    const label = `${perSecond(figures.rate[edge]!)}${Number.isNaN(p99) ? '' : `, p99 ${significant(p99)} ms`}`;
    context.fillStyle = this.colours.panel;
    context.fillRect(x + width / 2 + 1, y - 8, Math.min(LABEL_WIDTH, context.measureText(label).width) + 6, 16);
    context.fillStyle = this.colours.ink;
    context.textAlign = 'left';
    context.fillText(label, x + width / 2 + 4, y, LABEL_WIDTH);
  }

  #node(context: OffscreenCanvasRenderingContext2D, node: number, transform: Transform): boolean {
    const [x, y] = [this.structure.x[node]!, this.structure.y[node]!];
    if (!this.#isInView(transform, x, y, x + NODE_WIDTH, y + NODE_HEIGHT)) return false;
    const isSelected = node === this.selected;
    const hasFailed = this.#nodeFailed[node] === 1;
    context.setLineDash([]);
    context.fillStyle = this.colours.page;
    context.strokeStyle = hasFailed ? this.colours.bad : this.colours.soft;
    context.lineWidth = hasFailed ? 2.5 : 1;
    context.fillRect(x, y, NODE_WIDTH, NODE_HEIGHT);
    context.strokeRect(x, y, NODE_WIDTH, NODE_HEIGHT);
    if (isSelected) {
      context.strokeStyle = this.colours.accent;
      context.lineWidth = Math.max(3, 3 / transform.scale);
      context.strokeRect(x - 4, y - 4, NODE_WIDTH + 8, NODE_HEIGHT + 8);
    }
    if (transform.scale < READABLE && !isSelected) return true;
    context.textAlign = 'left';
    context.textBaseline = 'middle';
    context.font = FONT;
    context.fillStyle = this.colours.ink;
    context.fillText(`${hasFailed ? '✕ ' : ''}${this.#labels[node]!}`, x + 8, y + NODE_HEIGHT / 2, NODE_WIDTH - 62);
    const rate = this.#nodeRate[node]!;
    if (rate === 0) return true;
    context.textAlign = 'right';
    context.fillStyle = this.colours.soft;
    context.fillText(perSecond(rate), x + NODE_WIDTH - 8, y + NODE_HEIGHT / 2, 50);
    return true;
  }
}

/** @returns the node there, in the world's units; -1: none */
export function nodeAt({ x: lefts, y: tops }: Structure, x: number, y: number): number {
  return lefts.findIndex((left, node) => x >= left && x <= left + NODE_WIDTH && y >= tops[node]! && y <= tops[node]! + NODE_HEIGHT);
}
