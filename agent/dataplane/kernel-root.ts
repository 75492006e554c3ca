/**
 * The hooks of pods whose container runtime gives them no cgroup v2 directory: one set of them at the root of the hierarchy, which
 * tells these pods by their network namespaces (bpf/root.h). It is there while there is such a pod; its programs are loaded for the
 * first one, since most nodes have none.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { cgroup2Root, cgroupId, type BpfLink, type BpfObject } from '../../native/index.js';
import type { AuditedLink } from './kernel-audit.js';

/** In the order in which they are attached: the sockets' state comes before capture. */
export const ROOT_PROGRAMS = [
  'root_sockops', 'root_egress', 'root_ingress', 'root_getsockopt', 'root_getpeername4', 'root_getpeername6', 'root_getsockname4', 'root_getsockname6', 'root_connect4', 'root_connect6',
] as const;
const PINS = 'links/root';
/** Of a former agent with other maps: who opens a connection, and whether it may come, holds until these are replaced. */
const KEPT: ReadonlySet<string> = new Set(['root_sockops', 'root_ingress']);

const CONTAINER_BY_NETNS = 1n << 63n;

/** The root of the hierarchy, and its id; undefined where there is none. */
export function hierarchyRoot(): { path: string; id: bigint } | undefined {
  try {
    const path = cgroup2Root();
    return { path, id: cgroupId(path) };
  } catch {
    return undefined;
  }
}

/** What the programs of a pod at the root have in the place of their container's cgroup. */
export const containerByNetns = (netnsCookie: bigint): bigint => BigInt.asUintN(64, CONTAINER_BY_NETNS | netnsCookie);

export class RootHooks implements Closable {
  readonly #load: () => BpfObject;
  readonly #pinDir: string | null;
  readonly #logger: Logger;
  #object: BpfObject | undefined;
  #links: BpfLink[] = [];

  /** @param load gives an object with these programs alone, and the maps of all others */
  constructor(load: () => BpfObject, pinDir: string | null, logger: Logger) {
    this.#load = load;
    this.#pinDir = pinDir;
    this.#logger = logger;
  }

  get isAttached(): boolean {
    return this.#links.length === ROOT_PROGRAMS.length;
  }

  /** @throws KernelError when the kernel refuses one of them; those before it stay, until `detach` */
  attach(): void {
    if (this.isAttached) return;
    this.#object ??= this.#load();
    const { path } = hierarchyRoot()!;
    const links: BpfLink[] = [];
    try {
      for (const program of ROOT_PROGRAMS) links.push(this.#object.attachCgroup(program, path, this.#pinDir === null ? null : `${PINS}/${program}`));
    } catch (error) {
      for (const link of links) link.close();
      throw error;
    }
    for (const link of this.#links) link.close();
    this.#links = links;
    this.#logger.info({ cgroup: path }, 'the hooks of pods without a cgroup of their own are on the root of the hierarchy');
  }

  *audited(): Generator<AuditedLink> {
    const [object, root] = [this.#object, hierarchyRoot()];
    if (this.#pinDir === null || !this.isAttached || !object || !root) return;
    for (const [at, program] of ROOT_PROGRAMS.entries()) {
      const attach = (): void => {
        const former = this.#links[at];
        this.#links[at] = object.attachCgroup(program, root.path, `${PINS}/${program}`);
        former?.close();
      };
      yield { name: `root ${program}`, programId: object.programId(program), pin: join(this.#pinDir, PINS, program), targetId: root.id, attach };
    }
  }

  detach(): void {
    for (const link of this.#links.splice(0)) link.close();
    if (this.#pinDir !== null) rmSync(join(this.#pinDir, PINS), { recursive: true, force: true });
    this.#object?.close();
    this.#object = undefined;
  }

  /**
   * Gives what a former agent attached these programs.
   * @param isNeeded there are such pods in the maps
   * @param areMapsNew none of the maps is a former agent's
   */
  adopt(isNeeded: boolean, areMapsNew: boolean): void {
    if (this.#pinDir === null) return;
    const folder = join(this.#pinDir, PINS);
    if (areMapsNew && existsSync(folder)) {
      for (const pin of readdirSync(folder)) if (!KEPT.has(pin)) rmSync(join(folder, pin));
    } else if (!isNeeded) {
      rmSync(folder, { recursive: true, force: true });
    } else {
      try {
        this.attach();
      } catch (error) {
        // What the former agent attached goes on; the next pod tries again.
        this.#logger.warn({ reason: errorMessage(error) }, 'the hooks on the root of the cgroup hierarchy could not be given this version');
      }
    }
  }

  close(): void {
    for (const link of this.#links.splice(0)) link.close();
    this.#object?.close();
    this.#object = undefined;
  }
}
