/** The images that come with the lab, by the last part of their name, so that the YAML of Istio's samples runs as it is. */
import { chmodSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Image, ImageContext, ImageRun } from './images.js';
import { NGINX_BYTES, nginxConfig } from './images/nginx.js';

const program = (name: string): string => join(dirname(fileURLToPath(import.meta.url)), 'images', `${name}.js`);

function tcpPorts(context: ImageContext, otherwise: readonly number[]): number[] {
  const declared = context.ports.filter((port) => (port.protocol ?? 'TCP') === 'TCP').map((port) => port.containerPort);
  return declared.length ? declared : [...otherwise];
}

const versionOf = (context: ImageContext): string => context.env['VERSION'] ?? context.labels['version'] ?? '';

/** One of the lab's own programs. */
function node(name: string, variable: string, ports: readonly number[], env: Record<string, string> = {}, args: string[] = []): Image {
  return (context): ImageRun => {
    const listening = tcpPorts(context, ports);
    return {
      entrypoint: [process.execPath, program(name), ...args],
      args: [],
      env: { [variable]: listening.join(','), VERSION: versionOf(context), ...env },
      ports: listening,
    };
  };
}

/** Places to run something from. */
const sleeping: Image = () => ({ entrypoint: [], args: ['sleep', 'infinity'], ports: [] });

/** Debian's nginx; says its pod and version, in JSON and in headers. */
const nginx: Image = (context) => {
  const ports = tcpPorts(context, [80]);
  for (const folder of ['body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']) mkdirSync(join(context.dir, folder), { recursive: true });
  mkdirSync(join(context.dir, 'bytes'), { recursive: true });
  for (const size of NGINX_BYTES) writeFileSync(join(context.dir, 'bytes', String(size)), 'x'.repeat(size));
  const file = join(context.dir, 'nginx.conf');
  const workers = Number(context.env['NGINX_WORKERS'] ?? 1);
  const { dir, ipv6, podName: pod, namespace } = context;
  writeFileSync(file, nginxConfig({ dir, ports, workers, ipv6, pod, namespace, version: versionOf(context) }));
  return { entrypoint: ['nginx'], args: ['-c', file, '-e', 'stderr'], ports, stopSignal: 'SIGQUIT' };
};

/** Answers what it was asked: see images/echo.ts. Ports whose name begins with `tcp` are plain TCP. */
const echo: Image = (context) => {
  const tcp = context.ports.filter((port) => port.name?.startsWith('tcp')).map((port) => port.containerPort);
  const http = context.ports.filter((port) => !port.name?.startsWith('tcp')).map((port) => port.containerPort);
  const httpPorts = http.length ? http : [8080];
  const tcpEchoPorts = tcp.length ? tcp : [9000];
  return {
    entrypoint: [process.execPath, program('echo')],
    args: [],
    env: { HTTP_PORTS: httpPorts.join(','), TCP_PORTS: tcpEchoPorts.join(','), VERSION: versionOf(context) },
    ports: [...httpPorts, ...tcpEchoPorts],
  };
};

/** `PORTS PREFIX` as arguments, as Istio's sample gives them. */
function tcpEcho(env: Record<string, string>): Image {
  return (context) => ({
    entrypoint: [process.execPath, program('tcp-echo')],
    args: [tcpPorts(context, [9000]).join(','), ''],
    env: { VERSION: versionOf(context), ...env },
    ports: tcpPorts(context, [9000]),
  });
}

const bookinfo = (service: string, version: string): Image => node('bookinfo', 'HTTP_PORTS', [9080], { BOOKINFO_SERVICE: service, VERSION: version });
const helloworld = (version: string): Image => node('helloworld', 'HTTP_PORTS', [5000], { SERVICE_VERSION: version });

export const builtinImages: Readonly<Record<string, Image>> = {
  nginx,
  echo,
  websocket: echo,
  'tornado-websocket-example': echo,
  'grpc-echo': node('grpc-server', 'GRPC_PORTS', [7070]),
  'tls-echo': node('tls-echo', 'TLS_PORTS', [8443]),
  'tcp-echo-server': tcpEcho({}),
  'tcp-greeter': tcpEcho({ TCP_GREETING: '1' }),
  httpbin: node('httpbin', 'HTTP_PORTS', [80]),
  'go-httpbin': node('httpbin', 'HTTP_PORTS', [8080], { HTTPBIN_LISTS: '1' }),
  fortio: node('fortio', 'HTTP_PORTS', [8080, 8079], {}, ['server']),
  'examples-helloworld-v1': helloworld('v1'),
  'examples-helloworld-v2': helloworld('v2'),
  'examples-bookinfo-productpage-v1': bookinfo('productpage', 'v1'),
  'examples-bookinfo-details-v1': bookinfo('details', 'v1'),
  'examples-bookinfo-ratings-v1': bookinfo('ratings', 'v1'),
  'examples-bookinfo-reviews-v1': bookinfo('reviews', 'v1'),
  'examples-bookinfo-reviews-v2': bookinfo('reviews', 'v2'),
  'examples-bookinfo-reviews-v3': bookinfo('reviews', 'v3'),
  'ext-authz': node('ext-authz', 'PORTS', [8000, 9000]),
  ratelimit: node('ratelimit', 'PORTS', [8080, 8081]),
  /** Nothing but its port: the rate limit service counts in memory here. */
  redis: (context) => ({ ...tcpEcho({})(context), args: ['6379', ''], ports: [6379] }),
  curl: sleeping,
  'curl-ssl': sleeping,
  netshoot: sleeping,
  client: sleeping,
  wrk: sleeping,
  sleep: sleeping,
  busybox: sleeping,
  alpine: sleeping,
  debian: sleeping,
};

/** Commands that pods have beside the machine's own: what an image would bring along. */
const COMMANDS: Readonly<Record<string, { file: string }>> = {
  fortio: { file: 'fortio' },
  'grpc-client': { file: 'grpc-client' },
  'ws-client': { file: 'websocket-client' },
  // How Istio's sample starts httpbin.
  gunicorn: { file: 'httpbin' },
  ratelimit: { file: 'ratelimit' },
};

/** Images have their programs in places of their own, e.g. /usr/bin/fortio: such a one is looked for by its name alone. */
export function findCommand(program: string): string {
  const name = basename(program);
  return isAbsolute(program) && COMMANDS[name] !== undefined && !existsSync(program) ? name : program;
}

export function writeCommands(directory: string): void {
  mkdirSync(directory, { recursive: true });
  for (const [name, { file }] of Object.entries(COMMANDS)) {
    const path = join(directory, name);
    writeFileSync(path, `#!/bin/sh\nexec ${quoted(process.execPath)} ${quoted(program(file))} "$@"\n`);
    chmodSync(path, 0o755);
  }
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
