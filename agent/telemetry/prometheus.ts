/** Prometheus' text format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/ */
export type MetricType = 'counter' | 'gauge' | 'histogram';

export class PrometheusText {
  readonly #families = new Map<string, { help: string; type: MetricType; lines: string[] }>();

  add(name: string, type: MetricType, help: string, value: number | bigint, labels: Readonly<Record<string, string>> = {}): this {
    this.#family(name, type, help).push(line(name, value, labels));
    return this;
  }

  /** `counts` has one more than `bounds`: what is above the last. */
  addHistogram(name: string, help: string, bounds: readonly number[], counts: readonly bigint[], sum: number, labels: Readonly<Record<string, string>> = {}): this {
    const lines = this.#family(name, 'histogram', help);
    let below = 0n;
    counts.forEach((count, index) => {
      below += count;
      lines.push(line(`${name}_bucket`, below, { ...labels, le: bounds[index] === undefined ? '+Inf' : String(bounds[index]) }));
    });
    lines.push(line(`${name}_sum`, sum, labels), line(`${name}_count`, below, labels));
    return this;
  }

  #family(name: string, type: MetricType, help: string): string[] {
    let family = this.#families.get(name);
    if (!family) this.#families.set(name, (family = { help, type, lines: [] }));
    return family.lines;
  }

  toString(): string {
    let text = '';
    for (const [name, { help, type, lines }] of this.#families) {
      text += `# HELP ${name} ${help.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}\n# TYPE ${name} ${type}\n${lines.join('\n')}\n`;
    }
    return text;
  }
}

function line(name: string, value: number | bigint, labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`);
  return `${name}${pairs.length > 0 ? `{${pairs.join(',')}}` : ''} ${value}`;
}

function escapeLabel(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
