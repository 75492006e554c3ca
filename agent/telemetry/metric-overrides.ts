/**
 * What Telemetry says of metrics, laid over series when they are told, whoever counted them: so what the kernel moved and what Envoy
 * had is one series under it, too. Series that come to the same labels are one.
 */
import type { MetricOverrides } from '../proxy/metric-overrides.js';
import type { RequestView } from '../proxy/request-view.js';
import type { FlowDirectory, FlowLabels } from './flow-labels.js';
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
    return workload ? [[`${reporter} ${workload.namespace}/${workload.workload_name}`, overrides] as const] : [];
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
    for (const name of names) {
      const override = own?.[name] ?? {};
      if (override === 'off') continue;
      const changed: Record<string, string | null> = { ...labels, ...override };
      const text = this.#overrides.size === 0 ? labelText(labels) : labelText(Object.fromEntries(Object.entries(changed).filter((entry): entry is [string, string] => entry[1] !== null).sort(([a], [b]) => (a < b ? -1 : 1))));
      const key = `${name} ${text}`;
      const before = this.#sums.get(key);
      this.#sums.set(key, { name, labels: text, totals: before ? this.#add(before.totals, totals) : totals });
    }
  }

  get sums(): Iterable<{ name: string; labels: string; totals: T }> {
    return this.#sums.values();
  }
}
