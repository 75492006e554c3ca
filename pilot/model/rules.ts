/** DestinationRules by the hosts that they are about, merged as Istio merges them, and which of them a client obeys. */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { DestinationRule, TrafficPolicy } from '../../common/kube/types.js';
import { selects } from './configs.js';
import { isExportedTo, parseExportTo, type ExportTo } from './export-to.js';
import { HostIndex, resolveHost } from './hosts.js';
import type { MeshConfig } from './mesh.js';
import type { MeshService } from './types.js';

/** The rule in force for one client and host. */
export interface AppliedRule {
  /** The same for the same rules: part of the key of what is made from it. */
  key: string;
  /** Of several that merged: metadata of the oldest, subsets of all. */
  object: DestinationRule;
}

interface MergedRule extends AppliedRule {
  exportTo: ExportTo;
  /** Canonical text of the exportTo and the workload selector: only rules with the same merge. */
  likeness: string;
  selector: Readonly<Record<string, string>> | undefined;
}

type Labels = Readonly<Record<string, string>>;

export class DestinationRules {
  readonly #byNamespace = new Map<string, HostIndex<MergedRule>>();
  /** By namespace: what its rules ask of a client's labels. */
  readonly #selectors = new Map<string, Labels[]>();
  /** Some rule is exported to them by name, or is not exported from them, or selects among their clients. */
  readonly #singledOut = new Set<string>();

  constructor(oldestFirst: readonly LoadedObject<DestinationRule>[], readonly mesh: MeshConfig) {
    const merged = new Map<string, MergedRule[]>();
    for (const { key, object } of oldestFirst) {
      const { spec, metadata } = object;
      const namespace = metadata.namespace ?? 'default';
      const host = resolveHost(spec.host, namespace, mesh.clusterDomain);
      const exportTo = parseExportTo(spec.exportTo, namespace, mesh.defaultDestinationRuleExportTo);
      const selector = spec.workloadSelector?.matchLabels;
      if (exportTo !== 'all' || selector) for (const name of [namespace, ...(exportTo === 'all' ? [] : exportTo)]) this.#singledOut.add(name);
      const likeness = JSON.stringify([exportTo === 'all' ? exportTo : [...exportTo].sort(), selector ? Object.entries(selector).sort() : null]);
      const place = `${namespace}\0${host}`;
      const known = merged.get(place) ?? [];
      merged.set(place, known);
      const same = known.find((rule) => rule.likeness === likeness);
      if (same) {
        merge(same, key, object);
        continue;
      }
      const rule: MergedRule = { key, object, exportTo, likeness, selector };
      known.push(rule);
      let index = this.#byNamespace.get(namespace);
      if (!index) this.#byNamespace.set(namespace, (index = new HostIndex()));
      index.add(host, rule);
      if (!selector) continue;
      const selectors = this.#selectors.get(namespace);
      if (selectors) selectors.push(selector);
      else this.#selectors.set(namespace, [selector]);
    }
  }

  /** What tells clients of a namespace apart: which of its rules' workload selectors select them. */
  selectorKey(namespace: string, labels: Labels): string {
    return (this.#selectors.get(namespace) ?? []).map((selector) => (selects(selector, labels) ? '1' : '0')).join('');
  }

  /**
   * Whether clients of this namespace obey the same rules for all services as clients of one that has no rules. Those of a
   * namespace's own rules that are about its own services are obeyed by everybody.
   */
  isOrdinary(namespace: string, serviceOf: (host: string) => MeshService | undefined): boolean {
    if (this.#singledOut.has(namespace)) return false;
    if (namespace === this.mesh.rootNamespace) return true;
    return (this.#byNamespace.get(namespace)?.patterns() ?? []).every((host) => !host.startsWith('*') && (serviceOf(host)?.namespace ?? namespace) === namespace);
  }

  /**
   * The client's own namespace's rule for the most specific host that covers `host`, else the service's namespace's, else the
   * root namespace's. A rule in any other namespace never applies.
   */
  find(host: string, service: MeshService | undefined, client: { namespace: string; labels: Labels }): AppliedRule | undefined {
    const { rootNamespace } = this.mesh;
    // A client in the root namespace obeys the service's namespace first, but for rules that are meant for itself alone.
    if (client.namespace !== rootNamespace) {
      const own = this.#candidates(client.namespace, host, client.namespace);
      if (own) return select(own, client);
    } else {
      const own = this.#candidates(rootNamespace, host, rootNamespace)?.filter(({ exportTo }) => exportTo !== 'all' && exportTo.size === 1);
      if (own?.length) return select(own, client);
    }
    const found = (service && this.#candidates(service.namespace, host, client.namespace)) ?? this.#candidates(rootNamespace, host, client.namespace);
    return found && select(found, client);
  }

  #candidates(namespace: string, host: string, client: string): readonly MergedRule[] | undefined {
    for (const rules of this.#byNamespace.get(namespace)?.matching(host) ?? []) {
      const visible = rules.filter(({ exportTo }) => isExportedTo(exportTo, client));
      if (visible.length > 0) return visible;
    }
    return undefined;
  }
}

/** A workload selector counts for clients of the rule's own namespace only. */
function select(rules: readonly MergedRule[], { namespace, labels }: { namespace: string; labels: Labels }): AppliedRule | undefined {
  return rules.find(({ selector, object }) => selector && object.metadata.namespace === namespace && selects(selector, labels)) ?? rules.find(({ selector }) => !selector);
}

/** Subsets are united, of equal names the older's counts; so does the older's traffic policy, if it has one. */
function merge(rule: MergedRule, key: string, { spec }: DestinationRule): void {
  const known = rule.object.spec;
  const subsets = [...(known.subsets ?? [])];
  for (const subset of spec.subsets ?? []) if (!subsets.some(({ name }) => name === subset.name)) subsets.push(subset);
  const trafficPolicy: TrafficPolicy | undefined = known.trafficPolicy ?? spec.trafficPolicy;
  rule.key = `${rule.key} ${key}`;
  rule.object = { ...rule.object, spec: { ...known, subsets, ...(trafficPolicy ? { trafficPolicy } : {}) } };
}
