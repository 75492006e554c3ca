/** Which families of addresses a pod or a node has: both, unless an annotation says otherwise. */
import { UnderpassError } from '../common/errors.js';

export type Family = 'IPv4' | 'IPv6';
export const BOTH_FAMILIES: readonly Family[] = ['IPv4', 'IPv6'];

/** Of a Pod or a Node: `IPv4`, `IPv6`, or both with a comma between. */
export const FAMILIES_ANNOTATION = 'lab.underpass.io/ip-families';

/** @throws UnderpassError when the annotation says something else */
export function familiesOf(annotations: Readonly<Record<string, string>>): readonly Family[] {
  const written = annotations[FAMILIES_ANNOTATION];
  if (written === undefined) return BOTH_FAMILIES;
  const words = written.split(',').map((word) => word.trim());
  const families = BOTH_FAMILIES.filter((family) => words.includes(family));
  if (families.length === 0 || families.length !== words.length) {
    throw new UnderpassError('UNDERPASS_LAB_ADDRESSES', `annotation ${FAMILIES_ANNOTATION}: found ${JSON.stringify(written)}, expected IPv4, IPv6 or IPv4,IPv6`);
  }
  return families;
}
