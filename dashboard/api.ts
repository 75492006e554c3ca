/** Asks the server of `underpass dashboard`, with the token of the address that was opened. */

export class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

export async function ask<T>(token: string, path: string, signal?: AbortSignal): Promise<T> {
  return JSON.parse(await askText(token, path, signal)) as T;
}

/** @throws ApiError with the server's own words */
export async function askText(token: string, path: string, signal?: AbortSignal): Promise<string> {
  const response = await fetch(path, { headers: { authorization: `Bearer ${token}` }, ...(signal ? { signal } : {}) }).catch((error: unknown) => {
    if (signal?.aborted) throw error;
    throw new ApiError(0, '`underpass dashboard` does not answer: it has ended, or is not reached');
  });
  const text = await response.text();
  if (response.ok) return text;
  let message = text.slice(0, 300);
  try {
    message = (JSON.parse(text) as { message?: string }).message ?? message;
  } catch {
    // As it is.
  }
  throw new ApiError(response.status, message);
}
