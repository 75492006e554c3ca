/** What injection is told: templates, by name, and the values that they use. */
import { parse } from 'yaml';
import { errorMessage, UnderpassError } from '../errors.js';
import { render } from './template.js';
import { BUILTIN_TEMPLATES } from './templates.js';

/** Names and defaults are those of Istio's installation. */
export interface InjectionValues {
  proxyImage: string;
  initImage: string;
  clusterDomain: string;
  trustDomain: string;
  meshId: string;
  clusterId: string;
  network: string;
  /** Where the sidecar's agent finds CA and control plane, over TLS. */
  caAddress: string;
  tokenAudience: string;
  /** MeshConfig's defaultConfig: what an annotation does not set. */
  proxyConfig: Record<string, unknown>;
  resources: Record<string, Record<string, string>>;
  logLevel: string;
  componentLogLevel: string;
  agentLogLevel: string;
  statusPort: number;
  rewriteAppHTTPProbe: boolean;
  /** The proxy as an init container that goes on running (Kubernetes 1.29 and later), unless a pod's annotation says otherwise. */
  nativeSidecars: boolean;
  includeInboundPorts: string;
  excludeInboundPorts: string;
  includeOutboundPorts: string;
  excludeOutboundPorts: string;
  includeIPRanges: string;
  excludeIPRanges: string;
}

export interface InjectionConfig {
  revision: string;
  /** Parsed YAML, see template.ts. */
  templates: Readonly<Record<string, unknown>>;
  defaultTemplates: readonly string[];
  values: InjectionValues;
}

export const DEFAULT_VALUES: InjectionValues = {
  proxyImage: 'docker.io/istio/proxyv2:1.27.0',
  initImage: 'docker.io/istio/proxyv2:1.27.0',
  clusterDomain: 'cluster.local',
  trustDomain: 'cluster.local',
  meshId: 'cluster.local',
  clusterId: 'Kubernetes',
  network: '',
  caAddress: 'istiod.istio-system.svc:15012',
  tokenAudience: 'istio-ca',
  proxyConfig: {},
  resources: { limits: { cpu: '2000m', memory: '1024Mi' }, requests: { cpu: '100m', memory: '128Mi' } },
  logLevel: 'warning',
  componentLogLevel: 'misc:error',
  agentLogLevel: 'default:info',
  statusPort: 15020,
  rewriteAppHTTPProbe: true,
  nativeSidecars: false,
  includeInboundPorts: '*',
  excludeInboundPorts: '',
  includeOutboundPorts: '',
  excludeOutboundPorts: '',
  includeIPRanges: '*',
  excludeIPRanges: '',
};

/** What every expression may name: a template is tried with nothing in it, so that a wrong name shows when it is read. */
export const SCOPE_NAMES = ['annotations', 'app', 'canonical', 'capture', 'labels', 'namespace', 'network', 'proxy', 'revision', 'serviceAccount', 'values', 'workload'] as const;

const builtin = Object.fromEntries(Object.entries(BUILTIN_TEMPLATES).map(([name, text]) => [name, parse(text) as unknown]));

export const DEFAULT_INJECTION: InjectionConfig = { revision: 'default', templates: builtin, defaultTemplates: ['sidecar'], values: DEFAULT_VALUES };

/**
 * Reads an injection file: `templates` (by name, each YAML or text that is YAML), `defaultTemplates`, `values`, `revision`.
 * What it leaves out is as it comes with the product.
 * @throws UnderpassError `UNDERPASS_INJECTION` naming file, field and what was expected
 */
export function parseInjection(text: string, file: string, base: InjectionConfig = DEFAULT_INJECTION): InjectionConfig {
  const fail = (field: string, message: string, cause?: unknown): never => {
    throw new UnderpassError('UNDERPASS_INJECTION', `reading ${file}: ${field ? `${field}: ` : ''}${message}`, { cause });
  };
  const read = (source: string, field: string): unknown => {
    try {
      return parse(source) as unknown;
    } catch (error) {
      return fail(field, errorMessage(error), error);
    }
  };
  const document = read(text, '') ?? {};
  if (!isMapping(document)) return fail('', 'expected a mapping with templates, defaultTemplates, values or revision');
  for (const key of Object.keys(document)) if (!['templates', 'defaultTemplates', 'values', 'revision'].includes(key)) fail(key, 'is no field of it; expected templates, defaultTemplates, values or revision');
  const { templates = {}, defaultTemplates = base.defaultTemplates, values = {}, revision = base.revision } = document;
  if (!isMapping(templates)) return fail('templates', 'expected a mapping of names to templates');
  if (!isMapping(values)) return fail('values', 'expected a mapping');
  if (typeof revision !== 'string' || revision === '') return fail('revision', 'expected a name');
  const all: Record<string, unknown> = { ...base.templates };
  for (const [name, given] of Object.entries(templates)) {
    const template = typeof given === 'string' ? read(given, `templates.${name}`) : given;
    if (!isMapping(template)) return fail(`templates.${name}`, 'expected a part of a pod: metadata and spec');
    try {
      render(template, Object.fromEntries(SCOPE_NAMES.map((known) => [known, {}])));
    } catch (error) {
      fail(`templates.${name}`, errorMessage(error), error);
    }
    all[name] = template;
  }
  if (!Array.isArray(defaultTemplates) || !defaultTemplates.every((name) => typeof name === 'string' && all[name] !== undefined))
    return fail('defaultTemplates', `expected names of templates, of ${Object.keys(all).sort().join(', ')}`);
  const merged: Record<string, unknown> = { ...base.values };
  for (const [name, value] of Object.entries(values)) {
    if (!Object.hasOwn(DEFAULT_VALUES, name)) fail(`values.${name}`, `is no value; expected one of ${Object.keys(DEFAULT_VALUES).join(', ')}`);
    const expected = typeof DEFAULT_VALUES[name as keyof InjectionValues];
    if (typeof value !== expected || value === null) fail(`values.${name}`, `found ${JSON.stringify(value)}, expected a ${expected}`);
    merged[name] = value;
  }
  return { revision, templates: all, defaultTemplates: defaultTemplates as string[], values: merged as unknown as InjectionValues };
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
