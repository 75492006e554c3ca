/** The user's YAML: read, watched, and of each object the last good version kept. What is Istio's is pilot's to judge. */
import { readFileSync, readdirSync, statSync, watch, type FSWatcher } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { UnderpassError, errorCode, errorMessage } from '../common/errors.js';
import { errorAt, formatError, isObjectFile, parseYaml, type LoadedObject, type ValidationError } from '../common/kube/yaml.js';
import type { Path } from '../common/kube/schema.js';
import type { Closable } from '../common/lifecycle.js';
import { IMAGES_API_VERSION, type ImageEntry } from './images.js';
import { podsOf, PodSpecError, WORKLOAD_KINDS, type KubeObject } from './kube.js';

/** Editors write a file in several steps. */
const SETTLE_MS = 100;
/** fs.watch tells of nothing on some file systems (shared folders): look by oneself too. */
const RESCAN_MS = 2_000;

export interface UserImage {
  name: string;
  entry: ImageEntry;
  /** Where the entry was written: its relative paths start here. */
  dir: string;
}

export interface ParsedFile {
  /** By `group/Kind/namespace/name`. */
  objects: Map<string, KubeObject>;
  images: UserImage[];
  errors: string[];
  /** Keys of objects that are there but wrong. */
  refused: ReadonlySet<string>;
  /** Set when objects may be missing, since a part of the text is not YAML. */
  unreadable: boolean;
}

/** Reads the objects that a lab is about; the errors are `file:line:column: object: field: message`. */
export function parseObjects(text: string, path: string): ParsedFile {
  const result = parseYaml(text, path);
  const refused = new Set(result.refused);
  const parsed: ParsedFile = { objects: new Map(), images: [], errors: [], refused, unreadable: result.unreadable.length > 0 };
  const errors = result.errors.filter((error) => error.severity === 'error' && !isOthers(error, result.refused));
  for (const loaded of result.objects) {
    const object = loaded.object as unknown as KubeObject;
    const wrong =
      object.kind === 'Images' && object.apiVersion === IMAGES_API_VERSION
        ? readImages(loaded, object, parsed.images)
        : checkWorkload(loaded, object);
    if (wrong) {
      errors.push(wrong);
      refused.add(loaded.key);
    } else if (object.kind !== 'Images') {
      parsed.objects.set(loaded.key, object);
    }
  }
  parsed.errors = errors.map(formatError);
  return parsed;
}

/** Istio's and the Gateway API's kinds: pilot and `underpass validate` say what is wrong with them. */
function isOthers(error: ValidationError, refused: readonly string[]): boolean {
  if (error.kind === undefined) return false;
  const key = refused.find((candidate) => candidate.endsWith(`/${error.kind}/${error.namespace ?? ''}/${error.name ?? ''}`));
  return key !== undefined && /^[^/]*(istio\.io|gateway\.networking\.k8s\.io)\//.test(key);
}

function wrongAt(loaded: LoadedObject, path: Path, message: string): ValidationError {
  return errorAt(loaded, { path: [...path], message, severity: 'error' });
}

function readImages(loaded: LoadedObject, object: KubeObject, images: UserImage[]): ValidationError | undefined {
  for (const [name, entry] of Object.entries((object['images'] ?? {}) as Record<string, ImageEntry>)) {
    const command = entry?.command as unknown;
    if (!Array.isArray(command) || command.length === 0 || !command.every((word) => typeof word === 'string')) {
      return wrongAt(loaded, ['images', name, 'command'], 'expected a list of strings, the program and its arguments');
    }
    images.push({ name, entry, dir: resolve(dirname(loaded.file)) });
  }
  return undefined;
}

function checkWorkload(loaded: LoadedObject, object: KubeObject): ValidationError | undefined {
  if (!WORKLOAD_KINDS.has(object.kind)) return undefined;
  try {
    podsOf(object, []);
    return undefined;
  } catch (error) {
    if (error instanceof PodSpecError) return wrongAt(loaded, error.path, error.message);
    throw error;
  }
}

