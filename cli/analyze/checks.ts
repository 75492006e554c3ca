/** Checks beyond what the control plane refuses or warns of: what works, and probably is not what was meant. */
import { isDeepStrictEqual } from 'node:util';
import { unknownLabels } from '../../agent/client.js';
import type { DestinationRule, KubeObject, Pod, Service, Sidecar, VirtualService } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { CODES, resourceName, type Code, type Finding, type Level } from './codes.js';

/** https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/ */
const PROTOCOLS = /^(?:http|http2|https|tcp|tls|grpc|grpc-web|mongo|mysql|redis|udp)(?:-|$)/;
const VERIFIED = new Set(['SIMPLE', 'MUTUAL']);

type Say = (loaded: LoadedObject, level: Level, code: Code, path: readonly (string | number)[], message: string) => void;

export function checkMore(objects: readonly LoadedObject[], clusterDomain: string): Finding[] {
  const findings: Finding[] = [];
  const say: Say = ({ object, file, positions }, level, code, path, message) => {
    const { name, namespace } = object.metadata;
    findings.push({ level, code, name: CODES[code][0], resource: resourceName({ kind: object.kind, name, namespace }), ...(namespace === undefined ? {} : { namespace }), file, line: positions.at(path).line, field: fieldText(path), message });
  };
  const of = (kind: string): LoadedObject[] => objects.filter(({ object }) => object.kind === kind);
  const services = of('Service') as LoadedObject<Service>[];
  const byHost = new Map(services.map((loaded) => [`${loaded.object.metadata.name}.${loaded.object.metadata.namespace ?? 'default'}.svc.${clusterDomain}`, loaded]));
  services.forEach((each) => checkPorts(each, say));
  (of('VirtualService') as LoadedObject<VirtualService>[]).forEach((each) => checkRules(each, byHost, clusterDomain, say));
  (of('DestinationRule') as LoadedObject<DestinationRule>[]).forEach((each) => checkTls(each, say));
  checkSidecars(of('Sidecar') as LoadedObject<Sidecar>[], say);
  checkShared(of('Pod') as LoadedObject<Pod>[], services, say);
  for (const kind of ['Namespace', 'Pod'] as const) of(kind).forEach((each) => checkLabels(each, kind, say));
  return findings;
}

const fieldText = (path: readonly (string | number)[]): string => path.map((part, index) => (typeof part === 'number' ? `[${part}]` : `${index === 0 ? '' : '.'}${part}`)).join('');

