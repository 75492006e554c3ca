/** Does a VirtualService lead anywhere, and does another one stand in its way? */
import { nearest, type Path, type Problem } from '../../../common/kube/schema.js';
import type { DestinationRule, Gateway, HttpRoute, KubeObject, Service, ServiceEntry, VirtualService } from '../../../common/kube/types.js';
import { isExportedTo, parseExportTo } from '../../model/export-to.js';
import { hostMatches, resolveHost } from '../../model/hosts.js';
import { fact, namespaceOf, type View } from '../mesh-index.js';

type Destination = { host: string; subset?: string; port?: { number: number } };

const EXPORT_ANNOTATION = 'networking.istio.io/exportTo';

const isVisible = (object: KubeObject, namespace: string): boolean => {
  const written = object.kind === 'Service' ? object.metadata.annotations?.[EXPORT_ANNOTATION]?.split(',').map((item) => item.trim()) : (object as ServiceEntry).spec.exportTo;
  return isExportedTo(parseExportTo(written, namespaceOf(object)), namespace);
};

function portsOf(object: KubeObject): number[] {
  if (object.kind === 'Service') return ((object as Service).spec.ports ?? []).map(({ port }) => port);
  return ((object as ServiceEntry).spec.ports ?? []).map(({ number }) => number);
}

/** Services and ServiceEntries that a host means, wildcards where no name is the host's own. */
export function servicesOf(view: View, host: string): KubeObject[] {
  const own = view.of(fact.host(host)).map(({ object }) => object);
  if (own.length > 0) return own;
  return view.of<ServiceEntry>(fact.wildHosts).filter(({ object }) => object.spec.hosts.some((pattern) => hostMatches(pattern, host))).map(({ object }) => object);
}

function checkDestination(view: View, namespace: string, { host: written, subset, port }: Destination, path: Path, problems: Problem[]): void {
  const host = resolveHost(written, namespace, view.clusterDomain);
  const services = servicesOf(view, host);
  const visible = services.filter((object) => isVisible(object, namespace));
  const ports = [...new Set(services.flatMap(portsOf))];
  if (services.length === 0) {
    const near = nearest(host, view.index.hosts());
    const hint = near ? `; did you mean ${near}?` : '';
    problems.push({ path: [...path, 'host'], severity: 'warning', about: 'missing', message: `found "${written}", but no Service ${host} is known: requests would be answered with 503${hint}` });
  } else if (visible.length === 0) {
    problems.push({ path: [...path, 'host'], severity: 'warning', message: `found "${written}", but ${host} is not exported to namespace ${namespace}: its workloads would get 503` });
  } else if (port && !ports.includes(port.number)) {
    problems.push({ path: [...path, 'port', 'number'], severity: 'error', about: 'missing', message: `found ${port.number}, expected a port of ${host}: ${ports.join(', ') || 'it has none'}` });
  }
  if (subset) checkSubset(view, host, subset, [...path, 'subset'], problems);
}

export function rulesOf(view: View, host: string): DestinationRule[] {
  const wild = view.of<DestinationRule>(fact.wildRules).filter(({ object }) => hostMatches(object.spec.host, host));
  return [...view.of<DestinationRule>(fact.rules(host)), ...wild].map(({ object }) => object);
}

function checkSubset(view: View, host: string, subset: string, path: Path, problems: Problem[]): void {
  const rules = rulesOf(view, host);
  const names = [...new Set(rules.flatMap(({ spec }) => (spec.subsets ?? []).map(({ name }) => name)))];
  if (names.includes(subset)) return;
  const near = nearest(subset, names);
  const expected = rules.length === 0 ? `no DestinationRule for ${host} is known that would define it` : `expected a subset of ${host}: ${names.join(', ') || 'its DestinationRule has none'}${near ? ` (did you mean ${near}?)` : ''}`;
  problems.push({ path, severity: 'error', about: 'missing', message: `found "${subset}", ${expected}` });
}

