/** Probation as people ask for it: by pod, by connection, and counted. DESIGN section 5, rule 11. */
import { decodeAddress, encodeAddress } from './kernel-codec.js';
import type { KernelPod, ProbationEntry, Verdict } from './kernel.js';

/** A listener or client program, with the pod that it belongs to; without one: marked by hand, in any pod. */
export interface PodProbation extends Omit<ProbationEntry, 'netnsCookie'> {
  namespace?: string;
  pod?: string;
}

export interface PodName {
  namespace: string;
  name: string;
}

const VERDICTS: readonly Verdict[] = ['probation', 'event-driven', 'blocking', 'spliced'];
const KINDS = ['listener', 'client'] as const;

export function podProbation(entries: readonly ProbationEntry[], pods: readonly KernelPod[], nameOf: (uid: string) => PodName | undefined): PodProbation[] {
  const uids = new Map(pods.map(({ netnsCookie, uid }) => [netnsCookie, uid]));
  return entries.map(({ netnsCookie, ...entry }) => {
    const uid = uids.get(netnsCookie);
    const name = uid === undefined ? undefined : nameOf(uid);
    return { ...(name ? { namespace: name.namespace, pod: name.name } : {}), ...entry };
  });
}

/**
 * What probation has to say about connections that programs of `client` open to `server`, a local pod's own address, or a
 * loopback address in the client's own pod. `listener` is undefined when nothing has answered there yet; `clients` are the
 * programs of the client's pod that are known so far.
 */
export function probationOf(
  entries: readonly PodProbation[], client: PodName, server: PodName & { address: string; port: number },
): { listener: PodProbation | undefined; clients: PodProbation[] } {
  const address = listenerAddress(server.address);
  const of = (entry: PodProbation, { namespace, name }: PodName): boolean => entry.namespace === namespace && entry.pod === name;
  return {
    listener: entries.find((entry) => entry.kind === 'listener' && of(entry, server) && entry.address === address && entry.port === server.port),
    clients: entries.filter((entry) => entry.kind === 'client' && of(entry, client)),
  };
}

/** As name_listener() in bpf/helpers.h: all loopback addresses are one. */
export function listenerAddress(address: string): string {
  const plain = decodeAddress(encodeAddress(address));
  return /^127\.|^::1$/.test(plain) ? '127.0.0.1' : plain;
}

/** How many programs there are of each kind and verdict, zeros too. */
export function countProbation(entries: readonly Pick<PodProbation, 'kind' | 'verdict'>[]): { kind: string; verdict: Verdict; count: number }[] {
  return KINDS.flatMap((kind) => VERDICTS.map((verdict) => ({ kind, verdict, count: entries.filter((entry) => entry.kind === kind && entry.verdict === verdict).length })));
}
