/** The annotations of a pod that change how it is injected, checked: a wrong one refuses the pod rather than half-capture it. */
import { parse } from 'yaml';
import { errorMessage, UnderpassError } from '../errors.js';
import { isRange } from '../istio-iptables-arguments.js';
import type { InjectionValues } from './config.js';

const TRAFFIC = 'traffic.sidecar.istio.io';
const PROXY_CONFIG = 'proxy.istio.io/config';

export function annotationError(name: string, found: string, expected: string): UnderpassError {
  return new UnderpassError('UNDERPASS_INJECTION', `metadata.annotations[${name}]: found ${JSON.stringify(found)}, expected ${expected}`);
}

const words = (text: string): string[] => text.split(',').map((word) => word.trim()).filter(Boolean);
const isPort = (word: string): boolean => /^\d+$/.test(word) && Number(word) <= 65535;

type Check = [valid: (text: string) => boolean, expected: string];
const ports: Check = [(text) => words(text).every(isPort), 'ports such as 8080,9090'];
const portsOrAll: Check = [(text) => text === '*' || words(text).every(isPort), '* or ports such as 8080,9090'];
const ranges: Check = [(text) => words(text).every(isRange), 'ranges such as 10.0.0.0/8'];
const rangesOrAll: Check = [(text) => text === '*' || words(text).every(isRange), '* or ranges such as 10.0.0.0/8'];
const bool: Check = [(text) => ['true', 'false'].includes(text), 'true or false'];
const count: Check = [(text) => /^\d+$/.test(text), 'a whole number'];
const quantity: Check = [(text) => /^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$/.test(text), 'a quantity such as 100m or 128Mi'];

const CHECKS: Readonly<Record<string, Check>> = {
  [`${TRAFFIC}/includeInboundPorts`]: portsOrAll,
  [`${TRAFFIC}/excludeInboundPorts`]: ports,
  [`${TRAFFIC}/includeOutboundPorts`]: ports,
  [`${TRAFFIC}/excludeOutboundPorts`]: ports,
  [`${TRAFFIC}/includeOutboundIPRanges`]: rangesOrAll,
  [`${TRAFFIC}/excludeOutboundIPRanges`]: ranges,
  [`${TRAFFIC}/excludeInterfaces`]: [(text) => words(text).every((word) => /^[A-Za-z0-9_.+@-]{1,15}$/.test(word)), "interfaces' names"],
  'sidecar.istio.io/interceptionMode': [(text) => ['REDIRECT', 'TPROXY', 'NONE'].includes(text), 'REDIRECT, TPROXY or NONE'],
  'sidecar.istio.io/rewriteAppHTTPProbers': bool,
  'sidecar.istio.io/nativeSidecar': bool,
  'sidecar.istio.io/proxyCPU': quantity,
  'sidecar.istio.io/proxyCPULimit': quantity,
  'sidecar.istio.io/proxyMemory': quantity,
  'sidecar.istio.io/proxyMemoryLimit': quantity,
  'status.sidecar.istio.io/port': ports,
  'readiness.status.sidecar.istio.io/initialDelaySeconds': count,
  'readiness.status.sidecar.istio.io/periodSeconds': count,
  'readiness.status.sidecar.istio.io/failureThreshold': count,
};

type Annotations = Readonly<Record<string, string>>;

/** @throws UnderpassError `UNDERPASS_INJECTION` naming the annotation, what it says and what was expected */
export function checkAnnotations(annotations: Annotations): void {
  for (const [name, [valid, expected]] of Object.entries(CHECKS)) {
    const text = annotations[name];
    if (text !== undefined && !valid(text)) throw annotationError(name, text, expected);
  }
}

/** The arguments of Istio's init container; undefined when nothing is to be captured. */
export function captureArguments(annotations: Annotations, values: InjectionValues, interceptionMode: string): string[] | undefined {
  if (interceptionMode === 'NONE') return undefined;
  const said = (name: string): string | undefined => annotations[`${TRAFFIC}/${name}`];
  const [status, excluded] = [annotations['status.sidecar.istio.io/port'] ?? String(values.statusPort), said('excludeInboundPorts') ?? values.excludeInboundPorts];
  const exclude = [...words(excluded), ...(status === '0' || status === '' || words(excluded).includes(status) ? [] : [status])];
  const optional = (flag: string, text: string | undefined): string[] => (text === undefined || text === '' ? [] : [flag, text]);
  return [
    'istio-iptables',
    ...['-p', '15001', '-z', '15006', '-u', '1337', '-m', interceptionMode],
    ...['-i', said('includeOutboundIPRanges') ?? values.includeIPRanges, '-x', said('excludeOutboundIPRanges') ?? values.excludeIPRanges],
    ...['-b', said('includeInboundPorts') ?? values.includeInboundPorts, '-d', ['15090', '15021', ...exclude].join(',')],
    ...optional('-q', said('includeOutboundPorts') ?? values.includeOutboundPorts),
    ...optional('-o', said('excludeOutboundPorts') ?? values.excludeOutboundPorts),
    ...optional('-c', said('excludeInterfaces')),
    `--log_output_level=${values.agentLogLevel}`,
  ];
}

/** ProxyConfig of the mesh with the pod's own over it, `proxyMetadata` merged. */
export function proxyConfig(annotations: Annotations, values: InjectionValues): Record<string, unknown> {
  const text = annotations[PROXY_CONFIG];
  if (text === undefined) return values.proxyConfig;
  let own: unknown;
  try {
    own = parse(text);
  } catch (error) {
    throw annotationError(PROXY_CONFIG, text, `YAML: ${errorMessage(error)}`);
  }
  if (typeof own !== 'object' || own === null || Array.isArray(own)) throw annotationError(PROXY_CONFIG, text, "a mapping of ProxyConfig's fields");
  const merged: Record<string, unknown> = { ...values.proxyConfig, ...own };
  const metadata = { ...(values.proxyConfig['proxyMetadata'] as object | undefined), ...((own as Record<string, unknown>)['proxyMetadata'] as object | undefined) };
  return Object.keys(metadata).length ? { ...merged, proxyMetadata: metadata } : merged;
}

/** Volumes and mounts that an annotation adds to the proxy: a JSON object by name. */
export function userVolumes(annotations: Annotations, name: 'userVolume' | 'userVolumeMount'): Record<string, unknown>[] {
  const key = `sidecar.istio.io/${name}`;
  const text = annotations[key];
  if (text === undefined) return [];
  try {
    const found = JSON.parse(text) as unknown;
    if (Array.isArray(found)) return found as Record<string, unknown>[];
    if (typeof found === 'object' && found !== null) return Object.entries(found).map(([volume, fields]) => ({ name: volume, ...(fields as object) }));
  } catch {
    // said below
  }
  throw annotationError(key, text, 'a JSON object of volumes by their names');
}

/** All from the annotations when there is one, else the installation's. */
export function proxyResources(annotations: Annotations, values: InjectionValues): Record<string, Record<string, string>> {
  const said = (name: string): string | undefined => annotations[`sidecar.istio.io/${name}`];
  const group = (cpu: string | undefined, memory: string | undefined): Record<string, string> => ({ ...(cpu ? { cpu } : {}), ...(memory ? { memory } : {}) });
  const requests = group(said('proxyCPU'), said('proxyMemory'));
  const limits = group(said('proxyCPULimit'), said('proxyMemoryLimit'));
  if (Object.keys(requests).length + Object.keys(limits).length === 0) return values.resources;
  return { ...(Object.keys(limits).length ? { limits } : {}), ...(Object.keys(requests).length ? { requests } : {}) };
}
