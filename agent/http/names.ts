/** What the two halves of the HTTP fast path, Envoy's configuration and the kernel's tables, call the same things; docs/http-fast-path.md. */

import type { TaughtView } from './taught-tables.js';

/** SO_MARK of the sockets that Envoy opens for taught clusters: of others the kernel learns nothing. */
export const TAUGHT_MARK = 0x756e_6474;
export const CLASS_HEADER = 'x-underpass-class';
export const LESSON_HEADER = 'x-underpass-lesson';
/** Of answers to what was drawn for a cluster with outlier detection: how often Envoy has tried. The kernel overwrites its line with blanks. */
export const TRIED_HEADER = 'x-underpass-tried';
/** Filter state of connections with HTTP of a taught pod: its netns cookie in 16 hexadecimal digits, `-`, the client's port. */
export const CLIENT_STATE = 'underpass.client';
/** Filter state beside it: Envoy's own number of the connection, which is never used again. */
export const CONNECTION_STATE = 'underpass.connection';
/** Of endpoints and routes, in Envoy. */
export const TEACH_METADATA = 'underpass';

/**
 * The class that a route has in its client's table, 16 hexadecimal digits; undefined for routes that are not taught.
 * @param routeConfigName as the control plane calls it
 * @param routeIndex in the virtual host, as the control plane has it
 */
export type ClassOf = (routeConfigName: string, virtualHostName: string, routeIndex: number) => string | undefined;

/** By which Envoy is told what was drawn: names of headers in small letters, of which nothing leaves it. */
export interface DrawHeaders {
  /** A number that chooses among weighted clusters, see `weightDraw`; `sampledName` where the request is to be traced. */
  weight: string;
  /**
   * An endpoint, see `endpointDraw`. A request that has it goes by connections of its client's own, which outlive the client
   * unless somebody ends them.
   */
  endpoint: string;
  /** The same for an endpoint of which nothing is to be learnt: by connections that all of the pod's clients share. See `sharedName`. */
  other?: string;
}

export interface Teaching {
  readonly headers: DrawHeaders;
  /** Before it is asked for classes: what they are made from. */
  compile?(view: TaughtView): void;
  /** Changes with any class of the table of this config class. */
  versionOf(classKey: string): string;
  /** Whether the kernel draws which of a class's requests are traced. */
  isTraced?(classKey: string): boolean;
  /** @param classKey config class of the client's pod */
  of(classKey: string): ClassOf | undefined;
}

/** Value of the weight header that leads to the destination whose weights begin behind `before` of the route's sum. */
export function weightDraw(before: number): string {
  return `${before}`;
}

/** Name of the weight header in requests that the kernel has drawn to be traced: it writes another letter (HTTP_SAMPLED_AT in bpf/http-structs.h). */
export function sampledName({ weight }: Pick<DrawHeaders, 'weight'>): string {
  return `${weight.slice(0, 2)}s${weight.slice(3)}`;
}

/** Name of the endpoint header for connections that clients share: the kernel writes another letter where there are too many of single clients (HTTP_SHARED_AT). */
export function sharedName({ endpoint }: Pick<DrawHeaders, 'endpoint'>): string {
  return `${endpoint.slice(0, 2)}o${endpoint.slice(3)}`;
}

/**
 * Value of the endpoint header.
 * @param listener the internal listener that the endpoint's pod is reached by, where its inbound chains are passed
 */
export function endpointDraw(address: string, port: number, listener?: string): string {
  const endpoint = `${address.includes(':') ? `[${address}]` : address}:${port}`;
  return listener === undefined ? endpoint : `envoy_internal://${listener}/${endpoint}`;
}
