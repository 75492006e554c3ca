/** Do Gateways have workloads, certificates, and listeners that no other Gateway claims? */
import type { Concern, Path, Problem } from '../../../common/kube/schema.js';
import { hostsOverlap, isHttpProtocol, isTlsProtocol } from '../../../common/kube/istio/syntax.js';
import type { Gateway, GatewayServer, HTTPRoute, KubeGateway, KubeObject, Pod, Secret, Service } from '../../../common/kube/types.js';
import { apiGroup } from '../../../common/kube/types.js';
import { serviceHost } from '../../model/hosts.js';
import { fact, GATEWAY_API, namespaceOf, type View } from '../mesh-index.js';
import { hasPart, pairProblems } from './certificates.js';
import { mountedFile } from './files.js';

const warning = (path: Path, message: string, about?: Concern): Problem => ({ path, severity: 'warning', message, ...(about === undefined ? {} : { about }) });

/** Where gateways look for `credentialName`: `kubernetes://name`, `kubernetes-gateway://namespace/name`, or a name in their own namespace. */
export function credentialPlace(name: string, namespace: string): { namespace: string; name: string } | undefined {
  const scheme = /^([a-z-]+):\/\/(.*)$/.exec(name);
  if (!scheme) return { namespace, name };
  const [first = '', second] = scheme[2]!.split('/');
  if (scheme[1] === 'kubernetes') return second === undefined ? { namespace, name: first } : { namespace: first, name: second };
  if (scheme[1] === 'kubernetes-gateway' && second !== undefined) return { namespace: first, name: second };
  // ConfigMaps, files and other SDS servers.
  return undefined;
}

function checkCredential(view: View, namespaces: readonly string[], name: string, wantsCa: boolean, path: Path): Problem[] {
  for (const namespace of namespaces) {
    const place = credentialPlace(name, namespace);
    if (!place) return [];
    const [secret] = view.of<Secret>(fact.secret(place.namespace, place.name));
    const [authority] = view.of<Secret>(fact.secret(place.namespace, `${place.name}-cacert`));
    if (!secret) {
      // A name that ends so is the CAs' own.
      return [warning(path, `found "${name}", but no Secret ${place.namespace}/${place.name} is known: the server answers nobody until it is`, 'missing')];
    }
    if (!hasPart(secret.object, 'certificate')) return [warning(path, `found "${name}", but Secret ${place.namespace}/${place.name} has no tls.crt and tls.key (or cert and key)`, 'missing')];
    if (wantsCa && !hasPart(secret.object, 'ca') && !(authority && hasPart(authority.object, 'ca'))) {
      return [warning(path, `found "${name}", but neither Secret ${place.namespace}/${place.name} nor ${place.name}-cacert has the certificates of clients' CAs (ca.crt or cacert)`, 'missing')];
    }
  }
  return [];
}

function checkServer(view: View, gateway: Gateway, server: GatewayServer, index: number, pods: readonly Pod[]): Problem[] {
  const { tls } = server;
  const mode = tls?.mode ?? 'PASSTHROUGH';
  if (!tls || !['SIMPLE', 'MUTUAL', 'OPTIONAL_MUTUAL'].includes(mode)) return [];
  const places = pods.length > 0 ? [...new Set(pods.map(namespaceOf))] : [namespaceOf(gateway)];
  const path = ['spec', 'servers', index, 'tls'];
  const wantsCa = mode !== 'SIMPLE';
  const names: [string, Path][] = [...(tls.credentialName ? ([[tls.credentialName, [...path, 'credentialName']]] as [string, Path][]) : []), ...(tls.credentialNames ?? []).map((name, n): [string, Path] => [name, [...path, 'credentialNames', n]])];
  const files = tls.tlsCertificates?.length ? tls.tlsCertificates.map((pair, n): [typeof pair, Path] => [pair, [...path, 'tlsCertificates', n]]) : ([[tls, path]] as [typeof tls, Path][]);
  return [...files.flatMap(([pair, where]) => checkFiles(view, pair, pods, where)), ...names.flatMap(([name, where]) => checkCredential(view, places, name, wantsCa && !tls.caCertCredentialName, where))];
}

