/** Versions of resources that are a hash of their bytes: who has a resource in that version has the same, whoever it was sent to. */
import { createHash } from 'node:crypto';

const LENGTH = 16;

export function contentVersion(content: string | Uint8Array): string {
  return createHash('sha1').update(content).digest('base64url').slice(0, LENGTH);
}
