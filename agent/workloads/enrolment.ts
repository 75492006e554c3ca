/** What a pod's labels ask of this node, as a pure function: no clock, no kernel, no I/O. */
import type { PodRecord } from './source.js';

export const MODE_LABEL = 'underpass.io/mode';
export const ACCELERATION_LABEL = 'underpass.io/acceleration';
export const REDIRECTION_LABEL = 'underpass.io/redirection';
export const L7_LABEL = 'underpass.io/l7';
export const SPLICE_LABEL = 'underpass.io/splice';
export const REQUEST_ID_LABEL = 'underpass.io/request-id';

/** Of the pods of a Gateway, waypoints among them. */
const GATEWAY_NAME_LABEL = 'gateway.networking.k8s.io/gateway-name';

export type Mode = 'node' | 'sidecar' | 'off';
export type Acceleration = 'off' | 'l4' | 'l7' | 'force';
export type Redirection = 'auto' | 'bpf' | 'iptables';

export interface EnrolmentDefaults {
  acceleration: Acceleration;
  redirection: Redirection;
}

export interface UnknownLabel {
  label: string;
  value: string;
  /** Whose label it is. */
  on: 'pod' | 'namespace';
  expected: readonly string[];
  usedInstead: string;
}

export interface Enrolment {
  mode: Mode;
  acceleration: Acceleration;
  redirection: Redirection;
  /** Whether the pod's programs splice, where a label says so; nothing is short-circuited to or from one that does. */
  splices?: boolean;
  /** HTTP that asks for nothing at L7 is treated as TCP: it meets no proxy where both pods are of this node. */
  l7Auto?: boolean;
  /** Requests that the kernel repeats get an `x-request-id`, if they have none, as Envoy gives them one. */
  requestIds?: boolean;
  /** Why the pod is left alone although a label asks for more; shown in the status. */
  reason?: string;
  unknown: UnknownLabel[];
}

const MODES = { node: 'node', sidecar: 'sidecar', off: 'off' } as const satisfies Record<string, Mode>;
const ACCELERATIONS = { off: 'off', l4: 'l4', l7: 'l7', force: 'force' } as const satisfies Record<string, Acceleration>;
const L7 = { auto: 'auto', always: 'always' } as const;
const YES_OR_NO = { true: 'true', false: 'false' } as const;
const REDIRECTIONS = { auto: 'auto', bpf: 'bpf', iptables: 'iptables' } as const satisfies Record<string, Redirection>;

/** Labels of a pod beat its namespace's; an unknown value counts as `off` (mode) or as the default (others). */
export function enrolmentOf(pod: PodRecord, defaults: EnrolmentDefaults): Enrolment {
  const unknown: UnknownLabel[] = [];
  const read = <T extends string>(label: string, values: Readonly<Record<string, T>>, otherwise: T): T => {
    const onPod = pod.labels[label];
    const value = onPod ?? pod.namespaceLabels[label];
    if (value === undefined) return otherwise;
    const known = Object.hasOwn(values, value) ? values[value] : undefined;
    if (known !== undefined) return known;
    unknown.push({ label, value, on: onPod === undefined ? 'namespace' : 'pod', expected: Object.keys(values), usedInstead: otherwise });
    return otherwise;
  };
  const splice = read<'true' | 'false' | 'found out'>(SPLICE_LABEL, YES_OR_NO, 'found out');
  const l7 = read<'auto' | 'always'>(L7_LABEL, L7, 'always');
  const enrolment: Enrolment = {
    mode: read<Mode>(MODE_LABEL, MODES, 'off'),
    acceleration: read<Acceleration>(ACCELERATION_LABEL, ACCELERATIONS, defaults.acceleration),
    redirection: read<Redirection>(REDIRECTION_LABEL, REDIRECTIONS, defaults.redirection),
    ...(splice === 'found out' ? {} : { splices: splice === 'true' }),
    ...(l7 === 'auto' ? { l7Auto: true } : {}),
    ...(read<'true' | 'false'>(REQUEST_ID_LABEL, YES_OR_NO, 'false') === 'true' ? { requestIds: true } : {}),
    unknown,
  };
  if (enrolment.mode !== 'off') {
    const reason = leftAlone(pod, enrolment.mode);
    if (reason !== undefined) return { ...enrolment, mode: 'off', reason };
  }
  return enrolment;
}

function leftAlone(pod: PodRecord, mode: 'node' | 'sidecar'): string | undefined {
  if (pod.hostNetwork) return 'it uses the node\'s own network (hostNetwork)';
  if (pod.phase === 'Succeeded' || pod.phase === 'Failed') return `it has ended (${pod.phase})`;
  if (pod.phase !== 'Running') return `it does not run yet (${pod.phase})`;
  if (pod.ips.length === 0) return 'it has no address yet';
  if (pod.isGateway || pod.labels[GATEWAY_NAME_LABEL] !== undefined) return 'it is a gateway, which is a proxy itself';
  if (mode === 'node' && pod.hasSidecar) return 'it has a sidecar of its own: label it underpass.io/mode=sidecar, or start it without one';
  if (mode === 'sidecar' && !pod.hasSidecar) return 'it has no sidecar that could take its traffic';
  return undefined;
}
