/** Principals of policies under all of the mesh's names: a trust domain that was renamed keeps its old policies in force. */
import type { MeshConfig } from '../../model/mesh.js';

/** In policies it stands for the mesh's own trust domain, whatever that is called. */
const LOCAL = 'cluster.local';

export function trustDomains({ trustDomain, trustDomainAliases }: MeshConfig): string[] {
  return [...new Set([trustDomain, ...trustDomainAliases])];
}

/** `trust-domain/ns/…/sa/…` of the mesh once for each of its trust domains; everything else as it is. */
export function withTrustDomains(principals: readonly string[], domains: readonly string[]): string[] {
  return principals.flatMap((written) => {
    const [domain, ...rest] = written.split('/');
    // `*/ns/…` is any trust domain's; what has not five parts names none.
    if (rest.length !== 4 || domain === undefined || domain === '*') return [written];
    const ours = domain === LOCAL || domains.some((name) => covers(domain, name));
    if (!ours) return [written];
    return [...new Set(domains.map((name) => (domain !== LOCAL && domain.startsWith('*') && covers(domain, name) ? written : [name, ...rest].join('/'))))];
  });
}

function covers(pattern: string, domain: string): boolean {
  return pattern === domain || (pattern.startsWith('*') && domain.endsWith(pattern.slice(1)));
}