/** The files of a directory as `kubectl apply -f` takes them: those below it are left out. */
function listFiles(source: string): string[] {
  let stat;
  try {
    stat = statSync(source);
  } catch (cause) {
    const why = errorCode(cause) === 'ENOENT' ? 'no such file or directory' : errorMessage(cause);
    throw new UnderpassError('UNDERPASS_LAB_SOURCE', `reading ${source}: ${why}`, { cause });
  }
  if (!stat.isDirectory()) return [source];
  return readdirSync(source)
    .filter(isObjectFile)
    .sort()
    .map((name) => join(source, name));
}

interface KnownFile {
  stamp: string;
  objects: Map<string, KubeObject>;
  images: UserImage[];
}

export class Sources implements Closable {
  readonly #files = new Map<string, KnownFile>();
  #watchers: FSWatcher[] = [];
  #timer: NodeJS.Timeout | undefined;
  #rescan: NodeJS.Timeout | undefined;

  constructor(readonly paths: readonly string[]) {}

  /** Reads what is new or changed. An error's object, or all of a file that is not YAML, stays as it was. */
  refresh(): { changed: boolean; errors: string[] } {
    const errors: string[] = [];
    let changed = false;
    const present = new Set<string>();
    for (const source of this.paths) {
      let files: string[] = [];
      try {
        files = listFiles(source);
      } catch (error) {
        errors.push(errorMessage(error));
        for (const path of this.#files.keys()) if (path === source || dirname(path) === source) present.add(path);
      }
      for (const path of files) {
        present.add(path);
        changed = this.#refreshFile(path, errors) || changed;
      }
    }
    for (const path of this.#files.keys()) {
      if (present.has(path)) continue;
      this.#files.delete(path);
      changed = true;
    }
    return { changed, errors };
  }

  #refreshFile(path: string, errors: string[]): boolean {
    const known = this.#files.get(path);
    let text: string;
    let stamp: string;
    try {
      const { mtimeMs, size, ino } = statSync(path);
      stamp = `${mtimeMs}/${size}/${ino}`;
      if (known?.stamp === stamp) return false;
      text = readFileSync(path, 'utf8');
    } catch {
      return false; // between two steps of an editor
    }
    const parsed = parseObjects(text, path);
    errors.push(...parsed.errors);
    const { objects } = parsed;
    for (const [key, object] of known?.objects ?? [])
      if (!objects.has(key) && (parsed.unreadable || parsed.refused.has(key))) objects.set(key, object);
    const images = parsed.images.length === 0 && parsed.errors.length > 0 ? (known?.images ?? []) : parsed.images;
    this.#files.set(path, { stamp, objects, images });
    return true;
  }

  /** All objects; of two with the same key the later source's. */
  objects(): Map<string, KubeObject> {
    return new Map(this.#inOrder().flatMap(({ objects }) => [...objects]));
  }

  images(): UserImage[] {
    return this.#inOrder().flatMap(({ images }) => images);
  }

  #inOrder(): KnownFile[] {
    const position = (path: string): number => this.paths.findIndex((source) => path === source || dirname(path) === source);
    return [...this.#files].sort(([a], [b]) => position(a) - position(b) || (a < b ? -1 : 1)).map(([, file]) => file);
  }

  /** Calls back soon after something in the sources changed. */
  watch(onChange: () => void): void {
    const soon = (): void => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(onChange, SETTLE_MS);
    };
    for (const source of this.paths) {
      try {
        const directory = statSync(source).isDirectory() ? source : dirname(source);
        const watcher = watch(directory, soon);
        watcher.on('error', () => watcher.close());
        this.#watchers.push(watcher);
      } catch {
        // The rescan sees it.
      }
    }
    this.#rescan = setInterval(onChange, RESCAN_MS);
  }

  close(): void {
    clearTimeout(this.#timer);
    clearInterval(this.#rescan);
    for (const watcher of this.#watchers) watcher.close();
    this.#watchers = [];
  }
}
