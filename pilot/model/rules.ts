/** DestinationRules by the hosts that they are about, and which of them a client obeys. */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { DestinationRule } from '../../common/kube/types.js';
import { isExportedTo, parseExportTo } from './export-to.js';
import { HostIndex, resolveHost } from './hosts.js';
import type { MeshConfig } from './mesh.js';
import type { MeshService } from './types.js';

/** The rule in force for one client and host. */
export interface AppliedRule {
  /** The same for the same rules: part of the key of what is made from it. */
  key: string;
  object: DestinationRule;
}

export class DestinationRules {
  readonly #byHost = new HostIndex<LoadedObject<DestinationRule>>();

  constructor(oldestFirst: readonly LoadedObject<DestinationRule>[], readonly mesh: MeshConfig) {
    for (const loaded of oldestFirst) {
      const { spec, metadata } = loaded.object;
      this.#byHost.add(resolveHost(spec.host, metadata.namespace ?? 'default', mesh.clusterDomain), loaded);
    }
  }

  /**
   * For clients in `clientNamespace`: the client's own namespace's rule, then the service's, then the root's; of several
   * the oldest. (Istio merges several rules of one host; that is not done here.)
   */
  find(host: string, service: MeshService | undefined, clientNamespace: string): AppliedRule | undefined {
    const candidates = this.#byHost
      .matching(host)
      .map((rules) => rules.filter(({ object }) => isExportedTo(parseExportTo(object.spec.exportTo, object.metadata.namespace ?? 'default', this.mesh.defaultDestinationRuleExportTo), clientNamespace)))
      .filter((rules) => rules.length > 0);
    if (candidates.length === 0) return undefined;
    for (const namespace of new Set([clientNamespace, service?.namespace, this.mesh.rootNamespace])) {
      for (const rules of candidates) {
        const rule = rules.find(({ object }) => object.metadata.namespace === namespace);
        if (rule) return applied(rule);
      }
    }
    // Rules are visible everywhere by default; one in a third namespace applies when nobody nearer has one.
    return applied(candidates[0]![0]!);
  }
}

function applied({ key, object }: LoadedObject<DestinationRule>): AppliedRule {
  return { key, object };
}
