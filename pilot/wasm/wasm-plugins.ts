/**
 * WasmPlugins as HTTP filters of stock Envoy, which loads a module from a file or fetches it over HTTP by its checksum.
 * Images of a registry (`oci://`) are pulled by Istio's own agent, which stock Envoy is not: refused by name.
 */
import type { ReflectMessage } from '@bufbuild/protobuf/reflect';
import { createHash } from 'node:crypto';
import type { Problem } from '../../common/kube/schema.js';
import type { KubeObject, WasmPlugin } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { parse } from '../envoy-filter/registry.js';
import type { PatchContext } from '../envoy-filter/types.js';
import { clusterName } from '../generate/names.js';
import { selects } from '../model/configs.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';

const HTTP_FILTER = 'envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter';
const FETCH_TIMEOUT = '30s';
/** Debian's and most images' list of public authorities, for modules fetched over TLS. */
const SYSTEM_CA = '/etc/ssl/certs/ca-certificates.crt';

export type Phase = 'AUTHN' | 'AUTHZ' | 'STATS' | 'UNSPECIFIED_PHASE';

export interface WasmFilter {
  phase: Phase;
  priority: number;
  message: ReflectMessage;
  /** On which side of which ports it works; no entry: everywhere. */
  match: readonly { mode: string; ports: readonly number[] }[];
  /** A cluster of its own from which the module is fetched. */
  cluster: { name: string; message: ReflectMessage } | undefined;
}

export interface WasmSet {
  key: string;
  filters: readonly WasmFilter[];
}

/** What of a WasmPlugin can't be run by stock Envoy. */
export function checkWasmPlugin(object: KubeObject): Problem[] {
  const { spec } = object as WasmPlugin;
  const problems: Problem[] = [];
  const wrong = (field: string, message: string): void => void problems.push({ path: ['spec', field], severity: 'error', message });
  if (spec.type === 'NETWORK') wrong('type', 'found NETWORK, expected HTTP: network filters are not served by this version');
  const url = parseUrl(spec.url);
  if (!url) wrong('url', `found ${JSON.stringify(spec.url)}, expected file://PATH or http(s)://HOST[:PORT]/PATH`);
  else if (url.scheme === 'oci') wrong('url', `found ${JSON.stringify(spec.url)}, expected file:// or http(s)://: stock Envoy does not pull images`);
  else if (url.scheme !== 'file' && !spec.sha256) wrong('sha256', 'found nothing, a module that is fetched needs its checksum');
  return problems;
}

interface ModuleUrl {
  scheme: 'file' | 'http' | 'https' | 'oci';
  host: string;
  port: number;
  path: string;
}

