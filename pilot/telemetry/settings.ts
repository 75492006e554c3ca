/**
 * What a proxy's listeners say of tracing and access logs: MeshConfig's settings, over them the Telemetry of the root
 * namespace, of the workload's namespace, and of the workload, each field the most specific one that says it.
 */
import type { LoadedObject } from '../../common/kube/yaml.js';
import type { Telemetry, TelemetryAccessLogging, TelemetryTracing, WorkloadMode } from '../../common/kube/types.js';
import { clusterName } from '../generate/names.js';
import { policiesFor, policyTarget, targetRefsOf } from '../generate/security/targets.js';
import type { ExtensionProvider } from '../model/mesh.js';
import type { Model } from '../model/model.js';
import { selectorLabels } from '../model/peer-authentication.js';
import type { Proxy } from '../model/proxy.js';
import type { MetricsSettings } from './metrics.js';

export type Tag = { tag: string } & ({ literal: string } | { header: string; defaultValue: string } | { environment: string; defaultValue: string });

export interface TracingSettings {
  kind: 'zipkin' | 'opentelemetry';
  cluster: string;
  host: string;
  path: string;
  timeout: string | undefined;
  maxTagLength: number | undefined;
  use128bit: boolean;
  /** Percent. */
  sampling: number;
  serviceName: string;
  tags: readonly Tag[];
}

export interface AccessLogSettings {
  path: string;
  /** Text, or the fields of a JSON object; undefined is Istio's own. */
  format: string | Readonly<Record<string, unknown>> | undefined;
  isJson: boolean;
  /** CEL. */
  filter: string | undefined;
}

/** One side of a proxy: towards its workload (SERVER), or from it (CLIENT), as which a gateway counts. */
export interface SideSettings {
  tracing: TracingSettings | undefined;
  accessLogs: readonly AccessLogSettings[];
  /** Undefined: nothing is counted, or the proxy can't. */
  metrics: MetricsSettings | undefined;
}

type Side = 'CLIENT' | 'SERVER';

/** Istio's built-in provider of this name needs no definition. */
const PROMETHEUS = 'prometheus';

const CANONICAL_NAME = ['service.istio.io/canonical-name', 'app.kubernetes.io/name', 'app'];
const CANONICAL_REVISION = ['service.istio.io/canonical-revision', 'app.kubernetes.io/version', 'version'];

const meant = (mode: WorkloadMode | undefined, side: Side): boolean => mode === undefined || mode === 'UNDEFINED' || mode === 'CLIENT_AND_SERVER' || mode === side;

/** From the least specific to the most. Of several of one level the oldest counts. */
function telemetries(model: Model, proxy: Proxy): Telemetry[] {
  const { rootNamespace } = model.mesh;
  const all = policiesFor<Telemetry>(model, 'Telemetry', policyTarget(model, proxy));
  const wide = ({ object }: LoadedObject<Telemetry>): boolean => targetRefsOf(object).length === 0 && Object.keys(selectorLabels(object.spec?.selector) ?? {}).length === 0;
  const inRoot = ({ object }: LoadedObject<Telemetry>): boolean => object.metadata.namespace === rootNamespace;
  const levels = [all.find((one) => inRoot(one) && wide(one)), all.find((one) => !inRoot(one) && wide(one)), all.find((one) => !wide(one))];
  return levels.flatMap((one) => one?.object ?? []);
}

function provider(model: Model, name: string): ExtensionProvider | undefined {
  return model.mesh.extensionProviders.find((candidate) => candidate.name === name);
}

function hostOf(service: string): string {
  return service.slice(service.indexOf('/') + 1);
}

function canonical(labels: Readonly<Record<string, string>>, names: readonly string[], fallback: string): string {
  return names.map((name) => labels[name]).find((value) => value) ?? fallback;
}

