/** AdmissionReview v1 of Kubernetes: what the API server asks of a webhook and what it takes as an answer. */
import type { PatchOperation } from '../../common/injection/json-patch.js';

export const ADMISSION_API_VERSION = 'admission.k8s.io/v1';

export interface AdmissionRequest {
  uid: string;
  kind: { group: string; version: string; kind: string };
  namespace?: string;
  name?: string;
  operation: 'CREATE' | 'UPDATE' | 'DELETE' | 'CONNECT';
  object?: unknown;
  oldObject?: unknown;
  dryRun?: boolean;
}

/** What a handler decides; `warnings` are shown to whoever made the request. */
export type Decision = { allowed: true; patch?: readonly PatchOperation[]; warnings?: readonly string[] } | { allowed: false; code: number; reason: string; message: string; warnings?: readonly string[] };

/** A request that is none: answered with this status, since without a uid there is nothing to review. */
export class BadRequest extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** Kubernetes' API server cuts longer ones, and refuses control characters (KEP 1693). */
const MAX_WARNING_CHARACTERS = 256;

/** @throws BadRequest naming the field that is not as AdmissionReview v1 has it */
export function parseReview(text: string): AdmissionRequest {
  let review: unknown;
  try {
    review = JSON.parse(text);
  } catch (error) {
    throw new BadRequest(400, `reading the AdmissionReview: ${(error as Error).message}`);
  }
  const { apiVersion, kind, request } = (review ?? {}) as { apiVersion?: unknown; kind?: unknown; request?: unknown };
  if (kind !== 'AdmissionReview' || apiVersion !== ADMISSION_API_VERSION)
    throw new BadRequest(400, `reading the AdmissionReview: found ${JSON.stringify(apiVersion)} ${JSON.stringify(kind)}, expected ${ADMISSION_API_VERSION} AdmissionReview`);
  const { uid, kind: of, operation } = (request ?? {}) as Partial<AdmissionRequest>;
  if (typeof uid !== 'string' || uid === '') throw new BadRequest(400, 'reading the AdmissionReview: request.uid: expected a string');
  if (typeof of?.kind !== 'string') throw new BadRequest(400, 'reading the AdmissionReview: request.kind: expected group, version and kind');
  if (typeof operation !== 'string') throw new BadRequest(400, 'reading the AdmissionReview: request.operation: expected CREATE, UPDATE, DELETE or CONNECT');
  return request as AdmissionRequest;
}

export function reviewOf(request: AdmissionRequest, decision: Decision): unknown {
  const warnings = decision.warnings?.map((line) => line.replaceAll(/\s+/g, ' ').slice(0, MAX_WARNING_CHARACTERS));
  return {
    apiVersion: ADMISSION_API_VERSION,
    kind: 'AdmissionReview',
    response: {
      uid: request.uid,
      allowed: decision.allowed,
      ...(warnings?.length ? { warnings } : {}),
      ...(decision.allowed ? {} : { status: { status: 'Failure', code: decision.code, reason: decision.reason, message: decision.message } }),
      ...(decision.allowed && decision.patch?.length ? { patchType: 'JSONPatch', patch: Buffer.from(JSON.stringify(decision.patch)).toString('base64') } : {}),
    },
  };
}
