/** Prometheus' text format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/ */
export type MetricType = 'counter' | 'gauge';

export class PrometheusText {
  readonly #families = new Map<string, { help: string; type: MetricType; lines: string[] }>();

  add(name: string, type: MetricType, help: string, value: number | bigint, labels: Readonly<Record<string, string>> = {}): this {
    let family = this.#families.get(name);
    if (!family) this.#families.set(name, (family = { help, type, lines: [] }));
    const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`);
    family.lines.push(`${name}${pairs.length > 0 ? `{${pairs.join(',')}}` : ''} ${value}`);
    return this;
  }

  toString(): string {
    let text = '';
    for (const [name, { help, type, lines }] of this.#families) {
      text += `# HELP ${name} ${help.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}\n# TYPE ${name} ${type}\n${lines.join('\n')}\n`;
    }
    return text;
  }
}

function escapeLabel(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
