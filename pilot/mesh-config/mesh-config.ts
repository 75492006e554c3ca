/**
 * MeshConfig from a file or from the ConfigMap `istio`: read, checked and turned into the settings in force. What is wrong
 * is named, and the last good settings stay.
 */
import { parseDocument, LineCounter } from 'yaml';
import { checkSchema, formatPath, type Schema } from '../../common/kube/schema.js';
import type { HttpRetry, LocalityLbSetting, TcpKeepalive } from '../../common/kube/types.js';
import type { CustomTagSetting, ExtensionProvider, LabelSelectorSetting, MeshConfig, NetworkSetting, ServiceScopeSetting } from '../model/mesh.js';
import { meshConfigSchema, meshNetworksSchema } from './schema.js';

/** MeshConfig as written; see Istio's reference. */
interface WrittenMeshConfig {
  accessLogFile?: string;
  accessLogFormat?: string;
  accessLogEncoding?: 'TEXT' | 'JSON';
  enableTracing?: boolean;
  enableAutoMtls?: boolean;
  trustDomain?: string;
  trustDomainAliases?: string[];
  rootNamespace?: string;
  outboundTrafficPolicy?: { mode?: 'ALLOW_ANY' | 'REGISTRY_ONLY' };
  connectTimeout?: string;
  tcpKeepalive?: TcpKeepalive;
  localityLbSetting?: LocalityLbSetting;
  defaultHttpRetryPolicy?: HttpRetry;
  h2UpgradePolicy?: 'DO_NOT_UPGRADE' | 'UPGRADE';
  pathNormalization?: { normalization?: MeshConfig['pathNormalization'] | 'DEFAULT' };
  extensionProviders?: ExtensionProvider[];
  defaultProviders?: { tracing?: string[]; metrics?: string[]; accessLogging?: string[] };
  discoverySelectors?: LabelSelectorSetting[];
  serviceScopeConfigs?: ServiceScopeSetting[];
  serviceSettings?: { settings?: { clusterLocal?: boolean }; hosts?: string[] }[];
  meshMTLS?: { minProtocolVersion?: string };
  defaultServiceExportTo?: string[];
  defaultVirtualServiceExportTo?: string[];
  defaultDestinationRuleExportTo?: string[];
  defaultConfig?: { tracing?: { sampling?: number; zipkin?: { address?: string }; customTags?: Record<string, CustomTagSetting>; maxPathTagLength?: number; enableIstioTags?: boolean } };
}

export interface MeshConfigProblem {
  severity: 'error' | 'warning';
  /** `12:3: outboundTrafficPolicy.mode: found …`: line and column within the text. */
  message: string;
}

export interface ReadMeshConfig {
  /** Undefined when there is an error. */
  settings: Partial<MeshConfig> | undefined;
  problems: MeshConfigProblem[];
}

/** Reads the text of a MeshConfig; never throws for what it holds. */
export function readMeshConfig(text: string): ReadMeshConfig {
  const { value, problems } = readChecked<WrittenMeshConfig>(text, meshConfigSchema);
  return { settings: value && settingsOf(value), problems };
}

/** The same for the networks of a mesh. */
export function readMeshNetworks(text: string): ReadMeshConfig {
  const { value, problems } = readChecked<{ networks?: Record<string, NetworkSetting> }>(text, meshNetworksSchema);
  return { settings: value && { networks: value.networks ?? {} }, problems };
}

function readChecked<T extends object>(text: string, schema: Schema): { value: T | undefined; problems: MeshConfigProblem[] } {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, version: '1.2' });
  const problems: MeshConfigProblem[] = document.errors.map((error) => {
    const { line, col } = lines.linePos(error.pos[0]);
    return { severity: 'error', message: `${line}:${col}: not YAML: ${error.message}` };
  });
  if (problems.length > 0) return { value: undefined, problems };
  const value = (document.toJS() ?? {}) as T;
  unquotePorts(value);
  for (const problem of checkSchema(schema, value)) {
    const node = document.getIn([...problem.path], true) as { range?: [number, number, number] } | undefined;
    const { line, col } = lines.linePos(node?.range?.[0] ?? 0);
    problems.push({ severity: problem.severity, message: `${line}:${col}: ${formatPath(problem.path)}: ${problem.message}` });
  }
  return { value: problems.some(({ severity }) => severity === 'error') ? undefined : value, problems };
}