function protocolOf({ name = '', appProtocol, protocol = 'TCP' }: { name?: string; appProtocol?: string; protocol?: string }): string | undefined {
  if (protocol !== 'TCP') return protocol.toLowerCase();
  return appProtocol?.replace(/^kubernetes\.io\//, '') ?? PROTOCOLS.exec(name)?.[0].replace(/-$/, '');
}

function checkPorts(loaded: LoadedObject<Service>, say: Say): void {
  (loaded.object.spec?.ports ?? []).forEach((port, index) => {
    if (protocolOf(port) === undefined) say(loaded, 'Info', 'IST0118', ['spec', 'ports', index], `port ${port.port}${port.name ? ` ("${port.name}")` : ''} does not say its protocol: expected a name as http-…, or appProtocol`);
  });
}

function checkRules(loaded: LoadedObject<VirtualService>, services: ReadonlyMap<string, LoadedObject<Service>>, clusterDomain: string, say: Say): void {
  const { http = [] } = loaded.object.spec ?? {};
  const namespace = loaded.object.metadata.namespace ?? 'default';
  let all: number | undefined;
  const seen: { rule: number; match: unknown }[] = [];
  http.forEach((rule, index) => {
    if (all !== undefined) say(loaded, 'Error', 'IST0130', ['spec', 'http', index], `no request gets here: spec.http[${all}] takes everything`);
    const matches = rule.match ?? [];
    matches.forEach((match, at) => {
      const { name: _name, ...what } = match as Record<string, unknown>;
      const first = all === undefined ? seen.find((each) => isDeepStrictEqual(each.match, what)) : undefined;
      if (first) say(loaded, 'Info', 'IST0131', ['spec', 'http', index, 'match', at], `spec.http[${first.rule}] has the same match already, and is asked first`);
      seen.push({ rule: index, match: what });
    });
    if (matches.length === 0) all ??= index;
    (rule.route ?? []).forEach(({ destination }, at) => {
      if (!destination?.host || destination.port !== undefined) return;
      const host = destination.host.includes('.') ? destination.host : `${destination.host}.${namespace}.svc.${clusterDomain}`;
      const ports = services.get(host)?.object.spec?.ports ?? [];
      if (ports.length > 1) say(loaded, 'Error', 'IST0112', ['spec', 'http', index, 'route', at, 'destination'], `Service ${host} has ${ports.length} ports (${ports.map(({ port }) => port).join(', ')}), and none is named: the port that the client asked for counts`);
    });
  });
}

function checkTls(loaded: LoadedObject<DestinationRule>, say: Say): void {
  interface Tls { mode?: string; caCertificates?: string; credentialName?: string; insecureSkipVerify?: boolean }
  const isOpen = (tls: Tls | undefined): boolean => tls !== undefined && VERIFIED.has(tls.mode ?? '') && !tls.caCertificates && !tls.credentialName;
  const { trafficPolicy: policy } = loaded.object.spec ?? {};
  if (isOpen(policy?.tls as Tls | undefined)) say(loaded, 'Warning', 'IST0128', ['spec', 'trafficPolicy', 'tls'], `mode ${policy!.tls!.mode} without caCertificates or credentialName: the server's certificate is held against the system's roots alone`);
  (policy?.portLevelSettings ?? []).forEach((settings, index) => {
    if (isOpen(settings.tls as Tls | undefined)) say(loaded, 'Warning', 'IST0129', ['spec', 'trafficPolicy', 'portLevelSettings', index, 'tls'], 'no caCertificates or credentialName: the server\'s certificate is held against the system\'s roots alone');
  });
}

function checkSidecars(sidecars: readonly LoadedObject<Sidecar>[], say: Say): void {
  sidecars.forEach((loaded, index) => {
    const labels = loaded.object.spec?.workloadSelector?.labels;
    if (!labels || Object.keys(labels).length === 0) return;
    const first = sidecars.slice(0, index).find(({ object }) => object.metadata.namespace === loaded.object.metadata.namespace && isDeepStrictEqual(object.spec?.workloadSelector?.labels, labels));
    if (first) say(loaded, 'Error', 'IST0110', ['spec', 'workloadSelector'], `Sidecar ${first.object.metadata.name} has the same selector: only one counts`);
  });
}

function checkShared(pods: readonly LoadedObject<Pod>[], services: readonly LoadedObject<Service>[], say: Say): void {
  for (const loaded of pods) {
    const { labels = {}, namespace } = loaded.object.metadata;
    const byPort = new Map<number, { protocol: string; name: string }>();
    for (const { object } of services) {
      const selector = Object.entries(object.spec?.selector ?? {});
      if (object.metadata.namespace !== namespace || selector.length === 0 || !selector.every(([key, value]) => labels[key] === value)) continue;
      for (const port of object.spec?.ports ?? []) {
        const target = typeof port.targetPort === 'number' ? port.targetPort : port.port;
        const protocol = protocolOf(port) ?? 'unknown';
        const other = byPort.get(target);
        if (other && other.protocol !== protocol && other.name !== object.metadata.name) say(loaded, 'Warning', 'IST0116', ['metadata', 'labels'], `port ${target} is ${other.protocol} by Service ${other.name} and ${protocol} by Service ${object.metadata.name}`);
        else byPort.set(target, { protocol, name: object.metadata.name });
      }
    }
  }
}

function checkLabels(loaded: LoadedObject<KubeObject>, kind: 'Namespace' | 'Pod', say: Say): void {
  for (const { label, value, expected, usedInstead } of unknownLabels(loaded.object.metadata.labels ?? {}, kind === 'Pod' ? 'pod' : 'namespace', { ambientLabel: true })) say(loaded, 'Warning', 'UP0001', ['metadata', 'labels', label], `found "${value}", expected one of ${expected.join(', ')}: it counts as ${usedInstead}`);
}
