/**
 * How many connections Envoy holds for a pod. Envoy looks through all its statistics for each question, so a namespace of pods
 * that leaves the mesh at once would ask longer than it waits for answers: one question at a time, of all pods.
 */
import type { EnvoyAdmin } from './envoy-admin.js';
import { inboundStatPrefix } from './fold-inbound.js';
import { podStatPrefix, podTunnelStatPrefix } from './pod-listener.js';

const OF_PODS = '^(listener\\.pod_[^.]+\\.downstream_cx_active|http\\.pod_[^.]+_hbone\\.downstream_rq_active)$';

type Counts = ReadonlyMap<string, number>;

export class ConnectionCounts {
  #running: Promise<Counts> | undefined;
  #next: Promise<Counts> | undefined;

  constructor(readonly admin: Pick<EnvoyAdmin, 'stats'>) {}

  /** Connections from the pod's programs that Envoy holds now, and tunnels that end at the pod, those of a listener that drains included. */
  async of(uid: string): Promise<number> {
    const names = [`listener.${podStatPrefix(uid)}.downstream_cx_active`, `listener.${inboundStatPrefix(uid)}.downstream_cx_active`, `http.${podTunnelStatPrefix(uid)}.downstream_rq_active`];
    const counts = await this.#counts();
    return names.reduce((sum, name) => sum + (counts.get(name) ?? 0), 0);
  }

  /** Of an answer that was asked for after this call: an earlier one may not know what the caller has done. */
  #counts(): Promise<Counts> {
    if (!this.#running) return this.#ask();
    this.#next ??= this.#running.then(() => this.#ask(), () => this.#ask());
    return this.#next;
  }

  #ask(): Promise<Counts> {
    this.#next = undefined;
    const asked: Promise<Counts> = this.admin.stats(OF_PODS).finally(() => {
      if (this.#running === asked) this.#running = undefined;
    });
    this.#running = asked;
    return asked;
  }
}
