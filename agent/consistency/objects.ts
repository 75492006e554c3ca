/** Which configuration objects an xDS resource comes from: control planes write their paths into metadata, and policies' names into rules. */

const MOST = 20;
/** As Istio writes it: `filter_metadata.istio.config`. */
const BEGIN = '/apis/';
const PATH = /^\/apis\/[a-z0-9.-]+\/v[a-z0-9]+\/namespaces\/([a-z0-9.-]+)\/([a-z-]+)\/([a-z0-9.-]+)$/;
/** Names of RBAC rules. */
const POLICY = /ns\[([a-z0-9.-]+)\]-policy\[([a-z0-9.-]+)\]/g;
/** Names of clusters, which routes and listeners have in them. */
const SERVICE = /(?:outbound|inbound)\|\d+\|[^|]*\|([a-z0-9-]+)\.([a-z0-9-]+)\.svc\b/g;

/**
 * Of an encoded message, without decoding it: its strings stand behind their lengths.
 * @returns `Kind/name.namespace`, sorted; at most 20
 */
export function objectsIn(resource: Uint8Array): string[] {
  const text = Buffer.from(resource.buffer, resource.byteOffset, resource.byteLength).toString('latin1');
  const found = new Set<string>();
  const add = (object: string): boolean => found.size < MOST && !!found.add(object);
  for (let at = text.indexOf(BEGIN); at > 0; at = text.indexOf(BEGIN, at + 1)) {
    const [, namespace, kind = '', name] = PATH.exec(text.slice(at, at + lengthBefore(text, at))) ?? [];
    if (name !== undefined && !add(`${kindOf(kind)}/${name}.${namespace}`)) break;
  }
  for (const [, namespace, name] of text.matchAll(POLICY)) if (!add(`AuthorizationPolicy/${name}.${namespace}`)) break;
  return [...found].sort();
}

/** Of the name of a cluster or of what belongs to one. */
export function serviceIn(name: string): string[] {
  return [...name.matchAll(SERVICE)].map(([, service, namespace]) => `Service/${service}.${namespace}`);
}

/** A varint of one byte or two. */
function lengthBefore(text: string, at: number): number {
  const [low, high] = [text.charCodeAt(at - 2), text.charCodeAt(at - 1)];
  return low >= 0x80 && high > 0 && high < 4 ? (low & 0x7f) | (high << 7) : high;
}

/** `virtual-service` → `VirtualService` */
function kindOf(path: string): string {
  const words = path.split('-').map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('');
  return words.replace(/^Http/, 'HTTP').replace(/^Tcp/, 'TCP').replace(/^Tls/, 'TLS').replace(/^Grpc/, 'GRPC');
}
