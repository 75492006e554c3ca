/** What a diagnosis is made of, and its table. Pure: every probe hands in rows, nothing here asks the machine. */
export type State = 'yes' | 'no' | 'partly';

/**
 * What hangs on a row: `bpf` the capture and short-circuits, `iptables` the fallback, `base` both ways, `extra` comfort or
 * the lab only.
 */
export type Need = 'bpf' | 'iptables' | 'base' | 'extra';

export interface Row {
  /** Stable name for scripts, e.g. `kernel.btf`. */
  id: string;
  group: string;
  name: string;
  state: State;
  need: Need;
  /** What was seen. */
  detail: string;
  /** What the lack costs; present unless the state is yes. */
  cost?: string;
}

export interface Verdict {
  capture: State;
  shortCircuit: State;
  iptables: State;
  /** Exit code of `underpass doctor`. */
  code: 0 | 3 | 4;
  summary: string;
}

export interface Machine {
  os: string;
  kernel: string;
  cpu: string;
  memory: string;
  virtualization: string;
}

export interface Diagnosis {
  machine: Machine;
  rows: Row[];
  verdict: Verdict;
}

export const EXIT_CODES = `Exit codes:
  0  all of Underpass works here: capture and short-circuits by BPF
  1  the diagnosis itself failed
  2  wrong usage
  3  works with restrictions: what is missing is in the table, with its cost
  4  neither BPF nor iptables can be used by this process`;

function worst(rows: readonly Row[], needs: readonly Need[]): State {
  const states = rows.filter((row) => needs.includes(row.need)).map((row) => row.state);
  return states.includes('no') ? 'no' : states.includes('partly') ? 'partly' : 'yes';
}

export function verdictOf(rows: readonly Row[]): Verdict {
  const capture = worst(rows, ['bpf', 'base']);
  const acceleration = rows.find((row) => row.id === 'self-test.acceleration')?.state ?? 'partly';
  const shortCircuit = capture === 'no' ? 'no' : acceleration === 'yes' ? capture : acceleration;
  const iptables = worst(rows, ['iptables', 'base']);
  if (capture === 'no' && iptables === 'no') {
    return { capture, shortCircuit, iptables, code: 4, summary: 'neither capture by BPF nor by iptables can be used by this process' };
  }
  if (capture === 'no') return { capture, shortCircuit, iptables, code: 3, summary: 'pods are reached by iptables redirection; nothing is short-circuited' };
  if (shortCircuit === 'no') return { capture, shortCircuit, iptables, code: 3, summary: 'capture by BPF works; the kernel failed the self-test of short-circuits, so they stay off' };
  if (capture === 'partly' || shortCircuit === 'partly') return { capture, shortCircuit, iptables, code: 3, summary: 'works with restrictions, see "partly" above' };
  return { capture, shortCircuit, iptables, code: 0, summary: 'capture and short-circuits by BPF work here' };
}

const COLOURS: Record<State, string> = { yes: '\u001b[32m', no: '\u001b[31m', partly: '\u001b[33m' };
const DIM = '\u001b[2m';
const BOLD = '\u001b[1m';
const RESET = '\u001b[0m';

/** @param width of the terminal; text that is longer is broken, not cut */
export function renderTable(diagnosis: Diagnosis, options: { colour: boolean; width?: number }): string {
  const paint = (code: string, text: string): string => (options.colour ? code + text + RESET : text);
  const nameWidth = Math.max(...diagnosis.rows.map((row) => row.name.length), 4);
  const indent = nameWidth + 12;
  const textWidth = Math.max(40, (options.width ?? 120) - indent);
  const lines: string[] = [];
  const { machine, verdict } = diagnosis;
  lines.push(`${machine.os}, Linux ${machine.kernel}, ${machine.cpu}, ${machine.memory}${machine.virtualization ? `, ${machine.virtualization}` : ''}`);
  let group = '';
  for (const row of diagnosis.rows) {
    if (row.group !== group) {
      group = row.group;
      lines.push('', paint(BOLD, group));
    }
    const [first = '', ...rest] = wrap(row.detail, textWidth);
    lines.push(`  ${row.name.padEnd(nameWidth)}  ${paint(COLOURS[row.state], row.state.padEnd(6))}  ${first}`);
    for (const line of rest) lines.push(' '.repeat(indent) + line);
    if (row.cost) for (const line of wrap(`costs: ${row.cost}`, textWidth)) lines.push(' '.repeat(indent) + paint(DIM, line));
  }
  lines.push('', `${paint(BOLD, 'Capture by BPF')} ${paint(COLOURS[verdict.capture], verdict.capture)}   ${paint(BOLD, 'Short-circuits')} ${paint(COLOURS[verdict.shortCircuit], verdict.shortCircuit)}   ${paint(BOLD, 'Capture by iptables')} ${paint(COLOURS[verdict.iptables], verdict.iptables)}`);
  lines.push(verdict.summary);
  return lines.join('\n') + '\n';
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/).filter(Boolean)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = '';
    }
    line = line === '' ? word : `${line} ${word}`;
  }
  if (line !== '') lines.push(line);
  return lines;
}
