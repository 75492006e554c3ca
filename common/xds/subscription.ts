/** Bounds of what a client may subscribe to by name, for whatever server of xDS. */
import { status } from '@grpc/grpc-js';

/** Beyond what any name of Envoy's or Istio's can be: a host of 253 characters, a subset, a port. */
const MAX_NAME_LENGTH = 1_024;

/** @param total how many names the subscription has with `names`. @returns the status to end the stream with; undefined: it is within bounds */
export function subscriptionProblem(names: readonly string[], total: number, max: number): { code: status; details: string } | undefined {
  const long = names.find((name) => name.length > MAX_NAME_LENGTH);
  if (long !== undefined) return { code: status.INVALID_ARGUMENT, details: `found the name of a resource with ${long.length} characters, expected at most ${MAX_NAME_LENGTH}` };
  if (total > max) return { code: status.RESOURCE_EXHAUSTED, details: `found a subscription to ${total} names of one type, expected at most ${max}` };
  return undefined;
}
