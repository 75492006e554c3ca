/** The auditors of an agent: what they compare, and which objects a drift is of. */
import { readFileSync } from 'node:fs';
import type { PodRecord } from '../../common/lab-api.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { PolicyEnforcer } from '../dataplane/policy-enforcer.js';
import type { AgentKernel, AgentProxy } from '../parts.js';
import { Auditor, ownCpuMs, type AuditorOptions, type ConsistencyStatus } from './auditor.js';
import type { Check, Drift } from './drift.js';
import type { KnownPods } from './known-pods.js';
import { objectStatuses, type ObjectStatus, type SourcedResource } from './object-status.js';

export interface AuditedAgent {
  kernel: Pick<AgentKernel, 'checks' | 'pods'> | undefined;
  proxy: Pick<AgentProxy, 'checks' | 'resources' | 'status'>;
  records(): readonly Pick<PodRecord, 'uid' | 'name' | 'namespace'>[];
  resolver: { servicesAt(address: string, port: number): string[] } | undefined;
  policies: Pick<PolicyEnforcer, 'policiesOf' | 'inForce'> | undefined;
  /** The dataplane's, and those of what else the agent puts on the node. */
  node: readonly Check[];
  known: KnownPods;
  logger: Logger;
}

/** By what is compared: `kernel`, `node`, `Envoy versions`, `Envoy clusters`, `Envoy configuration`. */
export type AgentConsistency = Record<string, ConsistencyStatus>;

/** Of one CPU each, Envoy's time too. What Envoy prints of its configuration is dear; by its versions what has changed is found in time. Rules are read by other programs, whose time counts as well. */
const SHARES: Readonly<Record<string, Pick<AuditorOptions, 'share' | 'roundMs' | 'cpuMs'>>> = { kernel: { share: 0.006 }, node: { share: 0.05, cpuMs: () => ownCpuMs() + childrenCpuMs() }, 'Envoy versions': { share: 0.09, roundMs: 8_000 }, 'Envoy clusters': { share: 0.003 }, 'Envoy configuration': { share: 0.01 } };

/** Each at its own pace: the kernel's maps are read in milliseconds, a large Envoy's configuration takes minutes. */
export class AgentAuditors implements Closable {
  readonly #auditors = new Map<string, Auditor>();
  readonly #agent: AuditedAgent;

  constructor(agent: AuditedAgent) {
    const { kernel, proxy, records, resolver, policies, logger, node, known } = (this.#agent = agent);
    const objectsOf = (drift: Drift): string[] => {
      const pod = records().find(({ uid }) => uid === drift.pod);
      const name = pod ? `${pod.name}.${pod.namespace}` : known.nameOf(drift);
      return [
        ...(drift.objects ?? []),
        ...(name === undefined ? [] : [`Pod/${name}`]),
        ...(drift.kind === 'service' ? servicesOf(drift.name, resolver) : []),
        ...(drift.kind === 'policy' && drift.pod !== undefined ? (policies?.policiesOf(drift.pod) ?? []).map(policyObject) : []),
      ];
    };
    const names: Check = { name: 'names', parts: () => (known.remember(records(), kernel?.pods() ?? []), []) };
    const lanes = new Map<string, readonly Check[]>([['kernel', kernel?.checks?.() ?? []], ['node', [...node, names]], ...(proxy.checks?.() ?? []).map((check) => [check.name, [check]] as const)]);
    for (const [name, checks] of lanes) if (checks.length > 0) this.#auditors.set(name, new Auditor({ checks, objectsOf, logger, ...SHARES[name], ...(name.startsWith('Envoy') ? { cpuMs: () => ownCpuMs() + cpuMsOf(proxy.status().envoy.pid) } : {}) }));
  }

  start(): this {
    for (const auditor of this.#auditors.values()) auditor.start();
    return this;
  }

  get status(): AgentConsistency {
    return Object.fromEntries([...this.#auditors].map(([name, { status }]) => [name, status]));
  }

  /** Of each configuration object, or one, what of it this node has. */
  objects(only?: string): ObjectStatus[] {
    const { proxy, policies } = this.#agent;
    const { classes, controlPlane } = proxy.status();
    const drifting = new Set([...this.#auditors.values()].flatMap(({ status }) => status.drifting.flatMap(({ objects }) => objects)));
    const inKernel = (policies?.inForce() ?? []).map(({ pod, policies: names, version, isWritten }): SourcedResource => ({ type: 'policy', name: pod, version, acked: isWritten, readBack: isWritten, objects: names.map(policyObject) }));
    const since = classes.map((each) => each.since).filter((each) => each !== undefined).sort().at(-1);
    return objectStatuses([...(proxy.resources?.() ?? []), ...inKernel], { drifting, ...(only === undefined ? {} : { only }), ...(controlPlane.connected ? {} : { stale: since === undefined ? {} : { since } }) });
  }

  async close(): Promise<void> {
    await Promise.all([...this.#auditors.values()].map((auditor) => auditor.close()));
  }
}

/** 100 ticks a second, whatever the kernel's own are: proc_pid_stat(5) */
const TICK_MS = 10;
function cpuMsOf(pid: number | undefined): number {
  return pid === undefined ? 0 : ticksOf(pid, 11) * TICK_MS;
}

/** Of those that have ended. */
function childrenCpuMs(): number {
  return ticksOf('self', 13) * TICK_MS;
}

/** @param at which field, of those behind the name, and the one after it */
function ticksOf(pid: number | 'self', at: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
    return Number(fields[at]) + Number(fields[at + 1]);
  } catch {
    // It has just ended.
    return 0;
  }
}

/** @param place `10.96.0.7:80` or `[fd00::1]:80` */
function servicesOf(place: string, resolver: AuditedAgent['resolver']): string[] {
  const [, address = '', port] = /^\[?(.*?)\]?:(\d+)$/.exec(place) ?? [];
  return (resolver?.servicesAt(address, Number(port)) ?? []).map((name) => {
    const [namespace = '', hostname = ''] = name.split('/');
    const [service] = hostname.split('.', 1);
    return hostname.startsWith(`${service}.${namespace}.svc.`) ? `Service/${service}.${namespace}` : `ServiceEntry/${hostname}.${namespace}`;
  });
}

/** What istiod's WDS calls policies: an AuthorizationPolicy by its name, what it makes of a PeerAuthentication by a name of its own. */
const CONVERTED = 'converted_peer_authentication_';
export function policyObject(name: string): string {
  const at = name.indexOf('/');
  const [namespace, own] = [name.slice(0, at), name.slice(at + 1)];
  if (own === 'istio_converted_static_strict') return `PeerAuthentication/*.${namespace}`;
  return own.startsWith(CONVERTED) ? `PeerAuthentication/${own.slice(CONVERTED.length)}.${namespace}` : `AuthorizationPolicy/${own}.${namespace}`;
}