function hostsOf(settings: NonNullable<WrittenMeshConfig['serviceSettings']>, local: boolean): string[] {
  return settings.filter((setting) => (setting.settings?.clusterLocal ?? false) === local).flatMap(({ hosts = [] }) => hosts);
}

/** JSON of protobuf takes numbers in quotes, and Istio's documentation writes the ports of providers so. */
function unquotePorts({ extensionProviders }: { extensionProviders?: unknown }): void {
  for (const provider of Array.isArray(extensionProviders) ? (extensionProviders as unknown[]) : []) {
    for (const settings of Object.values((provider ?? {}) as Record<string, { port?: unknown } | undefined>)) {
      if (typeof settings?.port === 'string' && /^\d{1,5}$/.test(settings.port)) settings.port = Number(settings.port);
    }
  }
}

function settingsOf(written: WrittenMeshConfig): Partial<MeshConfig> {
  const normalization = written.pathNormalization?.normalization;
  const minVersion = written.meshMTLS?.minProtocolVersion;
  const tracing = written.defaultConfig?.tracing;
  const all: { [K in keyof MeshConfig]?: MeshConfig[K] | undefined } = {
    trustDomain: written.trustDomain,
    trustDomainAliases: written.trustDomainAliases,
    rootNamespace: written.rootNamespace,
    outboundTrafficPolicy: written.outboundTrafficPolicy?.mode,
    defaultServiceExportTo: written.defaultServiceExportTo,
    defaultVirtualServiceExportTo: written.defaultVirtualServiceExportTo,
    defaultDestinationRuleExportTo: written.defaultDestinationRuleExportTo,
    enableAutoMtls: written.enableAutoMtls,
    connectTimeout: written.connectTimeout,
    tcpKeepalive: written.tcpKeepalive,
    localityLbSetting: written.localityLbSetting && { enabled: true, ...written.localityLbSetting },
    defaultHttpRetryPolicy: written.defaultHttpRetryPolicy,
    h2UpgradePolicy: written.h2UpgradePolicy,
    pathNormalization: normalization === 'DEFAULT' ? 'BASE' : normalization,
    extensionProviders: written.extensionProviders,
    accessLogFile: written.accessLogFile,
    accessLogEncoding: written.accessLogEncoding,
    accessLogFormat: written.accessLogFormat,
    enableTracing: written.enableTracing,
    // To Istio no share said, and none at all, are one.
    tracingSampling: tracing?.sampling || undefined,
    tracingCustomTags: tracing?.customTags,
    tracingMaxPathTagLength: tracing?.maxPathTagLength,
    tracingIstioTags: tracing?.enableIstioTags,
    tracingZipkinAddress: tracing?.zipkin?.address,
    defaultTracingProviders: written.defaultProviders?.tracing,
    defaultMetricsProviders: written.defaultProviders?.metrics,
    defaultAccessLogProviders: written.defaultProviders?.accessLogging,
    discoverySelectors: written.discoverySelectors,
    clusterLocalHosts: written.serviceSettings && hostsOf(written.serviceSettings, true),
    clusterGlobalHosts: written.serviceSettings && hostsOf(written.serviceSettings, false),
    serviceScopes: written.serviceScopeConfigs,
    meshMtlsMinProtocolVersion: minVersion === 'TLSV1_3' ? 'TLSV1_3' : minVersion === undefined ? undefined : 'TLSV1_2',
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as Partial<MeshConfig>;
}
