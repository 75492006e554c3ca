/**
 * Prometheus' text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/) and OpenMetrics 1.0.0
 * (https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md): samples are the same text in both, so that
 * a series is the same whichever is asked for.
 */
export type MetricType = 'counter' | 'gauge' | 'histogram';

export type MetricsFormat = 'text' | 'openmetrics';

export const CONTENT_TYPES: Readonly<Record<MetricsFormat, string>> = { text: 'text/plain; version=0.0.4', openmetrics: 'application/openmetrics-text; version=1.0.0; charset=utf-8' };

/** What a scrape tells, as often as it is written. */
export interface MetricsPage {
  pieces(format: MetricsFormat): Iterable<string>;
}

/** Written when they are read: a histogram has some twenty lines, and there may be thousands of them. */
type Sample = () => string;

const PIECE_CHARS = 65_536;

export class PrometheusText implements MetricsPage {
  readonly #families = new Map<string, { help: string; type: MetricType; samples: Sample[] }>();

  add(name: string, type: MetricType, help: string, value: number | bigint, labels: Readonly<Record<string, string>> = {}): this {
    return this.addLabelled(name, type, help, value, labelText(labels));
  }

  /** As `add`. @param labels as `labelText` has them */
  addLabelled(name: string, type: MetricType, help: string, value: number | bigint, labels: string): this {
    this.#family(name, type, help).push(() => line(name, value, labels));
    return this;
  }

  /** `counts` has one more than `bounds`: what is above the last. @param labels as `labelText` has them, or as they are */
  addHistogram(name: string, help: string, bounds: readonly number[], counts: readonly bigint[], sum: number, labels: Readonly<Record<string, string>> | string = ''): this {
    const text = typeof labels === 'string' ? labels : labelText(labels);
    const more = text === '' ? '' : `${text},`;
    this.#family(name, 'histogram', help).push(() => {
      let below = 0n;
      const lines = counts.map((count, index) => {
        below += count;
        return line(`${name}_bucket`, below, `${more}le="${bounds[index] === undefined ? '+Inf' : bounds[index]}"`);
      });
      return [...lines, line(`${name}_sum`, sum, text), line(`${name}_count`, below, text)].join('\n');
    });
    return this;
  }

  #family(name: string, type: MetricType, help: string): Sample[] {
    let family = this.#families.get(name);
    if (!family) this.#families.set(name, (family = { help, type, samples: [] }));
    return family.samples;
  }

  /** Of some ten thousand characters. */
  *pieces(format: MetricsFormat = 'text'): Generator<string> {
    const isOpen = format === 'openmetrics';
    let text = '';
    for (const [name, { help, type, samples }] of this.#families) {
      // In OpenMetrics a counter's name is without what its samples end in, and quotes are escaped here too.
      const family = isOpen && type === 'counter' ? name.replace(/_total$/, '') : name;
      text += `# HELP ${family} ${isOpen ? escapeLabel(help) : help.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}\n# TYPE ${family} ${type}\n`;
      for (const sample of samples) {
        text += `${sample()}\n`;
        if (text.length < PIECE_CHARS) continue;
        yield text;
        text = '';
      }
    }
    yield isOpen ? `${text}# EOF\n` : text;
  }

  toString(): string {
    return [...this.pieces()].join('');
  }
}

/** `a="b",c="d"` */
export function labelText(labels: Readonly<Record<string, string>>): string {
  return Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`).join();
}

function line(name: string, value: number | bigint, labels: string): string {
  return `${name}${labels === '' ? '' : `{${labels}}`} ${value}`;
}

function escapeLabel(text: string): string {
  return !/["\\\n]/.test(text) ? text : text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