function checkDelegate(view: View, namespace: string, { delegate }: HttpRoute, path: Path, problems: Problem[]): void {
  if (!delegate) return;
  const place = delegate.namespace || namespace;
  const [found] = view.of<VirtualService>(fact.virtualService(place, delegate.name ?? ''));
  const say = (message: string): void => void problems.push({ path: [...path, 'delegate'], severity: 'warning', about: 'missing', message: `${message}: this rule is left out` });
  if (!found) return say(`found "${place}/${delegate.name ?? ''}", but no such VirtualService is known`);
  if (found.object.spec.hosts?.length) return say(`found "${place}/${delegate.name ?? ''}", which has hosts of its own, expected a VirtualService without`);
  if (!isExportedTo(parseExportTo(found.object.spec.exportTo, place), namespace)) say(`found "${place}/${delegate.name ?? ''}", which is not exported to namespace ${namespace}`);
}

const gatewayKey = (name: string, namespace: string): string => (name.includes('/') ? name : name.includes('.') ? `${name.split('.')[1]}/${name.split('.')[0]}` : `${namespace}/${name}`);

/** `mesh`, or `namespace/name`. */
function gatewaysOf(object: VirtualService): Set<string> {
  const { gateways } = object.spec;
  return new Set((gateways?.length ? gateways : ['mesh']).map((name) => (name === 'mesh' ? name : gatewayKey(name, namespaceOf(object)))));
}

function checkGateways(view: View, object: VirtualService, problems: Problem[]): void {
  const namespace = namespaceOf(object);
  const named: [string, Path][] = (object.spec.gateways ?? []).map((name, index) => [name, ['spec', 'gateways', index]]);
  for (const protocol of ['http', 'tls', 'tcp'] as const) {
    object.spec[protocol]?.forEach((route, r) => route.match?.forEach((match, m) => match.gateways?.forEach((name, g) => named.push([name, ['spec', protocol, r, 'match', m, 'gateways', g]]))));
  }
  for (const [name, path] of named) {
    if (name === 'mesh') continue;
    const [place = '', own = ''] = gatewayKey(name, namespace).split('/');
    const [gateway] = view.of<Gateway>(fact.gateway(place, own));
    if (!gateway) {
      if (view.of(fact.kubeGateway(place, own)).length === 0) problems.push({ path, severity: 'warning', about: 'missing', message: `found "${name}", but no Gateway ${place}/${own} is known: nothing is routed there` });
      continue;
    }
    const hosts = (gateway.object.spec.servers ?? []).flatMap((server) => server.hosts).filter((host) => !host.includes('/') || ['*', namespace].includes(host.split('/')[0]!) || (host.startsWith('./') && place === namespace));
    const patterns = hosts.map((host) => host.slice(host.indexOf('/') + 1));
    const inside = (object.spec.hosts ?? []).some((host) => patterns.some((pattern) => hostMatches(pattern, resolveHost(host, namespace, view.clusterDomain)) || hostMatches(pattern, host) || hostMatches(host, pattern)));
    if (object.spec.hosts?.length && path[1] === 'gateways' && !inside) problems.push({ path, severity: 'warning', about: 'not-taken', message: `found "${name}", whose servers take none of the hosts for namespace ${namespace}: nothing is routed there` });
  }
}

const catchesAll = ({ spec }: VirtualService): boolean => (spec.http ?? []).some(({ match }) => !match?.length);

