/** What the kernels of the matrix can do, as the checks report it, against what is expected of them. Pure. */

export type State = 'ok' | 'not supported' | 'wrong answer' | 'not tried';

/** The group whose rows are told by what was measured; its rows' details are figures. */
export const MEASURED = 'bytes in the kernel';

/** What the groups of a file's tests end with. */
export const TESTS = ' tests';

/** One check's result. `group: name` is its key in expected.json. */
export interface Row {
  group: string;
  name: string;
  state: State;
  detail: string;
}

/** A line of a report: rows, the kernel's own version first, and `done` last, so that a guest that died is known. */
export type Line = { kernel: string } | Row | { done: true };

/** What a series of kernels is expected to answer; whatever is not named in `exceptions` has to be ok. */
export interface Expectation {
  /** The version that this was written for. */
  seen: string;
  /** Least number of checks by group: a check that is lost must not pass unseen. */
  atLeast: Record<string, number>;
  /** By `group: name`. */
  exceptions: Record<string, { state: State; why: string }>;
}

export interface Column {
  /** E.g. `6.1`. */
  series: string;
  kernel: string;
  rows: Row[];
  /** Why there is no complete answer. */
  failure?: string;
}

const isRow = (line: Line): line is Row => 'group' in line;

/** @throws Error when a line is no JSON: what came after a crash is no answer */
export function readReport(series: string, text: string): Column {
  const lines = text.split(/\r?\n/).filter(Boolean).map((line) => JSON.parse(line) as Line);
  const first = lines.find((line) => 'kernel' in line);
  const column: Column = { series, kernel: first && 'kernel' in first ? first.kernel : '', rows: lines.filter(isRow) };
  if (!lines.some((line) => 'done' in line)) {
    const last = column.rows.at(-1);
    column.failure = column.kernel === '' ? 'nothing was checked' : `the checks did not come to their end; the last was ${last ? keyOf(last) : 'none'}`;
  }
  return column;
}

export function keyOf(row: Row): string {
  return `${row.group}: ${row.name}`;
}

/** What of a kernel's answers is not as expected, a line each. Empty: all is. */
export function deviations(column: Column, expected: Expectation): string[] {
  const found: string[] = [];
  if (column.failure !== undefined) found.push(column.failure);
  const seen = new Set<string>();
  for (const row of column.rows) {
    const key = keyOf(row);
    const wanted = expected.exceptions[key]?.state ?? 'ok';
    if (row.state !== wanted) found.push(`${key}: ${row.state}, expected ${wanted}: ${row.detail}`);
    if (seen.has(key)) found.push(`${key}: reported twice`);
    seen.add(key);
  }
  for (const [key, { state }] of Object.entries(expected.exceptions)) if (!seen.has(key)) found.push(`${key}: not checked, expected ${state}`);
  for (const [group, count] of Object.entries(expected.atLeast)) {
    const have = column.rows.filter((row) => row.group === group).length;
    if (have < count) found.push(`${group}: ${have} checks, expected at least ${count}`);
  }
  return found;
}

/**
 * A table of checks by kernel, and below it the reason of whatever is not ok. The tests of one file are one line with how many
 * passed; `-` where a kernel was not asked.
 */
export function renderMatrix(columns: readonly Column[]): string {
  const lines: [name: string, cells: string[]][] = [];
  const reasons: string[] = [];
  const groups = [...new Set(columns.flatMap(({ rows }) => rows.map(({ group }) => group)))];
  for (const group of groups) {
    const ofGroup = columns.map(({ rows }) => rows.filter((row) => row.group === group));
    if (group.endsWith(TESTS)) {
      lines.push([group, ofGroup.map(passed)]);
    } else {
      lines.push([group, []]);
      for (const name of new Set(ofGroup.flat().map((row) => row.name))) lines.push([`  ${name}`, ofGroup.map((rows) => cellOf(rows.find((row) => row.name === name)))]);
    }
    ofGroup.forEach((rows, index) => {
      for (const { name, state, detail } of rows) if (state !== 'ok') reasons.push(`  ${columns[index]?.kernel ?? ''}  ${group}: ${name.trim()}: ${state}: ${detail}`);
    });
  }
  const header: (typeof lines)[number] = ['', columns.map(({ kernel }) => kernel)];
  const nameWidth = Math.max(...lines.map(([name]) => name.length)) + 2;
  const widths = columns.map((_, index) => Math.max(...[header, ...lines].map(([, cells]) => cells[index]?.length ?? 0)) + 2);
  const table = [header, ...lines].map(([name, cells]) => (name.padEnd(nameWidth) + cells.map((cell, index) => cell.padEnd(widths[index] ?? 0)).join('')).trimEnd());
  return [...table, ...(reasons.length > 0 ? ['Not ok', ...reasons] : [])].join('\n');
}

function cellOf(row: Row | undefined): string {
  if (!row) return '-';
  return row.group === MEASURED && row.state === 'ok' ? row.detail : row.state;
}

function passed(rows: readonly Row[]): string {
  return rows.length === 0 ? '-' : `${rows.filter(({ state }) => state === 'ok').length} of ${rows.length}`;
}
