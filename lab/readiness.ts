/**
 * Readiness of a container: its probe; without one, its ports are listening; without ports, it runs. Probes go to the pod's
 * address from the node's namespace, as a kubelet's do. To a pod with a sidecar they go from within its own, so that they meet the
 * application and no sidecar (Istio rewrites probes to the same end).
 */
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { Socket } from 'node:net';
import type { Closable } from '../common/lifecycle.js';
import { openSocket } from '../native/index.js';
import type { ContainerSpec, ProbeSpec } from './kube.js';

/** Until a container was ready for the first time it is asked more often than its period says: somebody waits. */
const STARTING_PERIOD_MS = 100;
/** Kubernetes does not look at declared ports at all: one that nothing ever listens on delays readiness by this, no more. */
const LISTEN_GRACE_MS = 10_000;

export interface ReadinessTarget {
  container: ContainerSpec;
  /** Where its probes come from. */
  netns: string;
  address: string;
  /** TCP ports to look for when there is no probe. */
  ports: readonly number[];
  pid: () => number | undefined;
  exec: (argv: readonly string[], timeoutMs: number) => Promise<boolean>;
}

export class ReadinessCheck implements Closable {
  #ready = false;
  /** The process that was found ready: one started after it has to show it anew. */
  #readyPid: number | undefined;
  #seenPid: number | undefined;
  #seenAt = 0;
  #closed = false;
  #timer: NodeJS.Timeout | undefined;
  #failures = 0;
  #successes = 0;

  constructor(
    readonly target: ReadinessTarget,
    readonly onChange: () => void,
  ) {
    const delayMs = (target.container.readinessProbe?.initialDelaySeconds ?? 0) * 1000;
    this.#timer = setTimeout(() => void this.#tick(), delayMs);
  }

  get ready(): boolean {
    return this.#ready && this.#readyPid !== undefined && this.target.pid() === this.#readyPid;
  }

  async #tick(): Promise<void> {
    const probe = this.target.container.readinessProbe;
    const pid = this.target.pid();
    let good = false;
    try {
      if (pid === undefined) good = false;
      else if (probe) good = await runProbe(this.target, probe);
      else good = (this.#ready && pid === this.#readyPid) || this.#hasRunLong(pid) || isListening(pid, this.target.ports);
    } catch {
      good = false;
    }
    if (this.#closed) return;
    this.#successes = good ? this.#successes + 1 : 0;
    this.#failures = good ? 0 : this.#failures + 1;
    const before = this.ready;
    if (good && this.#successes >= (probe?.successThreshold ?? 1)) {
      this.#ready = true;
      this.#readyPid = pid;
    }
    // Without a probe there is no period: one that has listened stays ready for as long as it runs.
    if (!good && (pid === undefined || (probe && this.#failures >= (probe.failureThreshold ?? 3)))) this.#ready = false;
    if (before !== this.ready) this.onChange();
    const periodMs = this.#ready && probe ? (probe.periodSeconds ?? 10) * 1000 : STARTING_PERIOD_MS;
    this.#timer = setTimeout(() => void this.#tick(), this.#ready && !probe ? 1_000 : periodMs);
  }

  #hasRunLong(pid: number): boolean {
    if (pid !== this.#seenPid) {
      this.#seenPid = pid;
      this.#seenAt = performance.now();
    }
    return performance.now() - this.#seenAt > LISTEN_GRACE_MS;
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }
}

/** Whether every one of the ports has a listener in the namespace of this process. */
export function isListening(pid: number, ports: readonly number[]): boolean {
  if (ports.length === 0) return true;
  const listening = new Set<number>();
  for (const file of ['tcp', 'tcp6']) {
    for (const line of readFileSync(`/proc/${pid}/net/${file}`, 'utf8').split('\n')) {
      // sl local_address rem_address st …; state 0A is TCP_LISTEN (include/net/tcp_states.h)
      const [, local, , state] = line.trim().split(/\s+/);
      if (state === '0A' && local) listening.add(Number.parseInt(local.slice(local.lastIndexOf(':') + 1), 16));
    }
  }
  return ports.every((port) => listening.has(port));
}

/** Asks once, as kubelet does. Rejects when there is no connection. */
export async function runProbe(target: Pick<ReadinessTarget, 'container' | 'netns' | 'address' | 'exec'>, probe: ProbeSpec): Promise<boolean> {
  const timeoutMs = (probe.timeoutSeconds ?? 1) * 1000;
  if (probe.exec) return target.exec(probe.exec.command, timeoutMs);
  const port = probePort(target.container, probe.httpGet?.port ?? probe.tcpSocket?.port ?? probe.grpc?.port);
  const family = target.address.includes(':') ? 'ipv6' : 'ipv4';
  const fd = await openSocket({
    netns: target.netns,
    family,
    type: 'stream',
    connect: { address: target.address, port },
    timeoutMs,
  });
  const socket = new Socket({ fd });
  if (!probe.httpGet) {
    socket.destroy();
    return true;
  }
  const { path = '/', httpHeaders = [] } = probe.httpGet;
  const headers = {
    host: `${target.address}:${port}`,
    'user-agent': 'kube-probe/underpass-lab',
    connection: 'close',
    ...Object.fromEntries(httpHeaders.map(({ name, value }) => [name, value])),
  };
  try {
    return await new Promise<boolean>((resolve, reject) => {
      const outgoing = request({ createConnection: () => socket, path, headers, timeout: timeoutMs }, (response) => {
        response.resume();
        const status = response.statusCode ?? 0;
        resolve(status >= 200 && status < 400);
      });
      outgoing.once('error', reject);
      outgoing.once('timeout', () => reject(new Error('timeout')));
      outgoing.end();
    });
  } finally {
    socket.destroy();
  }
}

function probePort(container: ContainerSpec, port: number | string | undefined): number {
  if (typeof port === 'number') return port;
  const named = container.ports?.find(({ name }) => name === port)?.containerPort;
  const number = named ?? Number(port);
  if (!Number.isInteger(number)) throw new Error(`the probe's port ${String(port)} is no port of container ${container.name}`);
  return number;
}
