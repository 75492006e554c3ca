/** What can only be judged with the other objects at hand: what does an object refer to, and what stands in its way? */
import { nearest, type Problem } from '../../common/kube/schema.js';
import type { AuthorizationPolicy, ConfigMap, DestinationRule, Gateway, HTTPRoute, KubeGateway, KubeObject, Secret, ServiceEntry, VirtualService } from '../../common/kube/types.js';
import { errorAt, type LoadedObject, type ValidationError } from '../../common/kube/yaml.js';
import { checkEnvoyFilter } from '../envoy-filter/compile.js';
import { readMeshConfig } from '../mesh-config/mesh-config.js';
import { checkWasmPlugin } from '../wasm/wasm-plugins.js';
import { checkSecret } from './checks/certificates.js';
import { checkGateway, checkKubeGateway, checkKubeRoute, isGatewayApi } from './checks/gateways.js';
import { checkDestinationRule, checkVirtualService } from './checks/routes.js';
import { checkOnlyOne, checkSelector, checkServiceEntry, SELECTING } from './checks/workloads.js';
import { MeshIndex, View } from './mesh-index.js';

export interface ReferenceOptions {
  /** Where policies are for workloads of all namespaces. */
  rootNamespace?: string;
  /** Names of the extension providers that action CUSTOM can ask; undefined where the MeshConfig is not known. */
  authorizers?: ReadonlySet<string>;
}

const ROUTES: ReadonlySet<string> = new Set(['HTTPRoute', 'GRPCRoute', 'TLSRoute', 'TCPRoute']);

/** Kinds that nothing is asked of here; of them there may be very many. */
export function needsCheck({ kind }: KubeObject): boolean {
  return kind === 'VirtualService' || kind === 'DestinationRule' || kind === 'Gateway' || kind === 'Secret' || ROUTES.has(kind) || SELECTING.has(kind);
}

/** What is wrong with an object that takes more than its schema to see, but no other objects. */
export function checkAlone(object: KubeObject): Problem[] {
  if (object.kind === 'WasmPlugin') return checkWasmPlugin(object);
  if (object.kind === 'EnvoyFilter') return checkEnvoyFilter(object);
  if (object.kind === 'Secret') return checkSecret(object as Secret);
  if (object.kind === 'ConfigMap' && object.metadata.name === MESH_CONFIG_MAP) return checkMeshConfigMap(object as ConfigMap);
  return [];
}

/** The settings of the whole mesh; what is in force of them is not admission's to say. */
const MESH_CONFIG_MAP = 'istio';

function checkMeshConfigMap({ data }: ConfigMap): Problem[] {
  if (data?.['mesh'] === undefined) return [];
  return readMeshConfig(data['mesh']).problems.map(({ severity, message }) => ({ path: ['data', 'mesh'], severity, message }));
}

/** Everything that is wrong with an object in the company of those that `view` shows. */
export function checkTogether(view: View, { key, object }: LoadedObject, { rootNamespace = 'istio-system', authorizers }: ReferenceOptions = {}): Problem[] {
  const problems = SELECTING.has(object.kind) ? checkSelector(view, object, rootNamespace) : [];
  if (object.kind === 'VirtualService') problems.push(...checkVirtualService(view, key, object as VirtualService));
  else if (object.kind === 'DestinationRule') problems.push(...checkDestinationRule(view, key, object as DestinationRule));
  else if (object.kind === 'ServiceEntry') problems.push(...checkServiceEntry(view, key, object as ServiceEntry));
  else if (object.kind === 'Sidecar' || object.kind === 'PeerAuthentication') problems.push(...checkOnlyOne(view, key, object));
  else if (object.kind === 'Gateway') problems.push(...(isGatewayApi(object) ? checkKubeGateway(view, object as KubeGateway) : checkGateway(view, key, object as Gateway)));
  else if (object.kind === 'AuthorizationPolicy' && authorizers) problems.push(...checkProvider(object as AuthorizationPolicy, authorizers));
  else if (ROUTES.has(object.kind)) problems.push(...checkKubeRoute(view, object as HTTPRoute));
  return problems;
}

function checkProvider({ spec }: AuthorizationPolicy, authorizers: ReadonlySet<string>): Problem[] {
  const name = spec?.provider?.name;
  if (!name || authorizers.has(name)) return [];
  const near = nearest(name, authorizers);
  const known = authorizers.size > 0 ? `expected one of ${[...authorizers].join(', ')}` : 'but the MeshConfig has none';
  return [{ path: ['spec', 'provider', 'name'], severity: 'warning', about: 'missing', message: `found "${name}", ${known}${near ? ` (did you mean ${near}?)` : ''}: what the rules match is refused until it is there` }];
}

/** A fixed set of objects, each of which can be checked against the others. */
export class References {
  readonly #index: MeshIndex;

  constructor(objects: Iterable<LoadedObject>, readonly clusterDomain: string, readonly options: ReferenceOptions = {}) {
    this.#index = new MeshIndex(clusterDomain);
    for (const loaded of objects) this.#index.set(loaded.key, loaded);
  }

  /** Everything that is wrong with one object in this company. */
  check(loaded: LoadedObject): ValidationError[] {
    return [...checkAlone(loaded.object), ...checkTogether(new View(this.#index), loaded, this.options)].map((problem) => errorAt(loaded, problem));
  }
}
