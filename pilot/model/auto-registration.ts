/**
 * Workloads outside of Kubernetes that register themselves: a proxy whose metadata names a WorkloadGroup
 * (`AUTO_REGISTER_GROUP`) is a WorkloadEntry made from the group's template for as long as it is connected. The entries are
 * in this process alone; a proxy that connects to another pilot is registered there.
 */
import type { WorkloadEntry, WorkloadGroup } from '../../common/kube/types.js';
import { objectKey } from '../../common/kube/types.js';
import { labelledLocality } from './locality.js';
import type { Model, ObjectChange } from './model.js';
import type { Proxy } from './proxy.js';

/** Istio's: long enough to reconnect, or to go to another control plane. */
const GRACE_MS = 10_000;

interface Registered {
  entry: WorkloadEntry;
  /** One a connection. */
  proxies: Set<Proxy>;
  timer?: NodeJS.Timeout;
}

export class AutoRegistration {
  #closed = false;
  readonly #registered = new Map<string, Registered>();

  /** @param apply puts changes into force */
  constructor(readonly model: Model, readonly apply: (changes: readonly ObjectChange[]) => void, readonly graceMs = GRACE_MS) {}

  /** Only a proxy that has shown who it is: its address becomes a server of whatever selects its labels. */
  connected(proxy: Proxy): void {
    const entry = proxy.isTrusted ? this.#entryOf(proxy) : undefined;
    if (!entry) return;
    const key = objectKey(entry);
    const known = this.#registered.get(key);
    clearTimeout(known?.timer);
    this.#registered.set(key, { entry, proxies: (known?.proxies ?? new Set<Proxy>()).add(proxy) });
    if (JSON.stringify(known?.entry) !== JSON.stringify(entry)) this.apply([{ key, loaded: { key, object: entry, file: `proxy ${proxy.id}`, positions: NOWHERE } }]);
  }

  gone(proxy: Proxy): void {
    const name = nameOf(proxy);
    const key = name && `networking.istio.io/WorkloadEntry/${proxy.namespace}/${name}`;
    const known = key ? this.#registered.get(key) : undefined;
    if (this.#closed || !key || !known?.proxies.delete(proxy) || known.proxies.size > 0) return;
    known.timer = setTimeout(() => {
      this.#registered.delete(key);
      this.apply([{ key }]);
    }, this.graceMs);
    known.timer.unref();
  }

  close(): void {
    this.#closed = true;
    for (const { timer } of this.#registered.values()) clearTimeout(timer);
    this.#registered.clear();
  }

  #entryOf(proxy: Proxy): WorkloadEntry | undefined {
    const name = nameOf(proxy);
    const group = name && this.model.configs.get<WorkloadGroup>('WorkloadGroup', proxy.namespace, groupOf(proxy)!)?.object;
    if (!name || !group) return undefined;
    const { template, metadata = {} } = group.spec;
    const locality = labelledLocality(proxy.labels);
    return {
      apiVersion: 'networking.istio.io/v1',
      kind: 'WorkloadEntry',
      metadata: { name, namespace: proxy.namespace, labels: { ...metadata.labels, ...template.labels, ...proxy.labels }, annotations: { ...metadata.annotations, 'istio.io/autoRegistrationGroup': group.metadata.name } },
      spec: { ...template, address: proxy.ip, labels: { ...metadata.labels, ...template.labels, ...proxy.labels }, ...(locality ? { locality } : {}), ...(proxy.serviceAccount && !template.serviceAccount ? { serviceAccount: proxy.serviceAccount } : {}) },
    };
  }
}

const NOWHERE = { at: () => ({ line: 1, column: 1 }) };

function groupOf({ metadata }: Proxy): string | undefined {
  const group = metadata['AUTO_REGISTER_GROUP'];
  return typeof group === 'string' && group !== '' ? group : undefined;
}

/** Istio's name: the group's, and the address with what no name may hold replaced. */
function nameOf(proxy: Proxy): string | undefined {
  const group = groupOf(proxy);
  const network = typeof proxy.metadata['NETWORK'] === 'string' && proxy.metadata['NETWORK'] ? `-${proxy.metadata['NETWORK']}` : '';
  return group && `${group}-${proxy.ip.replaceAll(':', '-')}${network}`;
}
