/**
 * What Telemetry says of metrics, laid over series when they are told, whoever counted them: so what the kernel moved and what Envoy
 * had is one series under it, too. Series that come to the same labels are one.
 */
import type { MetricOverride, MetricOverrides } from '../proxy/metric-overrides.js';
import type { RequestView } from '../proxy/request-view.js';
import { UNKNOWN, type FlowDirectory, type FlowLabels } from './flow-labels.js';
import { labelText } from './prometheus.js';

/** By `reporter namespace/workload`: it is the pod that tells a series whose settings count. */
export type WorkloadOverrides = ReadonlyMap<string, MetricOverrides>;

const REPORTERS = ['source', 'destination'] as const;

/** Of the pods of this node. */
export function workloadOverrides({ pods, overridesOf }: Pick<RequestView, 'pods' | 'overridesOf'>, directory: FlowDirectory): WorkloadOverrides {
  const found = pods().flatMap(({ uid, addresses }) => REPORTERS.flatMap((reporter) => {
    const overrides = overridesOf?.(uid, reporter);
    return overrides ? [{ reporter, addresses, overrides }] : [];
  }));
  if (found.length === 0 || !directory.synced) return new Map();
  directory.prepare(found.flatMap(({ addresses }) => addresses));
  return new Map(found.flatMap(({ reporter, addresses, overrides }) => {
    const workload = directory.workload(addresses);
    return workload ? [[`${reporter} ${workload.namespace}/${workload.workload_name}`, withSharedParts(overrides)] as const] : [];
  }));
}

/** Of metrics that are changed alike one object, as a rule for all metrics is told for each. */
function withSharedParts(overrides: MetricOverrides): MetricOverrides {
  const known = new Map<string, MetricOverride>();
  return Object.fromEntries(Object.entries(overrides).map(([name, override]) => {
    const key = JSON.stringify(override);
    if (!known.has(key)) known.set(key, override);
    return [name, known.get(key)!];
  }));
}

/** Sums of metrics by what their labels have become. */
export class Overridden<T> {
  readonly #overrides: WorkloadOverrides;
  readonly #add: (a: T, b: T) => T;
  readonly #sums = new Map<string, { name: string; labels: string; totals: T }>();

  constructor(overrides: WorkloadOverrides, add: (a: T, b: T) => T) {
    this.#overrides = overrides;
    this.#add = add;
  }

  take(names: readonly string[], labels: FlowLabels, totals: T): void {
    const reporter = labels['reporter'] ?? '';
    const own = this.#overrides.get(`${reporter} ${labels[`${reporter}_workload_namespace`]}/${labels[`${reporter}_workload`]}`);
    /** Most metrics of a series have the same labels. */
    const texts = new Map<MetricOverride | undefined, string>();
    for (const name of names) {
      const override = own?.[name];
      if (override === 'off') continue;
      let text = texts.get(override);
      if (text === undefined) texts.set(override, (text = this.#overrides.size === 0 ? labelText(labels) : labelText(sorted(override ? laidOver(labels, override) : labels))));
      const key = `${name} ${text}`;
      const before = this.#sums.get(key);
      this.#sums.set(key, { name, labels: text, totals: before ? this.#add(before.totals, totals) : totals });
    }
  }

  get sums(): Iterable<{ name: string; labels: string; totals: T }> {
    return this.#sums.values();
  }
}

/** Histograms have it by themselves. */
const BUCKET = 'le';

/** As Envoy writes a tag's name for Prometheus: whoever may write a Telemetry may call a tag anything, and one odd name spoils the whole page. */
function nameOf(tag: string): string {
  return tag.replaceAll(/[^a-zA-Z0-9_]/g, '_').replace(/^(?=\d|$)/, '_');
}

function laidOver(labels: FlowLabels, override: Exclude<MetricOverride, 'off'>): FlowLabels {
  const changed: Record<string, string> = { ...labels };
  for (const [tag, value] of Object.entries(override)) {
    const name = nameOf(tag);
    if (value === null) delete changed[name];
    else if (name !== BUCKET) changed[name] = typeof value === 'string' ? value : value.map((part) => (typeof part === 'string' ? part : (labels[part.label] ?? UNKNOWN))).join('');
  }
  return changed;
}

function sorted(labels: FlowLabels): FlowLabels {
  return Object.fromEntries(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}