function parseUrl(written: string): ModuleUrl | undefined {
  if (!/^[a-z]+:\/\//.test(written)) return written === '' ? undefined : { scheme: 'oci', host: '', port: 0, path: written };
  let url: URL;
  try {
    url = new URL(written);
  } catch {
    return undefined;
  }
  const scheme = url.protocol.slice(0, -1);
  if (scheme === 'oci') return { scheme, host: '', port: 0, path: written };
  if (scheme === 'file') return url.pathname.length > 1 ? { scheme, host: '', port: 0, path: decodeURIComponent(url.pathname) } : undefined;
  if (scheme !== 'http' && scheme !== 'https') return undefined;
  return { scheme, host: url.hostname, port: Number(url.port) || (scheme === 'https' ? 443 : 80), path: url.pathname };
}

export class WasmPlugins {
  readonly #made = new WeakMap<LoadedObject, WasmFilter>();
  constructor(readonly model: Model) {}

  setFor(proxy: Proxy, labels: Readonly<Record<string, string>>): WasmSet {
    const { configs, mesh } = this.model;
    const chosen: LoadedObject<WasmPlugin>[] = [];
    for (const namespace of new Set([mesh.rootNamespace, proxy.namespace])) {
      for (const loaded of configs.inNamespace<WasmPlugin>('WasmPlugin', namespace)) {
        const { selector, targetRef, targetRefs } = loaded.object.spec;
        // Attached to a Gateway of the Gateway API by reference, or to workloads by labels.
        const references = targetRefs ?? (targetRef ? [targetRef] : []);
        const isMeant = references.length > 0 ? references.some(({ kind, name }) => kind === 'Gateway' && labels['gateway.networking.k8s.io/gateway-name'] === name) : selects(selector?.matchLabels, labels);
        if (isMeant && checkWasmPlugin(loaded.object).length === 0) chosen.push(loaded);
      }
    }
    if (chosen.length === 0) return { key: '', filters: [] };
    const key = createHash('sha1').update(JSON.stringify(chosen.map(({ key: name, object }) => [name, object.spec]))).digest('base64url');
    // Of one phase the higher priority comes first.
    return { key, filters: chosen.map((loaded) => this.#filterOf(loaded)).sort((a, b) => b.priority - a.priority) };
  }

  #filterOf(loaded: LoadedObject<WasmPlugin>): WasmFilter {
    let filter = this.#made.get(loaded);
    if (!filter) this.#made.set(loaded, (filter = makeFilter(this.model, loaded.object)));
    return filter;
  }
}

function makeFilter(model: Model, { spec, metadata }: WasmPlugin): WasmFilter {
  const url = parseUrl(spec.url)!;
  const name = `${metadata.namespace}.${metadata.name}`;
  const source = url.scheme === 'file' ? undefined : fetchCluster(model, url);
  const env = spec.vmConfig?.env ?? [];
  const value = {
    name,
    typed_config: {
      '@type': 'type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm',
      config: {
        name,
        root_id: spec.pluginName ?? '',
        fail_open: spec.failStrategy === 'FAIL_OPEN',
        vm_config: {
          runtime: 'envoy.wasm.runtime.v8',
          code: source ? { remote: { http_uri: { uri: spec.url, cluster: source.name, timeout: FETCH_TIMEOUT }, sha256: spec.sha256 } } : { local: { filename: url.path } },
          environment_variables: {
            host_env_keys: env.filter(({ valueFrom }) => valueFrom === 'HOST').map(({ name: key }) => key),
            key_values: Object.fromEntries(env.filter(({ valueFrom }) => valueFrom !== 'HOST').map(({ name: key, value: text }) => [key, text ?? ''])),
          },
        },
        // Plugins get their configuration as JSON text, as from Istio.
        ...(spec.pluginConfig ? { configuration: { '@type': 'type.googleapis.com/google.protobuf.StringValue', value: JSON.stringify(spec.pluginConfig) } } : {}),
      },
    },
  };
  return {
    phase: spec.phase ?? 'UNSPECIFIED_PHASE',
    priority: spec.priority ?? 0,
    message: parse(HTTP_FILTER, value),
    match: (spec.match ?? []).map(({ mode, ports }) => ({ mode: mode ?? 'CLIENT_AND_SERVER', ports: (ports ?? []).map(({ number }) => number) })),
    cluster: source?.message && { name: source.name, message: source.message },
  };
}

/** A service of the mesh is reached by its own cluster, another host by one made for it. */
function fetchCluster(model: Model, { scheme, host, port }: ModuleUrl): { name: string; message: ReflectMessage | undefined } {
  if (model.services.get(host)?.ports.some((candidate) => candidate.port === port)) return { name: clusterName(port, '', host), message: undefined };
  const name = `wasm|${scheme}|${host}|${port}`;
  const tls = {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext',
      sni: host,
      common_tls_context: { validation_context: { trusted_ca: { filename: SYSTEM_CA }, match_typed_subject_alt_names: [{ san_type: 'DNS', matcher: { exact: host } }] } },
    },
  };
  const message = parse('envoy.config.cluster.v3.Cluster', {
    name,
    type: 'STRICT_DNS',
    connect_timeout: '10s',
    load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: host, port_value: port } } } }] }] },
    ...(scheme === 'https' ? { transport_socket: tls } : {}),
  });
  return { name, message };
}

/** Whether a plugin works on this side of this port. */
export function worksOn({ match }: WasmFilter, context: PatchContext, port: number | undefined): boolean {
  if (match.length === 0) return true;
  const side = context === 'SIDECAR_INBOUND' ? 'SERVER' : 'CLIENT';
  return match.some(({ mode, ports }) => (mode === side || mode === 'CLIENT_AND_SERVER' || mode === 'UNDEFINED') && (ports.length === 0 || (port !== undefined && ports.includes(port))));
}
