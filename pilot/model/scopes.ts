/** What each client sees of one state of the mesh; made when first asked for, dropped as a whole when services or rules change. */
import type { Sidecar } from '../../common/kube/types.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { selects } from './configs.js';
import { egressView, type EgressView } from './egress.js';
import type { Model } from './model.js';
import type { Proxy } from './proxy.js';
import { Scope } from './scope.js';
import type { MeshService } from './types.js';
import { exportedTo, namespacesWithOwnView, withAutoAddresses, withClusterAddresses, type Visibility, type VisibilitySources } from './visibility.js';

export class Scopes {
  readonly #sources: VisibilitySources;
  readonly #ownViews: ReadonlySet<string>;
  readonly #visibilities = new Map<string, Visibility>();
  readonly #egressViews = new Map<string, EgressView>();
  readonly #scopes = new Map<string, Scope>();
  readonly #views = new Map<string, object>();
  readonly #byProxy = new WeakMap<Proxy, Scope>();
  /** Some service has other addresses in other clusters. */
  readonly #dependsOnCluster: boolean;

  constructor(readonly model: Model, servicesByHost: ReadonlyMap<string, readonly MeshService[]>) {
    this.#sources = { mesh: model.mesh, servicesByHost, virtualServices: model.virtualServices };
    this.#ownViews = namespacesWithOwnView(this.#sources);
    this.#dependsOnCluster = model.clusters.several && [...servicesByHost.values()].some((services) => services.some(({ clusterAddresses }) => clusterAddresses));
  }

  of(proxy: Proxy): Scope {
    let scope = this.#byProxy.get(proxy);
    if (!scope) this.#byProxy.set(proxy, (scope = this.#find(proxy)));
    return scope;
  }

  #find(proxy: Proxy): Scope {
    const { namespace, labels, dnsCapture } = proxy;
    const sidecar = proxy.type === 'sidecar' ? this.#sidecarOf(proxy) : undefined;
    const selectors = this.model.rules.selectorKey(namespace, labels);
    const cluster = this.#dependsOnCluster ? this.model.clusters.named(proxy.metadata['CLUSTER_ID']) : '';
    const key = `${cluster && `@${cluster} `}${namespace} ${sidecar?.key ?? ''} ${selectors} ${dnsCapture ? 'dns' : ''}`;
    let scope = this.#scopes.get(key);
    if (!scope) {
      const everywhere = this.#exportedTo(namespace);
      const exported = cluster ? this.#visibility(`@${cluster} ${everywhere.id}`, (id) => withClusterAddresses(everywhere, id, cluster)) : everywhere;
      const all = dnsCapture ? this.#visibility(`${exported.id} dns`, (id) => withAutoAddresses(exported, id)) : exported;
      const view = this.#egressView(all, namespace, sidecar);
      const visibility = view?.visibility ?? all;
      this.#scopes.set(key, (scope = new Scope(this.model, proxy, visibility, sidecar, view?.listeners, selectors, this.#viewOf(namespace, visibility, selectors))));
    }
    return scope;
  }

  #viewOf(namespace: string, visibility: Visibility, selectors: string): object {
    const id = this.model.rules.isOrdinary(namespace, (host) => visibility.service(host)) ? visibility.id : `${visibility.id} ${namespace} ${selectors}`;
    let view = this.#views.get(id);
    if (!view) this.#views.set(id, (view = {}));
    return view;
  }

  /** A Sidecar that selects the workload, else the namespace's own, else the root namespace's. */
  #sidecarOf({ namespace, labels }: Proxy): LoadedObject<Sidecar> | undefined {
    const { configs, mesh } = this.model;
    const own = configs.inNamespace<Sidecar>('Sidecar', namespace);
    const general = ({ object }: LoadedObject<Sidecar>): boolean => !object.spec?.workloadSelector;
    return (
      own.find(({ object }) => object.spec?.workloadSelector && selects(object.spec.workloadSelector.labels, labels)) ??
      own.find(general) ??
      configs.inNamespace<Sidecar>('Sidecar', mesh.rootNamespace).find(general)
    );
  }

  #exportedTo(namespace: string): Visibility {
    const own = this.#ownViews.has(namespace) ? namespace : undefined;
    return this.#visibility(own === undefined ? '*' : `ns:${own}`, (id) => exportedTo(this.#sources, id, own));
  }

  #egressView(all: Visibility, namespace: string, sidecar: LoadedObject<Sidecar> | undefined): EgressView | undefined {
    const egress = sidecar?.object.spec?.egress;
    if (!sidecar || !egress?.length) return undefined;
    const id = `${all.id} ${namespace} ${sidecar.key}`;
    let view = this.#egressViews.get(id);
    if (!view) this.#egressViews.set(id, (view = egressView(all, id, egress, namespace)));
    return view;
  }

  #visibility(id: string, make: (id: string) => Visibility): Visibility {
    let visibility = this.#visibilities.get(id);
    if (!visibility) this.#visibilities.set(id, (visibility = make(id)));
    return visibility;
  }
}
