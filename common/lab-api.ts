/**
 * What the lab tells about its pods, and the client of its Unix socket. It stands here, not in lab/, since the agent reads
 * pods from it as it would from a kubelet and may not import the lab.
 */
import { request, type IncomingMessage } from 'node:http';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { CaMaterial } from './identity/ca.js';
import { UnderpassError, errorCode, errorMessage } from './errors.js';
import { defaultRunDir } from './paths.js';
import { Backoff, sleep } from './retry.js';

export interface PodRecord {
  uid: string;
  name: string;
  namespace: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  namespaceLabels: Record<string, string>;
  nodeName: string;
  serviceAccount: string;
  /** IPv4 first, then IPv6 when the lab is dual-stack. */
  ips: string[];
  /** Path of the pod's network namespace (the node's when hostNetwork). */
  netns: string;
  /** Absolute cgroup v2 directory of the pod; its processes live in the leaves `app` and `istio-proxy`. */
  cgroup: string;
  hostNetwork: boolean;
  phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed';
  ready: boolean;
  /** Its end has begun: no endpoint any more, but its processes run until the record is gone. */
  terminating: boolean;
  hasSidecar: boolean;
  /** Its network has just been made, and none of its programs runs before it is enrolled. */
  starting?: true;
  /** Set when the pod's own Envoy is a gateway's (`router`): nobody else's traffic is to be captured into or around it. */
  isGateway?: boolean;
  containers: ContainerRecord[];
}

export interface ContainerRecord {
  name: string;
  image: string;
  ports: { name?: string; containerPort: number; protocol?: string }[];
  /** Absent while the container is not running. */
  pid?: number;
  ready?: boolean;
  restarts?: number;
  /** File that holds the last of its stdout and stderr. */
  log?: string;
}

export interface NodeRecord {
  name: string;
  ips: string[];
  netns: string;
  podCidrs: string[];
  /** Addresses inside the namespace at which the cluster's DNS answers. */
  dns: string[];
}

export interface LabInfo {
  name: string;
  pid: number;
  startedAt: string;
  /** What proxies name as the cluster that they are in. */
  clusterId: string;
  nodes: NodeRecord[];
  /** Objects as the control plane would see them; give it to pilot as its last `--source`. */
  objectsDir: string;
  sourceDirs: string[];
}

/** How to start a program in a container of a pod: append it to `args`. */
export interface ExecPlan {
  file: string;
  args: string[];
  env: Record<string, string>;
  cwd?: string;
}

/** A null value removes the label or annotation. */
export interface PodMetadataPatch {
  labels?: Record<string, string | null>;
  annotations?: Record<string, string | null>;
}

/** Annotations are a pod's alone. */
export interface LabelPatch extends PodMetadataPatch {
  kind: 'Namespace' | 'Pod';
  namespace?: string;
  name: string;
}

export const DEFAULT_LAB_NAME = 'default';

/** The folder of one lab's run-time state. */
export function labDir(name = DEFAULT_LAB_NAME, runDir = defaultRunDir): string {
  return join(runDir, 'lab', name);
}

export function labSocket(name = DEFAULT_LAB_NAME, runDir = defaultRunDir): string {
  return join(labDir(name, runDir), 'lab.sock');
}

export interface WatchOptions {
  /** Told of each lost connection; the watch then goes on by itself. */
  onError?: (error: unknown) => void;
}

export class LabClient {
  constructor(readonly socketPath: string = labSocket()) {}

