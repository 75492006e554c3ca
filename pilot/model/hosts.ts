/** Host names as Istio resolves them: a name without a dot is a service in the object's own namespace. */

export function serviceHost(name: string, namespace: string, clusterDomain: string): string {
  return `${name}.${namespace}.svc.${clusterDomain}`;
}

/** Of `name.namespace.svc.<clusterDomain>`. */
export function namespaceOfHost(host: string, clusterDomain: string): string | undefined {
  if (!host.endsWith(`.svc.${clusterDomain}`)) return undefined;
  const withNamespace = host.slice(0, -`.svc.${clusterDomain}`.length);
  const dot = withNamespace.indexOf('.');
  return dot > 0 ? withNamespace.slice(dot + 1) : undefined;
}

/** The full name of a host written in an object of `namespace`. */
export function resolveHost(host: string, namespace: string, clusterDomain: string): string {
  if (host === '*' || host.includes('.') || host.includes(':')) return host.endsWith('.') ? host.slice(0, -1) : host;
  return serviceHost(host, namespace, clusterDomain);
}

/** Whether `pattern`, which may begin with `*`, covers `host`. */
export function hostMatches(pattern: string, host: string): boolean {
  if (pattern === host || pattern === '*') return true;
  return pattern.startsWith('*') && host.endsWith(pattern.slice(1)) && host.length > pattern.length - 1;
}

/** Of two patterns that cover the same host, the more specific first: no wildcard, then the longer. */
export function bySpecificity(a: string, b: string): number {
  const wildA = a.startsWith('*') ? 1 : 0;
  const wildB = b.startsWith('*') ? 1 : 0;
  return wildA - wildB || b.length - a.length || (a < b ? -1 : 1);
}

const NONE: readonly (readonly never[])[] = [];

/** Things by host pattern; finding those of a host costs no more than the number of wildcards. */
export class HostIndex<T> {
  readonly #exact = new Map<string, T[]>();
  readonly #wildcards = new Map<string, T[]>();

  add(pattern: string, item: T): void {
    const map = pattern.startsWith('*') ? this.#wildcards : this.#exact;
    const items = map.get(pattern);
    if (items) items.push(item);
    else map.set(pattern, [item]);
  }

  patterns(): string[] {
    return [...this.#exact.keys(), ...this.#wildcards.keys()];
  }

  clear(): void {
    this.#exact.clear();
    this.#wildcards.clear();
  }

  /** One list a pattern, the most specific pattern first; in each the order of adding. */
  matching(host: string): readonly (readonly T[])[] {
    const exact = this.#exact.get(host);
    if (this.#wildcards.size === 0) return exact ? [exact] : NONE;
    const wild = [...this.#wildcards.entries()].filter(([pattern]) => hostMatches(pattern, host)).sort(([a], [b]) => bySpecificity(a, b));
    return [...(exact ? [exact] : []), ...wild.map(([, items]) => items)];
  }
}