/** Files that are entries of Secrets or ConfigMaps: are they there, and do they belong together? */
function checkFiles(view: View, pair: { serverCertificate?: string; privateKey?: string }, pods: readonly Pod[], path: Path): Problem[] {
  const { serverCertificate, privateKey } = pair;
  if (!serverCertificate || !privateKey) return [];
  for (const pod of pods) {
    const certificate = mountedFile(view, pod, serverCertificate);
    const key = mountedFile(view, pod, privateKey);
    for (const [file, field] of [[certificate, 'serverCertificate'], [key, 'privateKey']] as const) {
      if (file && !file.content) return [warning([...path, field], `found "${pair[field]}", but ${file.object}, which pod ${namespaceOf(pod)}/${pod.metadata.name} has there, lacks "${file.key}": the server answers nobody until it is there`, 'missing')];
    }
    if (!certificate?.content || !key?.content) continue;
    const problems = pairProblems(certificate.content, key.content);
    if (problems.length > 0) {
      return problems.map(({ part, message }) => {
        const { object, key: entry } = part === 'key' ? key : certificate;
        return { path: [...path, part === 'key' ? 'privateKey' : 'serverCertificate'], severity: 'error', message: `${message} (${entry} of ${object})` };
      });
    }
  }
  return [];
}

const stripNamespace = (host: string): string => host.slice(host.indexOf('/') + 1);

const kindOf = (protocol: string): string => (isTlsProtocol(protocol) ? 'TLS' : isHttpProtocol(protocol) ? 'HTTP' : 'TCP');

/** Two servers of a port: may both be there? */
function conflict(a: GatewayServer, b: GatewayServer): string | undefined {
  if ((a.bind ?? '') !== (b.bind ?? '')) return undefined;
  const [x, y] = [kindOf(a.port.protocol), kindOf(b.port.protocol)];
  if (x !== y) return `protocol ${a.port.protocol} on a port that has ${b.port.protocol}`;
  if (x === 'TCP') return 'TCP on a port that has TCP, which no host tells apart';
  if (x !== 'TLS') return undefined;
  const shared = a.hosts.map(stripNamespace).find((host) => b.hosts.map(stripNamespace).some((other) => other.toLowerCase() === host.toLowerCase()));
  return shared === undefined ? undefined : `"${shared}" on a port that has it already`;
}

/** Do two selectors mean the same workloads, as far as the selectors tell? */
const related = (a: Record<string, string>, b: Record<string, string>): boolean => Object.entries(a).every(([key, value]) => b[key] === undefined || b[key] === value) && Object.keys(a).some((key) => key in b);

function checkConflicts(view: View, key: string, gateway: Gateway): Problem[] {
  const problems: Problem[] = [];
  const servers = gateway.spec.servers ?? [];
  servers.forEach((server, index) => {
    const inside = servers.slice(0, index).find((other) => other.port.number === server.port.number && conflict(server, other));
    if (inside) problems.push(warning(['spec', 'servers', index], `found ${conflict(server, inside)}, from a server before it: only that one counts`, 'several'));
    const sharing = view.of<Gateway>(fact.gatewaysOn(server.port.number));
    for (const { object: other } of sharing.slice(0, Math.max(0, sharing.findIndex((loaded) => loaded.key === key)))) {
      if (!related(gateway.spec.selector ?? {}, other.spec.selector ?? {})) continue;
      const found = (other.spec.servers ?? []).filter(({ port }) => port.number === server.port.number).map((candidate) => conflict(server, candidate)).find((what) => what);
      if (!found) continue;
      problems.push(warning(['spec', 'servers', index], `found ${found}, from Gateway ${namespaceOf(other)}/${other.metadata.name}: only the oldest counts`, 'several'));
      break;
    }
  });
  return problems;
}

export function checkGateway(view: View, key: string, gateway: Gateway): Problem[] {
  const selector = gateway.spec.selector ?? {};
  const problems: Problem[] = [];
  const pods = view.workloads(selector);
  if (Object.keys(selector).length > 0 && pods.length === 0) {
    const text = Object.entries(selector).map(([label, value]) => `${label}=${value}`).join(', ');
    problems.push({ path: ['spec', 'selector'], severity: 'warning', about: 'missing', atKey: true, message: `found ${text}, but no pod has these labels: nobody listens` });
  }
  (gateway.spec.servers ?? []).forEach((server, index) => problems.push(...checkServer(view, gateway, server, index, pods)));
  problems.push(...checkConflicts(view, key, gateway));
  return problems;
}