function tracing(model: Model, proxy: Proxy, layers: readonly Telemetry[], side: Side): TracingSettings | undefined {
  const { mesh } = model;
  const merged: TelemetryTracing = {};
  let isAsked = mesh.enableTracing;
  for (const { spec } of layers) {
    for (const entry of (spec?.tracing ?? []).filter(({ match }) => meant(match?.mode, side)).slice(0, 1)) {
      isAsked = true;
      for (const [key, value] of Object.entries(entry)) if (key !== 'match' && value !== undefined) Object.assign(merged, { [key]: value });
    }
  }
  if (!isAsked || merged.disableSpanReporting) return undefined;
  const name = merged.providers?.[0]?.name ?? mesh.defaultTracingProviders[0];
  const chosen = name === undefined ? undefined : provider(model, name);
  const service = chosen?.zipkin ?? chosen?.opentelemetry ?? (name === undefined ? addressOf(mesh.tracingZipkinAddress) : undefined);
  const host = service && hostOf(service.service);
  // Without a service to send spans to there is no cluster of that name, and Envoy would refuse the listener.
  if (!service || host === undefined || !model.services.has(host)) return undefined;
  const { labels } = policyTarget(model, proxy);
  const serviceName = canonical(labels, CANONICAL_NAME, proxy.name.split('.')[0] ?? proxy.name);
  return {
    kind: chosen?.opentelemetry ? 'opentelemetry' : 'zipkin',
    cluster: clusterName(service.port, '', host),
    host,
    path: service.path || '/api/v2/spans',
    timeout: service.timeout,
    maxTagLength: service.maxTagLength || undefined,
    use128bit: service.enable64bitTraceId !== true,
    sampling: merged.randomSamplingPercentage ?? mesh.tracingSampling,
    serviceName: `${serviceName}.${proxy.namespace}`,
    tags: tagsOf(merged, merged.enableIstioTags === false ? {} : {
      'istio.canonical_revision': canonical(labels, CANONICAL_REVISION, 'latest'),
      'istio.canonical_service': serviceName,
      'istio.cluster_id': mesh.clusterId,
      'istio.mesh_id': mesh.trustDomain,
      'istio.namespace': proxy.namespace,
    }),
  };
}

/** `host:port` */
function addressOf(address: string): { service: string; port: number; path?: string; timeout?: string; maxTagLength?: number; enable64bitTraceId?: boolean } | undefined {
  const colon = address.lastIndexOf(':');
  return colon > 0 ? { service: address.slice(0, colon), port: Number(address.slice(colon + 1)) } : undefined;
}

function tagsOf({ customTags = {} }: TelemetryTracing, own: Readonly<Record<string, string>>): Tag[] {
  const tags: Tag[] = Object.entries(own).map(([tag, literal]) => ({ tag, literal }));
  for (const [tag, { literal, header, environment }] of Object.entries(customTags)) {
    if (literal) tags.push({ tag, literal: literal.value });
    else if (header) tags.push({ tag, header: header.name, defaultValue: header.defaultValue ?? '' });
    else if (environment) tags.push({ tag, environment: environment.name, defaultValue: environment.defaultValue ?? '' });
  }
  return tags.sort((a, b) => (a.tag < b.tag ? -1 : 1));
}

function accessLogs(model: Model, layers: readonly Telemetry[], side: Side): AccessLogSettings[] {
  const { mesh } = model;
  const merged: TelemetryAccessLogging = {};
  for (const { spec } of layers) {
    for (const entry of (spec?.accessLogging ?? []).filter(({ match }) => meant(match?.mode, side))) {
      for (const [key, value] of Object.entries(entry)) if (key !== 'match' && value !== undefined) Object.assign(merged, { [key]: value });
    }
  }
  if (merged.disabled) return [];
  const filter = merged.filter?.expression;
  const own: AccessLogSettings[] = mesh.accessLogFile ? [{ path: mesh.accessLogFile, format: meshFormat(mesh), isJson: mesh.accessLogEncoding === 'JSON', filter }] : [];
  if (!merged.providers) return own;
  return merged.providers.flatMap(({ name }) => {
    const file = provider(model, name)?.envoyFileAccessLog;
    // Istio's built-in provider of this name needs no definition.
    if (!file) return name === 'envoy' ? (own.length > 0 ? own : [{ path: '/dev/stdout', format: undefined, isJson: false, filter }]) : [];
    return [{ path: file.path, format: file.logFormat?.labels ?? file.logFormat?.text, isJson: file.logFormat?.labels !== undefined, filter }];
  });
}

function meshFormat({ accessLogFormat, accessLogEncoding }: Model['mesh']): AccessLogSettings['format'] {
  if (!accessLogFormat || accessLogEncoding !== 'JSON') return accessLogFormat || undefined;
  try {
    return JSON.parse(accessLogFormat) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}

/** A waypoint tells both ends of what passes it. */
function metrics({ mesh }: Model, { type, canCount }: Proxy, side: Side): MetricsSettings | undefined {
  if (!canCount || !mesh.defaultMetricsProviders.includes(PROMETHEUS)) return undefined;
  return { reporter: side === 'CLIENT' ? 'source' : type === 'waypoint' ? 'waypoint' : 'destination', overrides: {} };
}

export function settingsFor(model: Model, proxy: Proxy): Record<Side, SideSettings> {
  const layers = telemetries(model, proxy);
  const side = (which: Side): SideSettings => ({ tracing: tracing(model, proxy, layers, which), accessLogs: accessLogs(model, layers, which), metrics: metrics(model, proxy, which) });
  return { CLIENT: side('CLIENT'), SERVER: side('SERVER') };
}
