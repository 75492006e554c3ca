/**
 * A pod's volumes: ConfigMaps, Secrets and empty directories as files in the pod's own directory, bound into its programs'
 * mount namespaces, and rewritten when their object changes.
 */
import { mkdirSync, readdirSync, readFileSync, realpathSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { buildDir } from '../common/paths.js';
import type { ConfigLookup } from './environment.js';
import type { ContainerSpec, VolumeItems, VolumeSpec } from './kube.js';

export interface Mounts {
  /** For underpass-exec: `DIR:DST`, then `SRC:DST`. */
  overlays: string[];
  binds: string[];
}

export class Volumes {
  readonly #left = new Map<string, string>();

  constructor(
    readonly dir: string,
    readonly volumes: readonly VolumeSpec[],
    readonly config: ConfigLookup,
  ) {
    for (const { name } of volumes) mkdirSync(join(dir, name), { recursive: true });
  }

  /**
   * Writes what is new or changed. @returns whether anything was
   * @throws Error naming the object or key that is missing and not optional
   */
  refresh(): boolean {
    let changed = false;
    for (const volume of this.volumes) {
      const wanted = this.#files(volume);
      if (wanted) changed = writeFiles(join(this.dir, volume.name), wanted) || changed;
    }
    return changed;
  }

  #files({ name, configMap, secret, projected }: VolumeSpec): Map<string, string> | undefined {
    const files = new Map<string, string>();
    const add = (kind: 'ConfigMap' | 'Secret', object: string, { items, optional }: VolumeItems): void => {
      const data = this.config(kind, object);
      if (!data && !optional) throw new Error(`its volume ${name} needs ${kind} ${object}, which is not there`);
      for (const { key, path } of items ?? Object.keys(data ?? {}).map((key) => ({ key, path: key }))) {
        const value = data?.[key];
        if (value !== undefined) files.set(path, value);
        else if (data && !optional) throw new Error(`its volume ${name} needs key ${key} of ${kind} ${object}, which is not there`);
      }
    };
    if (configMap) add('ConfigMap', configMap.name, configMap);
    if (secret) add('Secret', secret.secretName, secret);
    for (const source of projected?.sources ?? []) {
      if (source.configMap) add('ConfigMap', source.configMap.name, source.configMap);
      if (source.secret) add('Secret', source.secret.name, source.secret);
    }
    return configMap || secret || projected ? files : undefined;
  }

  #source(mount: { name: string; subPath?: string }): string {
    return join(this.dir, mount.name, mount.subPath ?? '');
  }

  /** What a path in the container is here, when it lies in one of its volumes. */
  resolve(container: Pick<ContainerSpec, 'volumeMounts'>, path: string): string | undefined {
    for (const mount of container.volumeMounts ?? []) {
      const inside = relative(mount.mountPath, path);
      if (!inside.startsWith('..') && this.volumes.some(({ name }) => name === mount.name)) return join(this.#source(mount), inside);
    }
    return undefined;
  }

  read(container: Pick<ContainerSpec, 'volumeMounts'>, path: string): string | undefined {
    try {
      return readFileSync(this.resolve(container, path) ?? path, 'utf8');
    } catch {
      return undefined;
    }
  }

  /** How to show a container its volumes. Where the machine has no such directory, one is laid over its nearest parent. */
  mounts(container: Pick<ContainerSpec, 'name' | 'volumeMounts'>): Mounts {
    const overlays = new Map<string, string>();
    const binds: string[] = [];
    for (const mount of container.volumeMounts ?? []) {
      if (!this.volumes.some(({ name }) => name === mount.name)) continue;
      const source = this.#source(mount);
      const isFile = statSync(source, { throwIfNoEntry: false })?.isFile() === true;
      const present = nearestPresent(mount.mountPath);
      if (present === '/' || this.#hides(present, present !== mount.mountPath)) {
        this.#left.set(mount.mountPath, source);
        continue;
      }
      if (present !== mount.mountPath) {
        const skeleton = join(this.dir, `.${container.name}`, present);
        const point = join(skeleton, relative(present, mount.mountPath));
        mkdirSync(isFile ? dirname(point) : point, { recursive: true });
        if (isFile) writeFileSync(point, '');
        overlays.set(present, skeleton);
      }
      binds.push(`${source}:${mount.mountPath}`);
    }
    return { overlays: [...overlays].map(([target, skeleton]) => `${skeleton}:${target}`), binds };
  }

  /** Whether a mount there would take away the pod's own files, which an overlay makes read-only, or the lab's programs. */
  #hides(path: string, isOverlay: boolean): boolean {
    const needed = isOverlay ? [this.dir] : [this.dir, buildDir, process.execPath];
    return needed.some((file) => file.startsWith(`${realpathSync(path)}/`));
  }

  /** Mounts that could not be, with where their files are. */
  get leftOut(): ReadonlyMap<string, string> {
    return this.#left;
  }
}

function nearestPresent(path: string): string {
  let present = path;
  while (present !== '/' && !statSync(present, { throwIfNoEntry: false })) present = dirname(present);
  return present;
}

function writeFiles(directory: string, wanted: ReadonlyMap<string, string>): boolean {
  let changed = false;
  for (const name of readdirSync(directory)) {
    if ([...wanted.keys()].some((path) => path === name || path.startsWith(`${name}/`))) continue;
    rmSync(join(directory, name), { recursive: true });
    changed = true;
  }
  for (const [path, content] of wanted) {
    const file = join(directory, path);
    if (statSync(file, { throwIfNoEntry: false })?.isFile() && readFileSync(file, 'utf8') === content) continue;
    mkdirSync(dirname(file), { recursive: true });
    const temporary = join(dirname(file), `..${path.replaceAll('/', '-')}.new`);
    writeFileSync(temporary, content, { mode: 0o600 });
    renameSync(temporary, file);
    changed = true;
  }
  return changed;
}
