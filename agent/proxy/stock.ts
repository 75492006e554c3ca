/**
 * Makes Istio's resources fit an Envoy without Istio's own filters. What only reports (metrics, peer metadata) or chooses
 * an ALPN for mTLS is left out when this Envoy lacks it; an unknown filter that may carry policy is an error instead,
 * since leaving it out would open what it closes.
 */
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { configType, type EnvoyExtensions } from './extensions.js';

/** Istio's filters whose absence changes no decision about a request. */
const DISPENSABLE: ReadonlySet<string> = new Set([
  'stats.PluginConfig',
  'io.istio.http.peer_metadata.Config',
  'envoy.tcp.metadataexchange.config.MetadataExchange',
  'istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig',
]);

/** Filter state factories of Istio's build, and the stock ones that do the same. */
const FACTORIES: Readonly<Record<string, string>> = { 'istio.hashable_string': 'envoy.hashable_string' };

/** A resource needs something of Envoy that the running one lacks. */
export class FoldError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'FoldError';
  }
}

/**
 * Whether to keep an extension.
 * @throws FoldError when Envoy lacks it and it can't be left out
 */
export function keepExtension(extensions: EnvoyExtensions, field: string, name: string, config: Any | undefined): boolean {
  if (!config) return true;
  if (extensions.accepts(config)) return true;
  const type = configType(config);
  if (DISPENSABLE.has(type)) return false;
  throw new FoldError(`${field} "${name}": this Envoy has no extension for ${type}`);
}

/** The per-filter overrides of a route whose filters this Envoy has. */
export function keepOverrides(extensions: EnvoyExtensions, overrides: Readonly<Record<string, Any>>): Record<string, Any> {
  return Object.fromEntries(Object.entries(overrides).filter(([name, config]) => keepExtension(extensions, 'typed_per_filter_config', name, config)));
}

export function stockFactory(extensions: EnvoyExtensions, key: string): string {
  return extensions.hasName(key) ? key : (FACTORIES[key] ?? key);
}
