/** Host names as Istio resolves them: a name without a dot is a service in the object's own namespace. */

export function serviceHost(name: string, namespace: string, clusterDomain: string): string {
  return `${name}.${namespace}.svc.${clusterDomain}`;
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
