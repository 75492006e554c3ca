/**
 * Where kubelet and the container runtime have put the pods of this node. Nothing in the API says it: a pod's cgroup is found
 * by its UID in the directory's name, its network namespace by the processes in that cgroup. On a host with cgroup v1 a runtime may
 * put them into v1's hierarchies alone: such a pod's cgroup v2 directory is the root of the hierarchy.
 */
import { mkdirSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { basename, join, relative } from 'node:path';
import { cgroup1Roots, cgroup2Root, cgroupProcesses } from '../../common/cgroup.js';
import { errorCode } from '../../common/errors.js';

export interface PodPlace {
  /** Absolute cgroup v2 directory of the pod, its containers' below it; the root of the hierarchy: none is the pod's own. */
  cgroup: string;
  /** A path that leads to the pod's network namespace: a name of the container runtime's, or a process's, which ends with it. */
  netns: string;
}

export interface PodPlacesOptions {
  cgroupRoot?: string;
  /** Where container runtimes bind namespaces to names. */
  namespacesDir?: string;
  /** Mount points of cgroup v1, if there are any. */
  v1Roots?: readonly string[];
  /** Whether the runtime is taken to give pods v2 directories, until one was seen. runc does where v2 is mounted beside v1's as `unified`. */
  makesV2?: boolean;
}

/** `kubepods/burstable/podUID`, and by systemd's driver `kubepods-burstable-podUID.slice`, where `-` of the UID is `_`. Pods out of files have a hash for one. */
const POD_DIRECTORY = /^(?:[a-z]+(?:-[a-z]+)*-)?pod([0-9a-f]{32}|[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice)?$/;
/** Deeper than any kubelet puts its pods, also one that runs in a container itself. */
const MAX_DEPTH = 8;

/** @returns the UID in the name of a pod's cgroup; undefined: it is none */
export function podUidOf(directory: string): string | undefined {
  return POD_DIRECTORY.exec(directory)?.[1]?.replaceAll('_', '-');
}

export class PodPlaces {
  readonly #root: string;
  readonly #namespacesDir: string;
  readonly #v1Roots: readonly string[];
  #makesV2: boolean;

  constructor({ cgroupRoot = cgroup2Root(), namespacesDir = '/run/netns', v1Roots = cgroup1Roots(), makesV2 = basename(cgroupRoot) === 'unified' }: PodPlacesOptions = {}) {
    this.#root = cgroupRoot;
    this.#makesV2 = makesV2;
    this.#v1Roots = v1Roots;
    this.#namespacesDir = namespacesDir;
  }

  /** Whether a pod may come to run elsewhere than was prepared. */
  get mayDiffer(): boolean {
    return this.#v1Roots.length > 0;
  }

  /** Of those of these pods that have a cgroup with a process in it: before the sandbox runs there is none. By UID. */
  find(uids: ReadonlySet<string>): Map<string, PodPlace> {
    const places = new Map<string, PodPlace>();
    const cgroups = this.#cgroups(uids);
    const missing = new Set(uids);
    if (cgroups.size === 0 && !this.mayDiffer) return places;
    const names = this.#namesOfNamespaces();
    for (const [uid, cgroup] of cgroups) {
      const netns = namespaceOf(cgroupProcesses(cgroup), names);
      if (netns === undefined) continue;
      places.set(uid, { cgroup, netns });
      missing.delete(uid);
      this.#makesV2 = true;
    }
    for (const root of this.#v1Roots) {
      if (missing.size === 0) break;
      for (const [uid, cgroup] of this.#cgroups(missing, root)) {
        const netns = namespaceOf(cgroupProcesses(cgroup).filter((pid) => isOutside(pid, uid)), names);
        if (netns === undefined) continue;
        places.set(uid, { cgroup: this.#root, netns });
        missing.delete(uid);
        this.#makesV2 = false;
      }
    }
    return places;
  }

  /**
   * The cgroup of a pod of which nothing runs yet. Kubelet has made it by then; on a host with both hierarchies only in v1's. Where
   * the runtime will make v2's under the same path it is made before, here; else it is the root, as it is of who has none.
   */
  prepare(uid: string): string | undefined {
    const wanted = new Set([uid]);
    const known = this.#cgroups(wanted).get(uid);
    if (known !== undefined) return known;
    for (const root of this.#v1Roots) {
      const found = this.#cgroups(wanted, root).get(uid);
      if (found === undefined) continue;
      if (!this.#makesV2) return this.#root;
      const path = join(this.#root, relative(root, found));
      mkdirSync(path, { recursive: true });
      return path;
    }
    return undefined;
  }

  #cgroups(uids: ReadonlySet<string>, root = this.#root): Map<string, string> {
    const found = new Map<string, string>();
    let level = [root];
    for (let depth = 0; depth < MAX_DEPTH && level.length > 0 && found.size < uids.size; depth++) {
      const next: string[] = [];
      for (const directory of level) {
        for (const name of subdirectories(directory)) {
          const uid = podUidOf(name);
          if (uid === undefined) next.push(join(directory, name));
          else if (uids.has(uid)) found.set(uid, join(directory, name));
        }
      }
      level = next;
    }
    return found;
  }

  /** By the namespace's inode. */
  #namesOfNamespaces(): Map<number, string> {
    const names = new Map<number, string>();
    for (const name of entries(this.#namespacesDir)) {
      const path = join(this.#namespacesDir, name);
      const inode = inodeOf(path);
      if (inode !== undefined) names.set(inode, path);
    }
    return names;
  }
}

/** Whether a process of the pod is in no cgroup v2 directory that is named by it. */
function isOutside(pid: number, uid: string): boolean {
  const own = ifThere(() => /^0::(.*)$/m.exec(readFileSync(`/proc/${pid}/cgroup`, 'utf8'))?.[1] ?? '/', undefined);
  return own !== undefined && !own.split('/').some((name) => podUidOf(name) === uid);
}

function namespaceOf(pids: readonly number[], names: ReadonlyMap<number, string>): string | undefined {
  for (const pid of pids) {
    const path = `/proc/${pid}/ns/net`;
    const inode = inodeOf(path);
    if (inode !== undefined) return names.get(inode) ?? path;
  }
  return undefined;
}

function subdirectories(directory: string): string[] {
  return ifThere(() => readdirSync(directory, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? entry.name : [])), []);
}

function entries(directory: string): string[] {
  return ifThere(() => readdirSync(directory), []);
}

function inodeOf(path: string): number | undefined {
  return ifThere<number | undefined>(() => statSync(path).ino, undefined);
}

/** Pods come and go while they are looked for. */
function ifThere<T>(read: () => T, otherwise: T): T {
  try {
    return read();
  } catch (error) {
    const code = errorCode(error);
    if (code === 'ENOENT' || code === 'ESRCH' || code === 'ENODEV') return otherwise;
    throw error;
  }
}
