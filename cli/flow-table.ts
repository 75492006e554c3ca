/** Rows for who reads flows on a terminal, as they come: columns are as wide as what has come so far. */
import type { Flow } from '../agent/client.js';

const TITLES = ['TIME', 'VERDICT', 'WAY', 'SEEN BY', 'SOURCE', 'DESTINATION', 'WHAT'];
const WIDTHS = [12, 7, 9, 7, 24, 24];
const MAX_WIDTH = 48;
const COLOURS: Record<Flow['verdict'], string> = { allowed: '', denied: '\u001b[31m', failed: '\u001b[33m' };
const PLAIN = '\u001b[0m';

export class FlowTable {
  readonly #widths = [...WIDTHS];

  constructor(readonly options: { colours: boolean }) {}

  header(): string {
    return this.#line(TITLES, '');
  }

  row(flow: Flow): string {
    const cells = [timeOf(flow), flow.verdict, flow.way ?? '-', flow.reporter === 'source' ? 'client' : 'server', endText(flow.source), endText(flow.destination), whatText(flow)];
    return this.#line(cells, this.options.colours ? COLOURS[flow.verdict] : '');
  }

  #line(cells: readonly string[], colour: string): string {
    const shown = cells.map((cell, index) => {
      const width = this.#widths[index];
      if (width === undefined) return cell;
      this.#widths[index] = Math.max(width, Math.min(cell.length, MAX_WIDTH));
      return cell.padEnd(this.#widths[index]!);
    });
    if (colour !== '') shown[1] = `${colour}${shown[1]!}${PLAIN}`;
    return `${shown.join('  ').trimEnd()}\n`;
  }
}

function timeOf({ start_time: at }: Flow): string {
  return /T([\d:.]{12})/.exec(String(at ?? ''))?.[1] ?? '-';
}

function endText({ namespace, pod, workload, address, port }: Flow['source']): string {
  const name = pod ?? workload;
  const host = name !== null ? `${namespace ?? ''}/${name}` : address === null ? '-' : address.includes(':') ? `[${address}]` : address;
  return port === null ? host : `${host}:${port}`;
}

/** What came from outside may hold anything: a terminal is to see none of it. */
function printable(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?');
}

function whatText(flow: Flow): string {
  const { method, path, authority, response_code: code, response_flags: flags, duration, bytes_received: received, bytes_sent: sent, bytes_moved: moved, reason } = flow;
  const took = duration === null ? '' : ` ${duration} ms`;
  const parts = flow.kind === 'request'
    ? [`${method ?? '-'} ${authority ?? ''}${path ?? '-'} ${code ?? '-'}${flags === null ? '' : ` ${flags}`}${took}`]
    : flow.verdict === 'denied' ? ['connection'] : [`connection ${received ?? 0} B in, ${sent ?? 0} B out${moved ? `, ${moved} B short-circuited` : ''}${took}`];
  if (reason !== null) parts.push(`(${reason})`);
  return printable(parts.join(' '));
}
