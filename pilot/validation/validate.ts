/**
 * The judgement of one object as it comes in over the API, for the validating webhook: `validateForAdmission(object,
 * admission)`. Problems with severity `error` refuse the object, the others are warnings for the user.
 */
import { checkObject } from '../../common/kube/schemas.js';
import type { Problem } from '../../common/kube/schema.js';
import { objectKey, type KubeObject } from '../../common/kube/types.js';
import { checkAlone } from './references.js';

/** Who knows the other objects; `Admission` does. */
export interface Company {
  /** What is wrong with an object that is not there yet, or there in another version. */
  review(key: string, object: KubeObject): Problem[];
}

/**
 * Everything that is wrong with an object. What it refers to may be applied a moment later, as `kubectl apply -f DIR` has
 * it: so problems with other objects only warn here, as in Istio; pilot itself holds such an object back.
 */
export function validateForAdmission(object: KubeObject, company?: Company): Problem[] {
  const copy = structuredClone(object);
  const problems = checkObject(copy);
  if (problems.some(({ severity }) => severity === 'error')) return problems;
  problems.push(...checkAlone(copy));
  if (company && !problems.some(({ severity }) => severity === 'error')) {
    problems.push(...company.review(objectKey(copy), copy).map((problem): Problem => ({ ...problem, severity: 'warning' })));
  }
  return problems;
}
