/** What a pod's labels ask of this node, as a pure function: no clock, no kernel, no I/O. */
import type { PodRecord } from './source.js';

export const MODE_LABEL = 'underpass.io/mode';
export const ACCELERATION_LABEL = 'underpass.io/acceleration';
export const REDIRECTION_LABEL = 'underpass.io/redirection';
export const L7_LABEL = 'underpass.io/l7';
export const SPLICE_LABEL = 'underpass.io/splice';
export const REQUEST_ID_LABEL = 'underpass.io/request-id';
/** Istio's own: `ambient` of a namespace or a pod, `none` of a pod. */
export const DATAPLANE_MODE_LABEL = 'istio.io/dataplane-mode';

/** Of the pods of a Gateway, waypoints among them. */
const GATEWAY_NAME_LABEL = 'gateway.networking.k8s.io/gateway-name';

export type Mode = 'node' | 'sidecar' | 'off';
export type Acceleration = 'off' | 'l4' | 'l7' | 'force';
export type Redirection = 'auto' | 'bpf' | 'iptables';

export interface EnrolmentDefaults {
  acceleration: Acceleration;
  redirection: Redirection;
  /** Istio's label of ambient mode enrols too. */
  ambientLabel?: boolean;
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
  /** Labels that ask for different things, and which of them counts; shown in the status. */
  conflict?: string;
  unknown: UnknownLabel[];
}

type Labels = Readonly<Record<string, string>>;

const DATAPLANE_MODES = { ambient: 'node', none: 'off' } as const satisfies Record<string, Mode>;
const MODES = { node: 'node', sidecar: 'sidecar', off: 'off' } as const satisfies Record<string, Mode>;
const ACCELERATIONS = { off: 'off', l4: 'l4', l7: 'l7', force: 'force' } as const satisfies Record<string, Acceleration>;
const L7 = { auto: 'auto', always: 'always' } as const;
const YES_OR_NO = { true: 'true', false: 'false' } as const;
const REDIRECTIONS = { auto: 'auto', bpf: 'bpf', iptables: 'iptables' } as const satisfies Record<string, Redirection>;

/** Labels of a pod beat its namespace's; an unknown value counts as `off` (mode) or as the default (others). */
export function enrolmentOf(pod: PodRecord, defaults: EnrolmentDefaults): Enrolment {
  const enrolment = asked(pod, defaults);
  if (enrolment.mode !== 'off') {
    const reason = leftAlone(pod, enrolment.mode);
    if (reason !== undefined) return { ...enrolment, mode: 'off', reason };
  }
  return enrolment;
}

/** Of one object's own labels: those whose value nobody knows. */
export function unknownLabels(labels: Labels, on: UnknownLabel['on'], { ambientLabel }: Pick<EnrolmentDefaults, 'ambientLabel'>): UnknownLabel[] {
  const [own, none] = [{ ...labels }, {}];
  return asked(on === 'pod' ? { labels: own, namespaceLabels: none } : { labels: none, namespaceLabels: own }, { acceleration: 'l4', redirection: 'auto', ...(ambientLabel ? { ambientLabel } : {}) }).unknown;
}

type Labelled = Pick<PodRecord, 'labels' | 'namespaceLabels'>;

function asked(pod: Labelled, defaults: EnrolmentDefaults): Enrolment {
  const unknown: UnknownLabel[] = [];
  const read = <T extends string>(label: string, values: Readonly<Record<string, T>>, otherwise: T): T => {
    const onPod = pod.labels[label];
    const value = onPod ?? pod.namespaceLabels[label];
    if (value === undefined) return otherwise;
    const known = valueOf(values, value);
    if (known !== undefined) return known;
    unknown.push({ label, value, on: onPod === undefined ? 'namespace' : 'pod', expected: Object.keys(values), usedInstead: otherwise });
    return otherwise;
  };
  const { mode, conflict } = modeOf(pod, defaults.ambientLabel === true, unknown);
  const splice = read<'true' | 'false' | 'found out'>(SPLICE_LABEL, YES_OR_NO, 'found out');
  const l7 = read<'auto' | 'always'>(L7_LABEL, L7, 'always');
  return {
    mode,
    acceleration: read<Acceleration>(ACCELERATION_LABEL, ACCELERATIONS, defaults.acceleration),
    redirection: read<Redirection>(REDIRECTION_LABEL, REDIRECTIONS, defaults.redirection),
    ...(splice === 'found out' ? {} : { splices: splice === 'true' }),
    ...(l7 === 'auto' ? { l7Auto: true } : {}),
    ...(read<'true' | 'false'>(REQUEST_ID_LABEL, YES_OR_NO, 'false') === 'true' ? { requestIds: true } : {}),
    ...(conflict === undefined ? {} : { conflict }),
    unknown,
  };
}

/** Whether a namespace's labels alone enrol its pods. */
export function enrolsNamespace(labels: Labels, { ambientLabel }: Pick<EnrolmentDefaults, 'ambientLabel'>): boolean {
  return (labels[MODE_LABEL] ?? (ambientLabel && labels[DATAPLANE_MODE_LABEL] === 'ambient' ? 'node' : undefined)) === 'node';
}

/**
 * A pod's labels beat its namespace's, also where Istio's counts; of both on one object `underpass.io/mode` counts. A value that
 * Istio does not know is for Istio as if there was no label.
 */
function modeOf({ labels, namespaceLabels }: Labelled, ambientLabel: boolean, unknown: UnknownLabel[]): { mode: Mode; conflict?: string } {
  for (const [on, own] of [['pod', labels], ['namespace', namespaceLabels]] as const) {
    const said = own[MODE_LABEL];
    const istios = ambientLabel ? own[DATAPLANE_MODE_LABEL] : undefined;
    const ambient = istios === undefined ? undefined : valueOf(DATAPLANE_MODES, istios);
    if (istios !== undefined && !ambient) unknown.push({ label: DATAPLANE_MODE_LABEL, value: istios, on, expected: Object.keys(DATAPLANE_MODES), usedInstead: 'no such label' });
    if (said !== undefined) {
      const mode = valueOf(MODES, said);
      if (!mode) unknown.push({ label: MODE_LABEL, value: said, on, expected: Object.keys(MODES), usedInstead: 'off' });
      const isConflict = ambient && ambient !== (mode ?? 'off');
      return { mode: mode ?? 'off', ...(isConflict ? { conflict: `the ${on} has ${MODE_LABEL}=${said}, which counts, and ${DATAPLANE_MODE_LABEL}=${istios}` } : {}) };
    }
    if (ambient) return { mode: ambient };
  }
  return { mode: 'off' };
}

function valueOf<T>(values: Readonly<Record<string, T>>, value: string): T | undefined {
  return Object.hasOwn(values, value) ? values[value] : undefined;
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
