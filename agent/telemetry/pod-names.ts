/** This node's pods by what the kernel and Envoy call them. */
import type { PodRecord } from '../../common/lab-api.js';
import type { KernelPod } from '../dataplane/kernel.js';
import type { NamedPod } from './flow-log.js';
import type { FlowNames } from './flow-record.js';

/** Both lists are copies of what there is: asked for each record they would cost more than the record. */
const STALE_MS = 1_000;

export interface PodNamesOptions {
  records: () => readonly PodRecord[];
  /** Undefined without BPF, where all are redirected. */
  kernel: () => readonly KernelPod[] | undefined;
  /** Milliseconds. */
  now?: () => number;
}

interface Index {
  at: number;
  byNetns: Map<bigint, NamedPod>;
  byAddress: Map<string, NamedPod>;
  redirected: ReadonlySet<string> | undefined;
}

export class PodNames implements FlowNames {
  readonly #options: PodNamesOptions;
  #index: Index | undefined;

  constructor(options: PodNamesOptions) {
    this.#options = options;
  }

  ofNetns(cookie: bigint): NamedPod | undefined {
    return cookie === 0n ? undefined : this.#fresh((index) => index.byNetns.has(cookie)).byNetns.get(cookie);
  }

  ofAddress(address: string): NamedPod | undefined {
    return this.#fresh(() => true).byAddress.get(address);
  }

  /** Pods whose sockets the kernel knows. */
  enrolled(): (NamedPod & { addresses: readonly string[] })[] {
    const names = this.#fresh(() => false).byNetns;
    return (this.#options.kernel() ?? []).flatMap(({ netnsCookie, addresses }) => {
      const known = names.get(netnsCookie);
      return known ? { ...known, addresses } : [];
    });
  }

  isRedirected(pod: string): boolean {
    return this.#fresh(() => true).redirected?.has(pod) ?? true;
  }

  #fresh(isEnough: (index: Index) => boolean): Index {
    const now = (this.#options.now ?? (() => performance.now()))();
    const known = this.#index;
    if (known && now - known.at < (isEnough(known) ? STALE_MS : STALE_MS / 10)) return known;
    const records = new Map(this.#options.records().map((record) => [record.uid, record]));
    const pods = this.#options.kernel();
    const byNetns = new Map<bigint, NamedPod>(), byAddress = new Map<string, NamedPod>(), redirected = new Set<string>();
    for (const { uid, netnsCookie, redirected: isRedirected } of pods ?? []) {
      const record = records.get(uid);
      if (!record) continue;
      byNetns.set(netnsCookie, { netnsCookie, name: record.name, namespace: record.namespace });
      if (isRedirected) redirected.add(`${record.namespace}/${record.name}`);
    }
    const cookies = new Map((pods ?? []).map(({ uid, netnsCookie }) => [uid, netnsCookie]));
    for (const { uid, name, namespace, ips } of records.values()) for (const address of ips) byAddress.set(address, { netnsCookie: cookies.get(uid) ?? 0n, name, namespace });
    return (this.#index = { at: now, byNetns, byAddress, redirected: pods && redirected });
  }
}
