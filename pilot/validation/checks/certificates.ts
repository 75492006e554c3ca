/** Do the certificates and keys of a Secret belong together, and are they in time? Nothing of a Secret's content is ever said. */
import { createPrivateKey, X509Certificate, type KeyObject } from 'node:crypto';
import type { Path, Problem } from '../../../common/kube/schema.js';
import type { Secret } from '../../../common/kube/types.js';

/** The names under which gateways look for a certificate, its key, and the CAs of clients. */
const PAIRS = [
  ['tls.crt', 'tls.key'],
  ['cert', 'key'],
] as const;
const CA_KEYS = ['ca.crt', 'cacert'] as const;

export type SecretPart = 'certificate' | 'ca';

/** An entry's bytes; `stringData` wins, as it does when the API server stores it. */
export function secretValue({ data, stringData }: Secret, key: string): Buffer | undefined {
  const text = stringData?.[key];
  if (text !== undefined) return Buffer.from(text, 'utf8');
  const encoded = data?.[key];
  return encoded === undefined ? undefined : Buffer.from(encoded, 'base64');
}

export function hasPart(secret: Secret, part: SecretPart): boolean {
  const has = (key: string): boolean => (secretValue(secret, key)?.length ?? 0) > 0;
  return part === 'ca' ? CA_KEYS.some(has) : PAIRS.some(([certificate, key]) => has(certificate) && has(key));
}

const PEM_BLOCK = /-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g;

function parseChain(pem: Buffer): X509Certificate[] | undefined {
  const blocks = pem.toString('latin1').match(PEM_BLOCK);
  if (!blocks) return undefined;
  try {
    return blocks.map((block) => new X509Certificate(block));
  } catch {
    return undefined;
  }
}

function parseKey(pem: Buffer): KeyObject | undefined {
  try {
    return createPrivateKey(pem);
  } catch {
    return undefined;
  }
}

export interface PairProblem {
  part: 'certificate' | 'key';
  message: string;
}

/** Why a certificate and a key, both in PEM, can't be used together. */
export function pairProblems(certificate: Buffer, key: Buffer): PairProblem[] {
  const chain = parseChain(certificate);
  const parsed = parseKey(key);
  const problems: PairProblem[] = [];
  if (!chain) problems.push({ part: 'certificate', message: "found something that is no certificate, expected one or more in PEM, the server's own first" });
  if (!parsed) problems.push({ part: 'key', message: 'found something that is no private key, expected one in PEM without a passphrase' });
  if (chain && parsed && !chain[0]!.checkPrivateKey(parsed)) {
    problems.push({ part: 'key', message: `found a key that does not belong to the certificate, expected the key of ${chain[0]!.subject?.replaceAll('\n', ', ') || 'the first certificate'}` });
  }
  return problems;
}

const placeOf = ({ stringData }: Secret, key: string): Path => [stringData?.[key] === undefined ? 'data' : 'stringData', key];

function checkTime(certificates: readonly X509Certificate[], path: Path, nowMs: number, problems: Problem[]): void {
  certificates.forEach((certificate, index) => {
    const which = certificates.length > 1 ? `certificate ${index + 1} of ${certificates.length}` : 'the certificate';
    if (Date.parse(certificate.validTo) < nowMs) problems.push({ path, severity: 'warning', message: `${which} expired on ${certificate.validTo}` });
    else if (Date.parse(certificate.validFrom) > nowMs) problems.push({ path, severity: 'warning', message: `${which} is valid from ${certificate.validFrom} on` });
  });
}

/**
 * A pair that does not fit is an error, so that the last good one stays in force; one that is out of time a warning.
 * @param nowMs for what is out of time
 */
export function checkSecret(secret: Secret, nowMs = Date.now()): Problem[] {
  const problems: Problem[] = [];
  const wrong = (key: string, message: string): void => void problems.push({ path: placeOf(secret, key), severity: 'error', message });
  const isTls = secret.type === 'kubernetes.io/tls';
  for (const [certificateKey, keyKey] of PAIRS) {
    const [certificate, key] = [secretValue(secret, certificateKey), secretValue(secret, keyKey)];
    if (certificateKey === 'tls.crt' && isTls) {
      if (!certificate) wrong(certificateKey, 'found nothing, a Secret of type kubernetes.io/tls needs it');
      if (!key) wrong(keyKey, 'found nothing, a Secret of type kubernetes.io/tls needs it');
    }
    // A single entry of such a name may be anything.
    if (!certificate || !key) continue;
    for (const { part, message } of pairProblems(certificate, key)) wrong(part === 'key' ? keyKey : certificateKey, message.replace('to the certificate,', `to the certificate in ${certificateKey},`));
    const chain = parseChain(certificate);
    if (!chain) continue;
    checkTime(chain, placeOf(secret, certificateKey), nowMs, problems);
  }
  for (const caKey of CA_KEYS) {
    const bundle = secretValue(secret, caKey);
    // Some controllers leave the entry empty.
    if (!bundle?.length || !(isTls || hasPart(secret, 'certificate'))) continue;
    const authorities = parseChain(bundle);
    if (!authorities) wrong(caKey, 'found something that is no certificate, expected those of CAs in PEM');
    else checkTime(authorities, placeOf(secret, caKey), nowMs, problems);
  }
  return problems;
}
