// Which test files can't touch the machine, and the reports of two runs of node's test runner told as one.
import { existsSync, readFileSync } from 'node:fs';
import { dirname, isAbsolute, join, resolve } from 'node:path';

// Who has none of these, in any module that it loads, makes no process, namespace, cgroup or BPF object. `module` is for
// createRequire: what that loads isn't seen here.
const TOUCHES = /^(?:node:)?(?:child_process|cluster|module)$|\/dist\/native\//;

/** Packages by name, modules by path. What a test only quotes may look like an import, too: at worst its file isn't there. */
const importsOf = (file) =>
  [...readFileSync(file, 'utf8').matchAll(/\b(?:from|import)\s*\(?\s*(['"`])([^'"`]+)\1/g)].flatMap(([, , name]) => {
    if (!name.startsWith('.')) return isAbsolute(name) ? [] : [name];
    const path = resolve(dirname(file), name);
    return existsSync(path) ? [path] : [];
  });

/** @returns {{machine: string[], units: string[]}} `files`, in their order: those that could touch the machine, and the others */
export function lanesOf(root, files) {
  const imports = new Map();
  const touches = (entry) => {
    const seen = new Set([entry]);
    for (const name of seen) {
      if (TOUCHES.test(name)) return true;
      if (!isAbsolute(name)) continue;
      if (!imports.has(name)) imports.set(name, importsOf(name));
      for (const next of imports.get(name)) seen.add(next);
    }
    return false;
  };
  const lanes = { machine: [], units: [] };
  for (const file of files) lanes[touches(join(root, file)) ? 'machine' : 'units'].push(file);
  return lanes;
}

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
