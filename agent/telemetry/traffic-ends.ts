/** Who the ends of traffic are, where Istio's labels have `unknown` for a workload, too. */
import { DEFAULT_TRUST_DOMAIN, parseSpiffeId, spiffeId } from '../../common/identity/spiffe.js';
import type { TrafficEnd } from '../../common/traffic.js';
import type { Workload } from '../../proto/generated/istio/workload/workload.js';
import type { FlowSideName } from '../dataplane/kernel-flows.js';
import { UNKNOWN, type FlowLabels, type KnownWorkloads } from './flow-labels.js';

/** No name of Kubernetes has parentheses. */
const OUTSIDE = '(outside)';
const outside = (name: string): TrafficEnd => ({ what: 'outside', namespace: OUTSIDE, workload: name, app: name });
/** A node itself, another cluster, or whoever has an address. */
const CALLERS = outside('callers');
const ADDRESSES = outside('addresses');

export class TrafficEnds {
  readonly #known: KnownWorkloads;
  #revision = -1;
  /** By SPIFFE id; undefined: several have it. */
  #byAccount = new Map<string, Workload | undefined>();

  constructor(known: KnownWorkloads) {
    this.#known = known;
  }

  of(side: FlowSideName, labels: FlowLabels): TrafficEnd {
    const label = (name: string): string => labels[name] ?? UNKNOWN;
    const workload = label(`${side}_workload`);
    if (workload !== UNKNOWN) return { namespace: label(`${side}_workload_namespace`), workload, app: label(`${side}_canonical_service`) };
    if (side === 'source') return this.#ofPrincipal(label('source_principal'));
    const [namespace, name] = [label('destination_service_namespace'), label('destination_service_name')];
    // What Envoy passes on without a service has the cluster's name, and no namespace.
    return namespace === UNKNOWN || name === UNKNOWN ? ADDRESSES : { what: 'service', namespace, workload: name, app: name };
  }

  #ofPrincipal(principal: string): TrafficEnd {
    const identity = parseSpiffeId(principal);
    if (!identity) return CALLERS;
    const { namespace, serviceAccount } = identity;
    const workload = this.#workloads().get(principal);
    return workload ? { namespace, workload: workload.workload_name, app: workload.canonical_name } : { what: 'account', namespace, workload: serviceAccount, app: serviceAccount };
  }

  #workloads(): ReadonlyMap<string, Workload | undefined> {
    if (this.#revision === this.#known.revision) return this.#byAccount;
    this.#revision = this.#known.revision;
    this.#byAccount = new Map();
    for (const { message } of this.#known.addresses.values()) {
      if (message.type?.$case !== 'workload') continue;
      const { value } = message.type;
      const id = spiffeId({ trustDomain: value.trust_domain || DEFAULT_TRUST_DOMAIN, namespace: value.namespace, serviceAccount: value.service_account || 'default' });
      const before = this.#byAccount.get(id);
      const isAnother = this.#byAccount.has(id) && before?.workload_name !== value.workload_name;
      this.#byAccount.set(id, isAnother ? undefined : value);
    }
    return this.#byAccount;
  }
}
