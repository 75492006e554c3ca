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
import { policiesFor, targetRefsOf, type PolicyTarget } from '../generate/security/targets.js';
import type { Model } from '../model/model.js';
import type { Scope } from '../model/scope.js';

const KIND = 'WasmPlugin';
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
  /** At a waypoint: the service whose requests it is for; undefined: those of all. */
  host?: string;
  /** The name of the cluster from which the module is fetched, if it is. */
  source: string | undefined;
  /** That cluster, where it is one of the plugin's own. */
  cluster: ReflectMessage | undefined;
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
  /** By plugin and the cluster that its module is fetched from. */
  readonly #made = new WeakMap<LoadedObject, Map<string, WasmFilter>>();
  constructor(readonly model: Model) {}

  /** @param scope of the same workload */
  setFor(target: PolicyTarget, scope: Scope): WasmSet {
    const chosen = policiesFor<WasmPlugin>(this.model, KIND, target).filter(({ object }) => checkWasmPlugin(object).length === 0);
    if (chosen.length === 0) return { key: '', filters: [] };
    const filters = chosen.map((loaded) => this.#filterOf(loaded, scope));
    const key = createHash('sha1').update(JSON.stringify(chosen.map(({ key: name, object }, index) => [name, object.spec, filters[index]!.source]))).digest('base64url');
    // Of one phase the higher priority comes first.
    return { key, filters: filters.sort((a, b) => b.priority - a.priority) };
  }

  /** Of a waypoint those that name a service of it. @param targets of its services, by host */
  ofServices(targets: Iterable<readonly [string, PolicyTarget]>, scope: Scope): WasmSet {
    const sets = [...targets].flatMap(([host, target]) => {
      const own = policiesFor<WasmPlugin>(this.model, KIND, target).filter(({ object }) => namesService(object) && checkWasmPlugin(object).length === 0);
      return own.length > 0 ? [{ host, own }] : [];
    });
    const filters = sets.flatMap(({ host, own }) => own.map((loaded) => ({ ...this.#filterOf(loaded, scope), host })));
    const key = sets.map(({ host, own }) => `${host} ${JSON.stringify(own.map(({ key: name, object }) => [name, object.spec]))}`).join();
    return { key: key && createHash('sha1').update(`${key} ${filters.map(({ source }) => source).join()}`).digest('base64url'), filters: filters.sort((a, b) => b.priority - a.priority) };
  }

  /** Whether modules of plugins in these namespaces come from one of these hosts. */
  fetchesFrom(namespaces: readonly string[], hosts: ReadonlySet<string>): boolean {
    if (hosts.size === 0) return false;
    return namespaces.some((namespace) => this.model.configs.inNamespace<WasmPlugin>(KIND, namespace).some(({ object }) => hosts.has(parseUrl(object.spec.url)?.host ?? '')));
  }

  #filterOf(loaded: LoadedObject<WasmPlugin>, scope: Scope): WasmFilter {
    const url = parseUrl(loaded.object.spec.url)!;
    const source = url.scheme === 'file' ? undefined : fetchCluster(scope, url);
    let made = this.#made.get(loaded);
    if (!made) this.#made.set(loaded, (made = new Map()));
    const key = source?.name ?? '';
    let filter = made.get(key);
    if (!filter) made.set(key, (filter = makeFilter(loaded.object, url, source)));
    return filter;
  }
}

function namesService(object: WasmPlugin): boolean {
  return targetRefsOf(object).some(({ kind }) => kind === 'Service' || kind === 'ServiceEntry');
}

function makeFilter({ spec, metadata }: WasmPlugin, url: ModuleUrl, source: FetchCluster | undefined): WasmFilter {
  const name = `${metadata.namespace}.${metadata.name}`;
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
    source: source?.name,
    cluster: source?.message,
  };
}

interface FetchCluster {
  name: string;
  /** Absent for a service's own. */
  message: ReflectMessage | undefined;
}

/** A service that the workload sees is reached by its own cluster, another host by one made for it. */
function fetchCluster(scope: Scope, { scheme, host, port }: ModuleUrl): FetchCluster {
  if (scope.service(host)?.ports.some((candidate) => candidate.port === port)) return { name: clusterName(port, '', host), message: undefined };
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
  const side = context === 'SIDECAR_INBOUND' || context === 'WAYPOINT' ? 'SERVER' : 'CLIENT';
  return match.some(({ mode, ports }) => (mode === side || mode === 'CLIENT_AND_SERVER' || mode === 'UNDEFINED') && (ports.length === 0 || (port !== undefined && ports.includes(port))));
}
