/** What a pod's labels ask for, and what kernel and proxy are told of it. */
import type { PodRecord } from '../../common/lab-api.js';
import type { Acceleration, Mode } from '../workloads/enrolment.js';
import { withoutAnnouncements } from './announcement.js';
import type { KernelPod, ListenerPod } from './collaborators.js';

export type Way = 'bpf' | 'iptables';

export interface PodTarget {
  record: PodRecord;
  mode: Mode;
  acceleration: Acceleration;
  /** What the splice label says, where there is one. */
  splices?: boolean;
  l7Auto?: boolean;
  /** How a pod in mode `node` or `sidecar` is captured; `iptables` in mode `sidecar` means its own rules. */
  way: Way;
  /** A kernel that refuses this pod leaves it to iptables, instead of being asked for ever. */
  mayFallBack: boolean;
  /** Why it is not what the labels ask for. */
  reason?: string;
}

export function sameTarget(a: PodTarget | 'gone', b: PodTarget | 'gone'): boolean {
  if (a === 'gone' || b === 'gone') return a === b;
  return (
    a.mode === b.mode && a.acceleration === b.acceleration && a.splices === b.splices && a.l7Auto === b.l7Auto && a.way === b.way && a.mayFallBack === b.mayFallBack && a.record.netns === b.record.netns &&
    a.record.cgroup === b.record.cgroup && a.record.serviceAccount === b.record.serviceAccount &&
    JSON.stringify([a.record.ips, withoutAnnouncements(a.record)]) === JSON.stringify([b.record.ips, withoutAnnouncements(b.record)])
  );
}

export function kernelIdentity({ record, splices, l7Auto }: PodTarget, netnsCookie: bigint): Pick<KernelPod, 'uid' | 'netnsCookie' | 'cgroupPath' | 'addresses' | 'splices' | 'l7Auto'> {
  return { uid: record.uid, netnsCookie, cgroupPath: record.cgroup, addresses: record.ips, ...(splices === undefined ? {} : { splices }), ...(l7Auto ? { l7Auto } : {}) };
}

export function listenerPod(record: PodRecord, netnsPath: string, iptables: boolean, redirected: boolean, hbonePortFree?: boolean, inboundPortFree?: boolean, taughtCookie?: bigint): ListenerPod {
  const { uid, name, namespace, labels, annotations, serviceAccount, ips } = record;
  return { uid, name, namespace, labels, annotations, serviceAccount, ips, netnsPath, iptables, redirected, ...(hbonePortFree === undefined ? {} : { hbonePortFree }), ...(inboundPortFree === undefined ? {} : { inboundPortFree }), ...(taughtCookie === undefined ? {} : { taught: { netnsCookie: taughtCookie } }) };
}