  async info(signal?: AbortSignal): Promise<LabInfo> {
    return (await this.#call('GET', '/v1/info', undefined, signal)) as LabInfo;
  }

  /** The CA of the lab's sidecars and gateways, key included: the socket is root's alone. */
  async ca(signal?: AbortSignal): Promise<CaMaterial> {
    return (await this.#call('GET', '/v1/ca', undefined, signal)) as CaMaterial;
  }

  /** All pods, or one node's. */
  async pods(node?: string, signal?: AbortSignal): Promise<PodRecord[]> {
    const query = node === undefined ? '' : `?node=${encodeURIComponent(node)}`;
    return ((await this.#call('GET', `/v1/pods${query}`, undefined, signal)) as { pods: PodRecord[] }).pods;
  }

  /**
   * The full current set of pods, at once and after every change. A lab that goes away keeps its last set valid: the
   * watch reconnects with back-off until the signal aborts, then it ends.
   */
  async *watchPods(node: string | undefined, signal: AbortSignal, options: WatchOptions = {}): AsyncGenerator<PodRecord[], void> {
    const backoff = new Backoff({ initialMs: 100, maxMs: 2_000, factor: 1.6, jitter: 0.2 });
    const path = `/v1/pods?watch=1${node === undefined ? '' : `&node=${encodeURIComponent(node)}`}`;
    while (!signal.aborted) {
      try {
        const response = await this.#open('GET', path, undefined, signal);
        const lines = createInterface({ input: response, crlfDelay: Infinity });
        try {
          for await (const line of lines) {
            if (line === '') continue;
            backoff.reset();
            yield (JSON.parse(line) as { pods: PodRecord[] }).pods;
          }
        } finally {
          lines.close();
          response.destroy();
        }
        if (!signal.aborted) options.onError?.(new Error('the lab ended the watch'));
      } catch (error) {
        if (signal.aborted) return;
        options.onError?.(error);
      }
      try {
        await sleep(backoff.next(), signal);
      } catch {
        return;
      }
    }
  }

  async label(patch: LabelPatch, signal?: AbortSignal): Promise<void> {
    await this.#call('PATCH', '/v1/labels', patch, signal);
  }

  /** Applies Kubernetes YAML on top of the lab's source directories; kept until the lab ends. */
  async apply(yaml: string, signal?: AbortSignal): Promise<{ applied: string[] }> {
    return (await this.#call('POST', '/v1/apply', { yaml }, signal)) as { applied: string[] };
  }

  async execPlan(namespace: string, pod: string, container?: string, signal?: AbortSignal): Promise<ExecPlan> {
    const query = container === undefined ? '' : `?container=${encodeURIComponent(container)}`;
    const path = `/v1/namespaces/${encodeURIComponent(namespace)}/pods/${encodeURIComponent(pod)}/exec${query}`;
    return (await this.#call('GET', path, undefined, signal)) as ExecPlan;
  }

  /** Asks the lab to stop; it answers before it tears down, so poll its pid to know the end. */
  async down(signal?: AbortSignal): Promise<void> {
    await this.#call('POST', '/v1/down', {}, signal);
  }

  async #call(method: string, path: string, body: unknown, signal?: AbortSignal): Promise<unknown> {
    const response = await this.#open(method, path, body, signal);
    return JSON.parse(await text(response)) as unknown;
  }

  async #open(method: string, path: string, body: unknown, signal?: AbortSignal): Promise<IncomingMessage> {
    const payload = body === undefined ? undefined : JSON.stringify(body);
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const headers =
        payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) };
      const outgoing = request({ socketPath: this.socketPath, method, path, headers, ...(signal ? { signal } : {}) }, resolve);
      outgoing.once('error', (error) => reject(this.#unreachable(error)));
      outgoing.end(payload);
    });
    if (response.statusCode !== 200) {
      const answer = await text(response);
      let problem: { code?: string; message?: string; hint?: string } = {};
      try {
        problem = JSON.parse(answer) as typeof problem;
      } catch {
        problem = { message: answer };
      }
      const code = (problem.code?.startsWith('UNDERPASS_') ? problem.code : 'UNDERPASS_LAB_REQUEST') as `UNDERPASS_${string}`;
      throw new UnderpassError(
        code,
        problem.message ?? `${method} ${path}: ${response.statusCode}`,
        problem.hint ? { hint: problem.hint } : {},
      );
    }
    return response;
  }

  #unreachable(cause: unknown): unknown {
    const code = errorCode(cause);
    if (code !== 'ENOENT' && code !== 'ECONNREFUSED') return cause;
    return new UnderpassError('UNDERPASS_LAB_NOT_RUNNING', `asking the lab at ${this.socketPath}: ${errorMessage(cause)}`, {
      cause,
      hint: 'start one with `underpass lab up -f DIR`, or name it with --name',
    });
  }
}

async function text(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString('utf8');
}
