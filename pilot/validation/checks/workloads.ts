/** Do policies, filters and ServiceEntries mean workloads that exist, and do ServiceEntries agree with each other? */
import type { Path, Problem } from '../../../common/kube/schema.js';
import { isHttpProtocol, isTlsProtocol } from '../../../common/kube/istio/syntax.js';
import type { KubeObject, ServiceEntry } from '../../../common/kube/types.js';
import { isExportedTo, parseExportTo } from '../../model/export-to.js';
import { fact, isNamespaceWide, namespaceOf, type View } from '../mesh-index.js';

type Selecting = KubeObject & { spec?: { selector?: { matchLabels?: Record<string, string> }; workloadSelector?: { labels?: Record<string, string>; matchLabels?: Record<string, string> } } };

/** Kinds whose selector means workloads of their own namespace, in the root namespace those of all. */
export const SELECTING: ReadonlySet<string> = new Set(['EnvoyFilter', 'WasmPlugin', 'Sidecar', 'PeerAuthentication', 'AuthorizationPolicy', 'RequestAuthentication', 'Telemetry', 'ServiceEntry']);

/** @param rootNamespace where policies are for workloads of all namespaces */
export function checkSelector(view: View, object: Selecting, rootNamespace: string): Problem[] {
  const { selector, workloadSelector } = object.spec ?? {};
  const wanted = selector?.matchLabels ?? workloadSelector?.labels ?? workloadSelector?.matchLabels ?? {};
  const namespace = namespaceOf(object);
  if (Object.keys(wanted).length === 0) return [];
  const everywhere = namespace === rootNamespace && object.kind !== 'Sidecar' && object.kind !== 'ServiceEntry';
  if (view.workloads(wanted, everywhere ? undefined : namespace).length > 0) return [];
  const path: Path = selector ? ['spec', 'selector'] : ['spec', 'workloadSelector'];
  const text = Object.entries(wanted).map(([key, value]) => `${key}=${value}`).join(', ');
  return [{ path, severity: 'warning', about: 'no-workload', atKey: true, message: `found ${text}, but no pod${everywhere ? '' : ` of namespace ${namespace}`} has these labels` }];
}

/** Of Sidecars and PeerAuthentications for a whole namespace one counts. */
export function checkOnlyOne(view: View, key: string, object: KubeObject): Problem[] {
  if (!isNamespaceWide(object)) return [];
  const namespace = namespaceOf(object);
  const [first] = view.of(fact.namespaceWide(object.kind, namespace));
  if (!first || first.key === key) return [];
  return [{ path: ['metadata', 'name'], severity: 'warning', about: 'second', message: `found a second ${object.kind} for all of namespace ${namespace}, beside ${first.object.metadata.name}: only the oldest counts` }];
}

const isTcp = (protocol = ''): boolean => !isHttpProtocol(protocol) && !isTlsProtocol(protocol);

/** Namespaces that see both; undefined when there is none. */
function seenTogether(a: ServiceEntry, b: ServiceEntry): boolean {
  const [x, y] = [parseExportTo(a.spec.exportTo, namespaceOf(a)), parseExportTo(b.spec.exportTo, namespaceOf(b))];
  return x === 'all' || y === 'all' || [...x].some((namespace) => isExportedTo(y, namespace));
}

export function checkServiceEntry(view: View, key: string, entry: ServiceEntry): Problem[] {
  const problems: Problem[] = [];
  const olderOf = (name: string): ServiceEntry[] => {
    const all = view.of<ServiceEntry>(name).filter(({ object }) => object.kind === 'ServiceEntry');
    return all.slice(0, Math.max(0, all.findIndex((loaded) => loaded.key === key))).map(({ object }) => object).filter((other) => seenTogether(entry, other));
  };
  entry.spec.hosts.forEach((host, index) => {
    if (host.startsWith('*')) return;
    const [service] = view.of(fact.host(host)).filter(({ object }) => object.kind === 'Service');
    if (service) problems.push({ path: ['spec', 'hosts', index], severity: 'warning', about: 'several', message: `found "${host}", which is Service ${namespaceOf(service.object)}/${service.object.metadata.name}: that one counts` });
    for (const other of olderOf(fact.host(host))) {
      const name = `ServiceEntry ${namespaceOf(other)}/${other.metadata.name}`;
      const clash = entry.spec.ports?.find((port) => other.spec.ports?.some(({ number, protocol = '' }) => number === port.number && protocol.toUpperCase() !== (port.protocol ?? '').toUpperCase()));
      if (clash) problems.push({ path: ['spec', 'ports', entry.spec.ports!.indexOf(clash), 'protocol'], severity: 'warning', about: 'several', message: `found ${clash.protocol || 'TCP'} on port ${clash.number} of "${host}", for which ${name} says another protocol: only the oldest counts` });
      else if ((entry.spec.resolution ?? 'NONE') !== (other.spec.resolution ?? 'NONE')) problems.push({ path: ['spec', 'resolution'], severity: 'warning', about: 'several', message: `found ${entry.spec.resolution ?? 'NONE'} for "${host}", for which ${name} says ${other.spec.resolution ?? 'NONE'}: only the oldest counts` });
    }
  });
  entry.spec.addresses?.forEach((address, index) => {
    for (const other of olderOf(fact.address(address))) {
      if (other.spec.hosts.some((host) => entry.spec.hosts.includes(host))) continue;
      const port = entry.spec.ports?.find(({ number, protocol }) => isTcp(protocol) && other.spec.ports?.some((theirs) => theirs.number === number && isTcp(theirs.protocol)));
      if (port) problems.push({ path: ['spec', 'addresses', index], severity: 'warning', about: 'several', message: `found ${address} with TCP port ${port.number}, which ServiceEntry ${namespaceOf(other)}/${other.metadata.name} has for other hosts: nothing tells them apart, the oldest counts` });
    }
  });
  return problems;
}
