/**
 * What stands for a container image: a program of this machine. builtin-images.ts comes with the lab; a document of kind
 * `Images` in the user's YAML (by custom in images.yaml) adds to it and wins.
 */
import { UnderpassError } from '../common/errors.js';
import { builtinImages } from './builtin-images.js';

export interface ImageContext {
  podName: string;
  namespace: string;
  labels: Record<string, string>;
  /** The container's declared ports. */
  ports: { name?: string; containerPort: number; protocol?: string }[];
  /** The container's environment. */
  env: Record<string, string>;
  /** A directory of this container's own. */
  dir: string;
  /** Whether the pod has an IPv6 address. */
  ipv6: boolean;
}

export interface ImageRun {
  /** As an image's ENTRYPOINT and CMD: a container's `args` replace the latter. */
  entrypoint: string[];
  args: string[];
  env?: Record<string, string>;
  cwd?: string;
  /** Ports that it listens on when the container declares none. */
  ports: number[];
  /** As an image's STOPSIGNAL; default SIGTERM. */
  stopSignal?: NodeJS.Signals;
}

export type Image = (context: ImageContext) => ImageRun;

/** An entry of a user's table. */
export interface ImageEntry {
  command: string[];
  args?: string[];
  env?: Record<string, string>;
  ports?: number[];
  workingDir?: string;
}

export const IMAGES_API_VERSION = 'lab.underpass.io/v1';

function fullName(image: string): string {
  return image.replace(/@.*$/, '').replace(/:[^/]*$/, '');
}

/** The last part of an image's name, without tag or digest. */
export function imageName(image: string): string {
  const name = fullName(image);
  return name.slice(name.lastIndexOf('/') + 1);
}

export class ImageTable {
  readonly #user = new Map<string, Image>();

  /** Replaces the user's part. */
  setUserImages(entries: { name: string; entry: ImageEntry; dir: string }[]): void {
    this.#user.clear();
    for (const { name, entry, dir } of entries) {
      this.#user.set(name, () => ({
        entrypoint: entry.command,
        args: entry.args ?? [],
        ...(entry.env ? { env: entry.env } : {}),
        cwd: entry.workingDir ?? dir,
        ports: entry.ports ?? [],
      }));
    }
  }

  /** By the name in full, without tag or digest, or its last part: `docker.io/curlimages/curl:8.1` is `curl`. */
  find(image: string): Image | undefined {
    const name = fullName(image);
    const short = imageName(image);
    return this.#user.get(image) ?? this.#user.get(name) ?? this.#user.get(short) ?? builtinImages[short];
  }

  require(image: string): Image {
    const found = this.find(image);
    if (found) return found;
    throw new UnderpassError(
      'UNDERPASS_LAB_IMAGE',
      `starting image ${image}: the lab has no program for it; it knows ${this.names().join(', ')}`,
      {
        hint: `give the container a command, or map the image in a document of kind Images (${IMAGES_API_VERSION}) beside your YAML`,
      },
    );
  }

  names(): string[] {
    return [...new Set([...this.#user.keys(), ...Object.keys(builtinImages)])].sort();
  }
}