export function checkKubeGateway(view: View, gateway: KubeGateway): Problem[] {
  const problems: Problem[] = [];
  const namespace = namespaceOf(gateway);
  gateway.spec.listeners.forEach(({ tls }, l) =>
    tls?.certificateRefs?.forEach((ref, r) => {
      if ((ref.kind ?? 'Secret') !== 'Secret' || ref.group) return;
      const path = ['spec', 'listeners', l, 'tls', 'certificateRefs', r];
      const place = ref.namespace ?? namespace;
      if (!view.isGranted({ group: GATEWAY_API, kind: 'Gateway', namespace }, { group: '', kind: 'Secret', namespace: place, name: ref.name })) {
        problems.push(warning([...path, 'namespace'], `found "${place}", but no ReferenceGrant there lets Gateways of ${namespace} refer to Secrets: the listener stays without a certificate`));
      } else problems.push(...checkCredential(view, [place], ref.name, false, [...path, 'name']));
    }),
  );
  return problems;
}

type Backend = { group?: string; kind?: string; name: string; namespace?: string; port?: number };

function checkBackend(view: View, route: KubeObject, ref: Backend, path: Path): Problem[] {
  if (ref.group || (ref.kind ?? 'Service') !== 'Service') return [];
  const namespace = namespaceOf(route);
  const place = ref.namespace ?? namespace;
  if (!view.isGranted({ group: GATEWAY_API, kind: route.kind, namespace }, { group: '', kind: 'Service', namespace: place, name: ref.name })) {
    return [warning([...path, 'namespace'], `found "${place}", but no ReferenceGrant there lets ${route.kind}s of ${namespace} refer to Services: requests would be answered with 500`)];
  }
  const [service] = view.of<Service>(fact.host(serviceHost(ref.name, place, view.clusterDomain)));
  if (!service) return [warning([...path, 'name'], `found "${ref.name}", but no Service ${place}/${ref.name} is known: requests would be answered with 500`, 'missing')];
  const ports = service.object.kind === 'Service' ? (service.object.spec.ports ?? []).map(({ port }) => port) : [];
  if (ref.port !== undefined && service.object.kind === 'Service' && !ports.includes(ref.port)) return [warning([...path, 'port'], `found ${ref.port}, expected a port of Service ${place}/${ref.name}: ${ports.join(', ') || 'it has none'}`, 'missing')];
  return [];
}

/** Routes of the Gateway API, of any protocol. */
export function checkKubeRoute(view: View, route: HTTPRoute): Problem[] {
  const problems: Problem[] = [];
  const namespace = namespaceOf(route);
  route.spec.parentRefs?.forEach((parent, index) => {
    if ((parent.kind ?? 'Gateway') !== 'Gateway' || (parent.group ?? GATEWAY_API) !== GATEWAY_API) return;
    const place = parent.namespace ?? namespace;
    const [gateway] = view.of<KubeGateway>(fact.kubeGateway(place, parent.name));
    const path = ['spec', 'parentRefs', index];
    if (!gateway) return void problems.push(warning([...path, 'name'], `found "${parent.name}", but no Gateway ${place}/${parent.name} is known: the route is attached to nothing`, 'missing'));
    const { listeners } = gateway.object.spec;
    const fitting = listeners.filter(({ name, port }) => (parent.sectionName === undefined || name === parent.sectionName) && (parent.port === undefined || port === parent.port));
    if (fitting.length === 0) problems.push(warning([...path, parent.sectionName === undefined ? 'port' : 'sectionName'], `found ${parent.sectionName === undefined ? parent.port : `"${parent.sectionName}"`}, expected a listener of Gateway ${place}/${parent.name}: ${listeners.map(({ name, port }) => `${name} (${port})`).join(', ')}`, 'missing'));
    else if (route.spec.hostnames?.length && !fitting.some(({ hostname }) => !hostname || route.spec.hostnames!.some((host) => hostsOverlap(hostname, host)))) {
      problems.push(warning(['spec', 'hostnames'], `found none that Gateway ${place}/${parent.name} listens for: the route is attached to nothing there`));
    } else if (place !== namespace && fitting.every(({ allowedRoutes }) => (allowedRoutes?.namespaces?.from ?? 'Same') === 'Same')) {
      problems.push(warning([...path, 'namespace'], `found "${place}", whose Gateway ${parent.name} allows only routes of its own namespace`));
    }
  });
  route.spec.rules?.forEach((rule, r) => {
    rule.backendRefs?.forEach((ref, b) => problems.push(...checkBackend(view, route, ref, ['spec', 'rules', r, 'backendRefs', b])));
    rule.filters?.forEach((filter, f) => filter.requestMirror && problems.push(...checkBackend(view, route, filter.requestMirror.backendRef, ['spec', 'rules', r, 'filters', f, 'requestMirror', 'backendRef'])));
  });
  return problems;
}

export const isGatewayApi = ({ apiVersion }: KubeObject): boolean => apiGroup(apiVersion) === GATEWAY_API;