/** Workloads take one VirtualService a host; Gateways merge several, but what stands after a rule for everything is lost. */
function checkOverlap(view: View, loadedKey: string, object: VirtualService, problems: Problem[]): void {
  const namespace = namespaceOf(object);
  const gateways = gatewaysOf(object);
  const exported = parseExportTo(object.spec.exportTo, namespace);
  (object.spec.hosts ?? []).forEach((written, index) => {
    const sharing = view.of<VirtualService>(fact.virtualServicesOf(resolveHost(written, namespace, view.clusterDomain)));
    const older = sharing.slice(0, Math.max(0, sharing.findIndex(({ key }) => key === loadedKey)));
    for (const { object: other } of older) {
      const otherExport = parseExportTo(other.spec.exportTo, namespaceOf(other));
      const common = exported === 'all' || otherExport === 'all' || [...exported].some((one) => otherExport.has(one));
      const shared = [...gatewaysOf(other)].filter((one) => gateways.has(one));
      if (!common || shared.length === 0) continue;
      const name = `VirtualService ${namespaceOf(other)}/${other.metadata.name}`;
      if (shared.includes('mesh')) problems.push({ path: ['spec', 'hosts', index], severity: 'warning', about: 'routed-already', message: `found "${written}", which ${name} routes already: for workloads only the oldest counts` });
      else if (catchesAll(other)) problems.push({ path: ['spec', 'hosts', index], severity: 'warning', message: `found "${written}", for which ${name} has a rule that takes everything on Gateway ${shared[0]}: what is here is never reached` });
      else continue;
      break;
    }
  });
}

export function checkVirtualService(view: View, key: string, object: VirtualService): Problem[] {
  const problems: Problem[] = [];
  const namespace = namespaceOf(object);
  for (const protocol of ['http', 'tls', 'tcp'] as const) {
    object.spec[protocol]?.forEach((rule, r) => rule.route?.forEach(({ destination }, d) => checkDestination(view, namespace, destination, ['spec', protocol, r, 'route', d, 'destination'], problems)));
  }
  object.spec.http?.forEach((rule, r) => {
    const path = ['spec', 'http', r];
    if (rule.mirror) checkDestination(view, namespace, rule.mirror, [...path, 'mirror'], problems);
    rule.mirrors?.forEach(({ destination }, m) => checkDestination(view, namespace, destination, [...path, 'mirrors', m, 'destination'], problems));
    checkDelegate(view, namespace, rule, path, problems);
  });
  checkGateways(view, object, problems);
  checkOverlap(view, key, object, problems);
  return problems;
}

/** Several rules of one host merge: a subset counts where it is written first, as does the policy of the host. */
export function checkDestinationRule(view: View, key: string, object: DestinationRule): Problem[] {
  const problems: Problem[] = [];
  const namespace = namespaceOf(object);
  const host = resolveHost(object.spec.host, namespace, view.clusterDomain);
  if (host.startsWith('*')) return problems;
  const rules = view.of<DestinationRule>(fact.rules(host)).filter(({ object: other }) => namespaceOf(other) === namespace && !other.spec.workloadSelector);
  const older = rules.slice(0, Math.max(0, rules.findIndex((loaded) => loaded.key === key)));
  for (const [index, { name }] of (object.spec.subsets ?? []).entries()) {
    const first = older.find(({ object: { spec } }) => spec.subsets?.some((subset) => subset.name === name));
    if (first) problems.push({ path: ['spec', 'subsets', index, 'name'], severity: 'warning', about: 'several', message: `found "${name}", which DestinationRule ${namespace}/${first.object.metadata.name} of the same host has already: only the oldest counts` });
  }
  const policy = older.find(({ object: { spec } }) => spec.trafficPolicy);
  if (policy && object.spec.trafficPolicy) problems.push({ path: ['spec', 'trafficPolicy'], severity: 'warning', about: 'several', atKey: true, message: `DestinationRule ${namespace}/${policy.object.metadata.name} of the same host has one already: only the oldest counts` });
  if (servicesOf(view, host).length === 0) {
    const near = nearest(host, view.index.hosts());
    problems.push({ path: ['spec', 'host'], severity: 'warning', about: 'missing', message: `found "${object.spec.host}", but no Service ${host} is known${near ? `; did you mean ${near}?` : ''}` });
  }
  return problems;
}
