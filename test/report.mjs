// The reports of several runs of node's test runner, told as one.
const COUNTS = ['tests', 'suites', 'pass', 'fail', 'cancelled', 'skipped', 'todo'];

/** What a run writes (reporter `spec`): lines of tests, then counts, then the failing tests once more. */
export class Report {
  #write;
  #rest = '';
  #held = '';

  /** @param write gets the lines of tests, whole */
  constructor(write) {
    this.#write = write;
  }

  add(chunk) {
    this.#rest += chunk;
    const end = this.#rest.lastIndexOf('\n') + 1;
    const lines = this.#rest.slice(0, end);
    this.#rest = this.#rest.slice(end);
    const counts = this.#held === '' ? lines.search(/^ℹ tests \d+$/m) : 0;
    this.#write(counts < 0 ? lines : lines.slice(0, counts));
    if (counts >= 0) this.#held += lines.slice(counts);
  }

  /** @returns {{counts: Record<string, number>, failures: string}} */
  #parts() {
    const text = this.#held + this.#rest;
    const counts = {};
    const failures = text.replaceAll(/^ℹ (\w+) ([\d.]+)\n?/gm, (line, name, value) => {
      if (!COUNTS.includes(name) && name !== 'duration_ms') return line;
      counts[name] = Number(value);
      return '';
    });
    return { counts, failures: failures.trim() };
  }

  /** Of the run that has ended. */
  get tests() {
    return this.#parts().counts.tests ?? 0;
  }

  /** The closing lines of all: what was counted, summed, and what failed. */
  static sum(reports, durationMs) {
    const parts = reports.map((report) => report.#parts());
    const total = (name) => parts.reduce((sum, { counts }) => sum + (counts[name] ?? 0), 0);
    const counts = [...COUNTS.map((name) => `ℹ ${name} ${total(name)}\n`), `ℹ duration_ms ${durationMs}\n`];
    return counts.join('') + parts.map(({ failures }) => (failures === '' ? '' : `\n${failures}\n`)).join('');
  }
}
