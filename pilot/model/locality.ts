/** Where workloads say that they are. */
import type { Locality } from './types.js';

/** The newer label first, as Istio reads them. */
const LOCALITY_LABELS = ['topology.istio.io/locality', 'istio-locality'] as const;

export const NO_LOCALITY: Locality = { region: '', zone: '', subzone: '' };

/** @param written `region/zone/subzone`, the last parts may be missing */
export function parseLocality(written: string): Locality {
  const [region = '', zone = '', subzone = ''] = written.split('/');
  return { region, zone, subzone };
}

/** `region/zone/subzone` of a workload's own label; slashes are no part of labels on Kubernetes, so dots stand for them. */
export function labelledLocality(labels: Readonly<Record<string, string>> | undefined): string | undefined {
  const [label] = LOCALITY_LABELS.flatMap((name) => labels?.[name] ?? []);
  return label?.includes('/') ? label : label?.replaceAll('.', '/');
}
