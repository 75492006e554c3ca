/**
 * The tables of all classes of pods that the kernel learns from, compiled again when anything of their input has changed, under
 * names that no class ever had. A table that comes out as it was keeps its names, so that nothing that was learnt is lost.
 */
import { randomBytes } from 'node:crypto';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import type { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { hashBytes } from '../xds/resource-type.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { compileTable, type LocalPod } from './compile.js';
import type { ClusterView } from './compile-cluster.js';
import type { Caller } from './compile-policy.js';
import type { ClusterSource } from '../proxy/folded-cluster.js';
import type { TableKeeper } from '../proxy/repeat-follower.js';
import type { TableWriter } from './fast-path.js';
import { sharedName, type ClassOf, type DrawHeaders } from './names.js';
import type { HttpTable } from './table.js';

/** A class as it is folded. */
export interface TaughtSource {
  key: string;
  state: Pick<SidecarState, 'listeners' | 'routes'>;
  clusters: ReadonlyMap<string, ClusterSource>;
  /** Why a cluster is Envoy's in any case. */
  reasonOf(source: ClusterSource): string | undefined;
  /** The same object, the same reasons. */
  reasons: unknown;
  caller: Caller;
}

export interface TaughtView {
  classes: readonly TaughtSource[];
  local: ReadonlyMap<string, LocalPod>;
  /** The same text, the same pods. */
  localAs: string;
  teachable: ReadonlySet<string>;
  tunnels: string | undefined;
}

interface Compiled {
  of: { listeners: unknown; routes: unknown; clusters: unknown; teachable: unknown; reasons: unknown; as: string };
  /** Of the table without its names. */
  content: string;
  table: HttpTable;
  version: string;
}

/** Who has the names, and writes the tables: dataplane/kernel-http.ts. */
export interface TableStore extends TableWriter<HttpTable> {
  takeName(): { index: number; generation: number } | undefined;
  /** Gives back the names of a table that is not going to be written. */
  discard(table: HttpTable): void;
}

/** More than there are names, for a table that is compiled to see whether it is another. */
const ENOUGH = 1 << 20;

export class TaughtTables implements TableKeeper, TableWriter<HttpTable> {
  readonly headers: DrawHeaders;
  readonly #store: TableStore;
  readonly #compiled = new Map<string, Compiled>();
  readonly #renewed = new Set<string>();
  readonly #written = new WeakSet<HttpTable>();
  #version = 0;

  constructor(store: TableStore) {
    this.#store = store;
    const suffix = randomBytes(4).toString('hex');
    const endpoint = `x-e-${suffix}`;
    this.headers = { weight: `x-w-${suffix}`, endpoint, other: sharedName({ endpoint }) };
  }

  write(classKey: string, table: HttpTable): number {
    // Its names are the store's from here on, whether it fits or not.
    this.#written.add(table);
    return this.#store.write(classKey, table);
  }

  keep(classKeys: ReadonlySet<string>): void {
    this.#store.keep(classKeys);
  }

  compile(view: TaughtView): void {
    const keys = new Set(view.classes.map(({ key }) => key));
    for (const key of this.#compiled.keys()) if (!keys.has(key)) this.#forget(key);
    for (const source of view.classes) this.#compileClass(source, view);
    this.#renewed.clear();
  }

  /** What was learnt of these classes' requests is not to count any more, although nothing of their tables changes. */
  renew(classKey: string): void {
    this.#renewed.add(classKey);
  }

  table(classKey: string): HttpTable | undefined {
    return this.#compiled.get(classKey)?.table;
  }

  versionOf(classKey: string): string {
    return this.#compiled.get(classKey)?.version ?? '';
  }

  of(classKey: string): ClassOf | undefined {
    return this.table(classKey)?.classOf;
  }

  isTraced(classKey: string): boolean {
    return this.table(classKey)?.isTraced ?? false;
  }

  #compileClass({ key, state, clusters, reasonOf, reasons, caller }: TaughtSource, { local, localAs, teachable, tunnels }: TaughtView): void {
    const before = this.#compiled.get(key);
    const isRenewed = this.#renewed.has(key);
    const of = { listeners: state.listeners, routes: state.routes, clusters, teachable, reasons, as: JSON.stringify([caller, localAs, tunnels]) };
    if (before && !isRenewed && (Object.keys(of) as (keyof Compiled['of'])[]).every((part) => before.of[part] === of[part])) return;
    const views = new Map([...clusters].map(([name, source]) => [name, new SourceView(source, reasonOf)] as const));
    const compiled = (takeName: () => { index: number; generation: number } | undefined): HttpTable => compileTable({
      listeners: [...state.listeners.values()], routes: new Map([...state.routes].map(([name, { message }]) => [name, message])),
      clusters: views, caller, local, teachable, ...(tunnels === undefined ? {} : { tunnels }), headers: this.headers, takeName,
    });
    let at = 0;
    const content = hashBytes(JSON.stringify(compiled(() => (at < ENOUGH ? { index: at++, generation: 0 } : undefined))));
    if (before && !isRenewed && before.content === content) {
      before.of = of;
      return;
    }
    if (before) this.#forget(key);
    this.#compiled.set(key, { of, content, table: compiled(() => this.#store.takeName()), version: `${++this.#version} ${content}` });
  }

  #forget(key: string): void {
    const { table } = this.#compiled.get(key)!;
    this.#compiled.delete(key);
    if (!this.#written.has(table)) this.#store.discard(table);
  }
}

/** Of a mesh's clusters few are read. */
class SourceView implements ClusterView {
  constructor(readonly source: ClusterSource, readonly reasonOf: TaughtSource['reasonOf']) {}

  get cluster(): Cluster {
    return this.source.cluster;
  }

  get assignment(): ClusterLoadAssignment | undefined {
    return this.source.assignment;
  }

  get reason(): string | undefined {
    return this.reasonOf(this.source);
  }
}
