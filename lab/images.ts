/**
 * What stands for a container image: a program of this machine. The table below comes with the lab; a document of kind
 * `Images` in the user's YAML (by custom in images.yaml) adds to it and wins.
 */
import { writeFileSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UnderpassError } from '../common/errors.js';
import { nginxConfig } from './images/nginx.js';

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

const sleeping: Image = () => ({ entrypoint: ['sleep', 'infinity'], args: [], ports: [] });

const builtin: Record<string, Image> = {
  /** Debian's nginx; says its pod and version, in JSON and in headers. */
  nginx: (context) => {
    const ports = tcpPorts(context, [80]);
    for (const folder of ['body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']) mkdirSync(join(context.dir, folder), { recursive: true });
    const file = join(context.dir, 'nginx.conf');
    const workers = Number(context.env['NGINX_WORKERS'] ?? 1);
    const version = context.env['VERSION'] ?? context.labels['version'] ?? '';
    writeFileSync(
      file,
      nginxConfig({
        dir: context.dir,
        ports,
        workers,
        ipv6: context.ipv6,
        pod: context.podName,
        namespace: context.namespace,
        version,
      }),
    );
    return { entrypoint: ['nginx'], args: ['-c', file, '-e', 'stderr'], ports, stopSignal: 'SIGQUIT' };
  },
  /** Answers what it was asked: see images/echo.ts. */
  echo: (context) => {
    const tcp = context.ports.filter((port) => port.name?.startsWith('tcp')).map((port) => port.containerPort);
    const http = context.ports.filter((port) => !port.name?.startsWith('tcp')).map((port) => port.containerPort);
    const httpPorts = http.length ? http : [8080];
    const tcpEchoPorts = tcp.length ? tcp : [9000];
    const version = context.env['VERSION'] ?? context.labels['version'] ?? '';
    return {
      entrypoint: [process.execPath, join(dirname(fileURLToPath(import.meta.url)), 'images', 'echo.js')],
      args: [],
      env: { HTTP_PORTS: httpPorts.join(','), TCP_PORTS: tcpEchoPorts.join(','), VERSION: version },
      ports: [...httpPorts, ...tcpEchoPorts],
    };
  },
  // Places to run something from.
  curl: sleeping,
  client: sleeping,
  wrk: sleeping,
  sleep: sleeping,
  busybox: sleeping,
  alpine: sleeping,
  debian: sleeping,
};

function tcpPorts(context: ImageContext, otherwise: number[]): number[] {
  const declared = context.ports.filter((port) => (port.protocol ?? 'TCP') === 'TCP').map((port) => port.containerPort);
  return declared.length ? declared : otherwise;
}

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
    return this.#user.get(image) ?? this.#user.get(name) ?? this.#user.get(short) ?? builtin[short];
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
    return [...new Set([...this.#user.keys(), ...Object.keys(builtin)])].sort();
  }
}
