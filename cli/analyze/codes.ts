/** Codes of findings: Istio's where one means the same (https://istio.io/latest/docs/reference/config/analysis/), else this project's. */
import type { Concern } from '../../common/kube/schema.js';
import type { ValidationError } from '../../common/kube/yaml.js';

export const LEVELS = ['Error', 'Warning', 'Info'] as const;
export type Level = (typeof LEVELS)[number];

export interface Finding {
  level: Level;
  code: Code;
  /** The code's name. */
  name: string;
  /** `Kind name.namespace` */
  resource: string;
  namespace?: string;
  file?: string;
  line?: number;
  field: string;
  message: string;
}

/** Name, and when it is said here. docs/reference/analysis.md is made from this. */
export const CODES = {
  IST0101: ['ReferencedResourceNotFound', 'a host, port, subset, Gateway, delegate, Secret or extension provider that is named is not there'],
  IST0106: ['SchemaValidationError', 'a field, value or file that the control plane refuses'],
  IST0109: ['ConflictingMeshGatewayVirtualServiceHosts', 'two VirtualServices route one host for workloads: only the oldest counts'],
  IST0110: ['ConflictingSidecarWorkloadSelectors', 'two Sidecars of a namespace have the same selector'],
  IST0111: ['MultipleSidecarsWithoutWorkloadSelectors', 'two Sidecars are for all of a namespace'],
  IST0112: ['VirtualServiceDestinationPortSelectorRequired', 'a route names a service of several ports without a port'],
  IST0116: ['DeploymentAssociatedToMultipleServices', 'a pod\'s port is in two Services with different protocols'],
  IST0118: ['PortNameIsNotUnderNamingConvention', 'a Service\'s port says its protocol neither by its name nor by appProtocol, so that it is guessed'],
  IST0127: ['NoMatchingWorkloadsFound', 'a selector that no pod fits'],
  IST0128: ['NoServerCertificateVerificationDestinationLevel', 'a DestinationRule asks for TLS without saying whom to trust'],
  IST0129: ['NoServerCertificateVerificationPortLevel', 'the same, of one port'],
  IST0130: ['VirtualServiceUnreachableRule', 'a rule behind one that takes everything'],
  IST0131: ['VirtualServiceIneffectiveMatch', 'a match that an earlier rule has already'],
  IST0132: ['VirtualServiceHostNotFoundInGateway', 'none of the Gateway\'s servers take the host'],
  IST0133: ['SchemaWarning', 'a field that is taken and has no effect, or not the one meant'],
  UP0001: ['UnknownLabelValue', 'a label underpass.io/… has a value that nobody knows: it counts as off, or as the default'],
  UP0002: ['ConflictingObjects', 'objects of one kind of which only one counts'],
} as const;
export type Code = keyof typeof CODES;

export const resourceName = ({ kind = 'File', name, namespace, file = '' }: { kind?: string | undefined; name?: string | undefined; namespace?: string | undefined; file?: string }): string => (name === undefined ? `${kind} ${file}` : `${kind} ${name}${namespace === undefined ? '' : `.${namespace}`}`);

/** @param found `alone`: in the object itself; `together`: with the others at hand */
export function findingOf({ severity, kind, name, namespace, file, line, field, message, about }: ValidationError, found: 'alone' | 'together'): Finding {
  const code = found === 'alone' ? (severity === 'error' ? 'IST0106' : 'IST0133') : codeOf(kind, about);
  // What is referred to and not there is an error for who wrote it, as istioctl has it, though the control plane takes it.
  const level: Level = severity === 'error' || code === 'IST0101' || code === 'IST0109' || code === 'IST0110' || code === 'IST0111' ? 'Error' : 'Warning';
  return { level, code, name: CODES[code][0], resource: resourceName({ kind, name, namespace, file }), ...(namespace === undefined ? {} : { namespace }), file, line, field, message };
}

const BY_CONCERN: Readonly<Record<Concern, Code>> = { missing: 'IST0101', 'no-workload': 'IST0127', several: 'UP0002', second: 'UP0002', 'routed-already': 'IST0109', 'not-taken': 'IST0132' };

function codeOf(kind: string | undefined, about: Concern | undefined): Code {
  if (about === undefined) return 'IST0133';
  // Istio has a code for Sidecars alone.
  return about === 'second' && kind === 'Sidecar' ? 'IST0111' : BY_CONCERN[about];
}
