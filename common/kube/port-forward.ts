/**
 * A port of a pod on 127.0.0.1, by the API server: each connection is a WebSocket (`v4.channel.k8s.io`, a data and an error channel a
 * port): https://github.com/kubernetes/kubernetes/blob/v1.34.2/pkg/kubelet/apis/streaming. Asks for `get`, and from
 * 1.35 on `create` too, of `pods/portforward`.
 */
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { errorMessage } from '../errors.js';
import type { Closable } from '../lifecycle.js';
import { openSocket } from './exec.js';
import type { ApiServer } from './kubeconfig.js';

/** The first byte of each message, of the first port that is asked for. */
const DATA = 0;
const ERROR = 1;
/** The first message of each channel is the port, and nothing of the stream. */
const HEADER_BYTES = 2;
const PROTOCOLS = ['v4.channel.k8s.io'];
/** Of what the API server has not taken yet; above it nothing more is read. */
const MAX_UNSENT_BYTES = 1 << 20;
const MAX_CONNECTIONS = 64;

export interface ForwardedPort extends Closable {
  /** On 127.0.0.1. */
  port: number;
}

export interface ForwardOptions {
  namespace: string;
  pod: string;
  /** The pod's. */
  port: number;
  /** On 127.0.0.1; 0: any that is free. */
  listen: number;
  /** Told of connections that could not be forwarded. */
  onProblem: (reason: string) => void;
}

/** @throws KubeApiError when the server refuses the first connection, which is tried at once; Error when the port is taken */
export async function forwardPort(server: ApiServer, options: ForwardOptions): Promise<ForwardedPort> {
  const { namespace, pod, port, listen, onProblem } = options;
  const path = `/api/v1/namespaces/${namespace}/pods/${pod}/portforward?ports=${port}`;
  // Who may not is to hear it now, and not in the browser.
  (await openSocket(server, path, PROTOCOLS)).terminate();
  const open = new Set<Socket>();
  const listener = createServer({ pauseOnConnect: true, allowHalfOpen: false }, (local) => {
    open.add(local);
    local.once('close', () => open.delete(local));
    local.on('error', () => local.destroy());
    carry(server, path, local).catch((error: unknown) => {
      onProblem(errorMessage(error));
      local.destroy();
    });
  });
  listener.maxConnections = MAX_CONNECTIONS;
  await new Promise<void>((resolve, reject) => {
    listener.once('error', reject);
    listener.listen({ host: '127.0.0.1', port: listen }, () => resolve());
  });
  return {
    port: (listener.address() as AddressInfo).port,
    close: () => new Promise<void>((resolve) => {
      listener.close(() => resolve());
      for (const socket of open) socket.destroy();
    }),
  };
}

async function carry(server: ApiServer, path: string, local: Socket): Promise<void> {
  const remote = await openSocket(server, path, PROTOCOLS);
  if (local.destroyed) return remote.terminate();
  const headers = [HEADER_BYTES, HEADER_BYTES];
  let problem = '';
  const ended = new Promise<void>((resolve, reject) => {
    remote.on('message', (message: Buffer) => {
      const channel = message[0];
      if (channel !== DATA && channel !== ERROR) return;
      let rest = message.subarray(1);
      const skipped = Math.min(headers[channel]!, rest.length);
      headers[channel]! -= skipped;
      rest = rest.subarray(skipped);
      if (rest.length === 0) return;
      if (channel === ERROR) problem += rest.toString('utf8').slice(0, 500);
      else if (!local.write(rest)) {
        remote.pause();
        local.once('drain', () => remote.resume());
      }
    });
    remote.once('error', reject);
    remote.once('close', () => (problem === '' ? resolve() : reject(new Error(problem.trim()))));
  });
  local.on('data', (chunk: Buffer) => {
    remote.send(Buffer.concat([Buffer.of(DATA), chunk]), () => {
      if (local.isPaused() && remote.bufferedAmount < MAX_UNSENT_BYTES) local.resume();
    });
    if (remote.bufferedAmount >= MAX_UNSENT_BYTES) local.pause();
  });
  local.once('close', () => remote.close());
  remote.resume();
  local.resume();
  await ended;
  local.end();
}
