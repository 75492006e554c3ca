/** One document over http(s), bounded in time, size and redirects. */
import { errorMessage, UnderpassError } from '../../common/errors.js';

const MAX_BYTES = 1 << 20;
const MAX_REDIRECTS = 5;
const DEFAULT_TIMEOUT_MS = 5_000;

export interface FetchLimits {
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** @throws UnderpassError `UNDERPASS_JWKS` naming the URI and what was wrong */
export async function fetchText(uri: string, { timeoutMs = DEFAULT_TIMEOUT_MS, signal }: FetchLimits = {}): Promise<string> {
  const timeout = AbortSignal.timeout(timeoutMs);
  try {
    return await follow(uri, signal ? AbortSignal.any([signal, timeout]) : timeout);
  } catch (error) {
    const cause = error instanceof Error && error.cause !== undefined ? errorMessage(error.cause) : '';
    const message = timeout.aborted ? `no answer within ${timeoutMs} ms` : `${errorMessage(error)}${cause ? ` (${cause})` : ''}`;
    throw new UnderpassError('UNDERPASS_JWKS', `fetching ${uri}: ${message}`, { cause: error });
  }
}

async function follow(uri: string, signal: AbortSignal): Promise<string> {
  let url = parse(uri);
  for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
    const response = await fetch(url, { redirect: 'manual', signal, headers: { accept: 'application/json' } });
    const location = response.headers.get('location');
    if (response.status >= 300 && response.status < 400 && location) {
      await response.body?.cancel();
      const next = parse(new URL(location, url).href);
      // What was asked for in confidence is not taken from anybody on the way.
      if (url.protocol === 'https:' && next.protocol !== 'https:') throw new Error(`found a redirect from https to ${next.protocol}//, expected https`);
      url = next;
      continue;
    }
    if (!response.ok) {
      await response.body?.cancel();
      throw new Error(`found status ${response.status}, expected 200`);
    }
    return await read(response);
  }
  throw new Error(`found more than ${MAX_REDIRECTS} redirects`);
}

function parse(uri: string): URL {
  const url = URL.canParse(uri) ? new URL(uri) : undefined;
  if (!url || (url.protocol !== 'http:' && url.protocol !== 'https:')) throw new Error('expected an http or https URL');
  return url;
}

async function read(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) {
    size += chunk.length;
    // Leaving the loop cancels the rest.
    if (size > MAX_BYTES) throw new Error(`found more than ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
