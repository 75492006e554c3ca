/** Where the node is, by what WDS says of each of its workloads; where they disagree, nobody's word is taken for the others'. */
import { NetworkMode, type Workload } from '../../proto/generated/istio/workload/workload.js';
import type { Place } from '../workloads/preference.js';

export class NodePlace {
  /** By uid. */
  readonly #workloads = new Map<string, Place>();
  readonly #nodeName: string;
  #current: { place: Place | undefined; network: string; isOneNetwork: boolean; disagreement: string | undefined; key: string } | undefined;

  constructor(nodeName: string) {
    this.#nodeName = nodeName;
  }

  set(uid: string, workload: Workload): void {
    const { node, network, cluster_id, locality, network_mode } = workload;
    // What shares the node's own network is in no pod's, and its connections are not the mesh's.
    if (node !== this.#nodeName || node === '' || network_mode === NetworkMode.HOST_NETWORK) return;
    this.#workloads.set(uid, { node, network, cluster_id, locality });
    this.#current = undefined;
  }

  delete(uid: string): void {
    if (this.#workloads.delete(uid)) this.#current = undefined;
  }

  /** The one that most of the node's workloads are on, of several such the first by name; without any the unnamed one. */
  get network(): string {
    return this.#now.network;
  }

  get isOneNetwork(): boolean {
    return this.#now.isOneNetwork;
  }

  /** Of all of them but for the network, which is that of most; undefined where there are none, or they disagree. */
  get place(): Place | undefined {
    return this.#now.place;
  }

  /** What they disagree about. */
  get disagreement(): string | undefined {
    return this.#now.disagreement;
  }

  /** Another one when anything of this is. */
  get key(): string {
    return this.#now.key;
  }

  get #now() {
    return (this.#current ??= this.#look());
  }

  #look() {
    const all = [...this.#workloads.values()];
    const distinct = (of: (place: Place) => string): string[] => [...new Set(all.map(of))].sort();
    const networks = distinct(({ network }) => network);
    const clusters = distinct(({ cluster_id }) => cluster_id);
    const localities = distinct(({ locality }) => [locality?.region, locality?.zone, locality?.subzone].map((part) => part ?? '').join('/'));
    const count = (network: string): number => all.filter((place) => place.network === network).length;
    const [network = ''] = [...networks].sort((a, b) => count(b) - count(a));
    const [kind, several] = [['clusters', clusters], ['localities', localities]].find(([, values]) => values!.length > 1) as [string, string[]] | undefined ?? [];
    const disagreement = several && `the node's pods are of several ${kind}: ${several.map((each) => each || '(none)').join(', ')}`;
    return { place: disagreement === undefined && all[0] ? { ...all[0], network } : undefined, network, isOneNetwork: networks.length <= 1, disagreement, key: JSON.stringify([network, networks, clusters, localities, all.length > 0]) };
  }
}
