/**
 * Where nodes stand: a box for each namespace, within it columns from callers to who is called. The same graph always gives the same
 * picture. Linear in nodes and edges but for sorting; runs in the worker.
 */
export const NODE_WIDTH = 176;
export const NODE_HEIGHT = 30;
const COLUMN_GAP = 170;
const ROW_GAP = 16;
const PADDING = 18;
const TITLE = 26;
const BOX_GAP = 48;
const SWEEPS = 4;
/** Of a column before it is broken, as a share of the square root of its namespace's nodes. */
const ROWS_FACTOR = 1.6;
const FEWEST_ROWS = 8;

export interface Box {
  namespace: string;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Placed {
  /** Left upper corners. */
  x: Float32Array;
  y: Float32Array;
  boxes: Box[];
  width: number;
  height: number;
}

export function layout(nodes: readonly { id: string; namespace: string }[], edges: readonly { from: number; to: number }[]): Placed {
  const { length } = nodes;
  const [x, y] = [new Float32Array(length), new Float32Array(length)];
  const ranks = ranksOf(length, edges);
  const neighbours: number[][] = Array.from({ length }, () => []);
  for (const { from, to } of edges) {
    if (from === to) continue;
    neighbours[from]!.push(to);
    neighbours[to]!.push(from);
  }
  const byNamespace = new Map<string, number[]>();
  nodes.forEach(({ namespace }, index) => byNamespace.set(namespace, [...(byNamespace.get(namespace) ?? []), index]));
  const boxes = [...byNamespace].map(([namespace, members]) => place(namespace, members, nodes, ranks, neighbours, x, y));
  const { width, height } = pack(boxes.map(({ box }) => box));
  for (const { box, members } of boxes) {
    for (const index of members) {
      x[index]! += box.x;
      y[index]! += box.y;
    }
  }
  return { x, y, boxes: boxes.map(({ box }) => box), width, height };
}

/** The longest way from a node that nobody calls; calls back to who is under way do not count. */
function ranksOf(length: number, edges: readonly { from: number; to: number }[]): Int32Array {
  const out: number[][] = Array.from({ length }, () => []);
  const incoming = new Int32Array(length);
  for (const { from, to } of edges) {
    if (from === to) continue;
    out[from]!.push(to);
    incoming[to]!++;
  }
  const OPEN = 1, DONE = 2;
  const state = new Uint8Array(length);
  const ordered: number[] = [];
  const forward: number[][] = Array.from({ length }, () => []);
  const starts = [...Array(length).keys()].sort((a, b) => incoming[a]! - incoming[b]! || a - b);
  for (const start of starts) {
    if (state[start] !== 0) continue;
    const stack: [node: number, next: number][] = [[start, 0]];
    state[start] = OPEN;
    while (stack.length > 0) {
      const top = stack.at(-1)!;
      const next = out[top[0]]![top[1]++];
      if (next === undefined) {
        state[top[0]] = DONE;
        ordered.push(top[0]);
        stack.pop();
      } else if (state[next] !== OPEN) {
        forward[top[0]]!.push(next);
        if (state[next] === DONE) continue;
        state[next] = OPEN;
        stack.push([next, 0]);
      }
    }
  }
  const ranks = new Int32Array(length);
  for (const node of ordered.reverse()) for (const next of forward[node]!) ranks[next] = Math.max(ranks[next]!, ranks[node]! + 1);
  return ranks;
}

function place(namespace: string, members: number[], nodes: readonly { id: string }[], ranks: Int32Array, neighbours: readonly (readonly number[])[], x: Float32Array, y: Float32Array): { box: Box; members: number[] } {
  const byRank = new Map<number, number[]>();
  for (const index of members) byRank.set(ranks[index]!, [...(byRank.get(ranks[index]!) ?? []), index]);
  const most = Math.max(FEWEST_ROWS, Math.ceil(Math.sqrt(members.length) * ROWS_FACTOR));
  const columns = [...byRank].sort(([a], [b]) => a - b).map(([, column]) => column.sort((a, b) => (nodes[a]!.id < nodes[b]!.id ? -1 : 1)));
  const rows = new Map<number, number>();
  const note = (column: readonly number[]): void => column.forEach((index, row) => rows.set(index, row));
  columns.forEach(note);
  // Each stands where those are that it speaks with.
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (const column of sweep % 2 === 0 ? columns : [...columns].reverse()) {
      const middle = new Map(column.map((index) => {
        const known = neighbours[index]!.flatMap((other) => rows.get(other) ?? []);
        return [index, known.length === 0 ? rows.get(index)! : known.reduce((sum, row) => sum + row, 0) / known.length];
      }));
      column.sort((a, b) => middle.get(a)! - middle.get(b)! || rows.get(a)! - rows.get(b)!);
      note(column);
    }
  }
  const broken = columns.flatMap((column) => {
    const parts = Math.ceil(column.length / most);
    const size = Math.ceil(column.length / parts);
    return Array.from({ length: parts }, (_, part) => column.slice(part * size, (part + 1) * size));
  });
  const tallest = Math.max(...broken.map(({ length }) => length));
  broken.forEach((column, at) => {
    const free = ((tallest - column.length) * (NODE_HEIGHT + ROW_GAP)) / 2;
    column.forEach((index, row) => {
      x[index] = PADDING + at * (NODE_WIDTH + COLUMN_GAP);
      y[index] = TITLE + PADDING + free + row * (NODE_HEIGHT + ROW_GAP);
    });
  });
  return { members, box: { namespace, x: 0, y: 0, width: 2 * PADDING + broken.length * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP, height: TITLE + 2 * PADDING + tallest * (NODE_HEIGHT + ROW_GAP) - ROW_GAP } };
}

/** Onto shelves, the tallest first, about as wide as high. */
function pack(boxes: Box[]): { width: number; height: number } {
  const area = boxes.reduce((sum, { width, height }) => sum + (width + BOX_GAP) * (height + BOX_GAP), 0);
  const shelf = Math.max(Math.sqrt(area * 1.7), ...boxes.map(({ width }) => width), 0);
  let [left, top, tallest, widest] = [0, 0, 0, 0];
  for (const box of [...boxes].sort((a, b) => b.height - a.height || (a.namespace < b.namespace ? -1 : 1))) {
    if (left > 0 && left + box.width > shelf) [left, top, tallest] = [0, top + tallest + BOX_GAP, 0];
    [box.x, box.y] = [left, top];
    left += box.width + BOX_GAP;
    tallest = Math.max(tallest, box.height);
    widest = Math.max(widest, box.x + box.width);
  }
  return { width: widest, height: top + tallest };
}
