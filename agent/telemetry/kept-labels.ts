/** Labels of the kernel's entries as they were last made: for as long as neither the control plane nor the node's pods have changed they are the same. */
import type { FlowPod } from './flow-labels.js';

export class KeptLabels<T> {
  readonly byId = new Map<string, T>();
  #revision = -1;
  #pods = '';

  /** @param revision of what the control plane says of workloads and services */
  begin(revision: number, pods: ReadonlyMap<bigint, FlowPod>): void {
    const now = [...pods.values()].map(({ netnsCookie, addresses }) => `${netnsCookie} ${addresses.join(' ')}`).join();
    if (revision === this.#revision && now === this.#pods) return;
    [this.#revision, this.#pods] = [revision, now];
    this.byId.clear();
  }

  /** @param make undefined: they can't be told yet */
  of(id: string, make: () => T | undefined): T | undefined {
    const known = this.byId.get(id);
    if (known !== undefined) return known;
    const labels = make();
    if (labels !== undefined) this.byId.set(id, labels);
    return labels;
  }
}
