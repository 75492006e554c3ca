/**
 * What the sidecars of this node's pods count, for who looks at the node's traffic: each is asked on its Prometheus port from within its
 * pod's network namespace. A pod may answer whatever it likes, so what is read has limits, and tells of its own namespace's ends alone.
 */
import { get } from 'node:http';
import type { PodRecord } from '../../common/lab-api.js';
import type { TrafficTotals } from '../../common/traffic.js';
import { connectInNetns } from '../dataplane/pod-socket.js';
import type { FlowLabels } from './flow-labels.js';
import { HTTP_BOUNDS } from './http-bounds.js';
import { ENDINGS } from './traffic.js';

export interface SidecarSeries {
  reporter: 'source' | 'destination';
  labels: FlowLabels;
  totals: TrafficTotals;
}

export type SidecarPod = Pick<PodRecord, 'uid' | 'namespace' | 'netns' | 'hasSidecar' | 'phase'>;

/** Istio's, for Envoy's own metrics. */
const PORT = 15_090;
const PATH = '/stats/prometheus?usedonly&filter=istio_';
/** Envoy merges its threads' counts every five seconds. */
const READ_EVERY_MS = 5_000;
/** The first who looks waits for them so long; later ones have what was read last. */
const FIRST_MS = 1_000;
const ANSWER_MS = 3_000;
const MAX_ANSWER_BYTES = 8 << 20;
const MAX_SERIES = 2_000;
const MAX_BUCKETS = 100;
const BOUND = ',le="';
const MAX_LABEL_CHARACTERS = 253;
const MAX_PODS = 250;
const TOGETHER = 4;
/** Lines between two turns of everybody else. */
const LINES_A_TURN = 1_000;

export class SidecarTraffic {
  readonly #pods: () => readonly SidecarPod[];
  readonly #read: (pod: SidecarPod) => Promise<string>;
  readonly #known = new Map<string, readonly SidecarSeries[]>();
  #reading: Promise<void> | undefined;
  #readAt = -Infinity;

  /** @param read for tests: what a pod answers */
  constructor(pods: () => readonly SidecarPod[], read: (pod: SidecarPod) => Promise<string> = readSidecar) {
    this.#pods = pods;
    this.#read = read;
  }

  /** As they were read last; reads them again where that is five seconds ago. */
  async series(): Promise<readonly SidecarSeries[]> {
    const now = performance.now();
    if (!this.#reading && now - this.#readAt >= READ_EVERY_MS) {
      const isFirst = this.#readAt === -Infinity;
      this.#readAt = now;
      this.#reading = this.#readAll().finally(() => (this.#reading = undefined));
      if (isFirst) await Promise.race([this.#reading, new Promise((resolve) => setTimeout(resolve, FIRST_MS).unref())]);
    }
    return [...this.#known.values()].flat();
  }

  /** A sidecar that does not answer has what it had until its pod is gone. Rejects never. */
  async #readAll(): Promise<void> {
    const pods = this.#pods().filter(({ hasSidecar, phase, netns }) => hasSidecar && phase === 'Running' && netns !== '').slice(0, MAX_PODS);
    const left = [...pods];
    const work = async (): Promise<void> => {
      for (let pod = left.shift(); pod; pod = left.shift()) {
        try {
          this.#known.set(pod.uid, await sidecarSeries(await this.#read(pod), pod.namespace));
        } catch {
          // It starts, ends, or has nothing on that port: the page has what others say.
        }
      }
    };
    await Promise.all(Array.from({ length: TOGETHER }, work));
    const present = new Set(pods.map(({ uid }) => uid));
    for (const uid of this.#known.keys()) if (!present.has(uid)) this.#known.delete(uid);
  }
}

async function readSidecar({ netns }: SidecarPod): Promise<string> {
  const socket = await connectInNetns(netns, PORT, ANSWER_MS);
  try {
    return await new Promise<string>((resolve, reject) => {
      const outgoing = get({ createConnection: () => socket, path: PATH, headers: { host: `127.0.0.1:${PORT}`, connection: 'close' }, signal: AbortSignal.timeout(ANSWER_MS) }, (response) => {
        if (response.statusCode !== 200) return reject(new Error(`status ${response.statusCode}`));
        const parts: Buffer[] = [];
        let bytes = 0;
        response.on('data', (part: Buffer) => {
          bytes += part.length;
          if (bytes > MAX_ANSWER_BYTES) return outgoing.destroy(new Error(`more than ${MAX_ANSWER_BYTES} bytes`));
          parts.push(part);
        });
        response.once('end', () => resolve(Buffer.concat(parts).toString('utf8')));
        response.once('error', reject);
      });
      outgoing.once('error', reject);
    });
  } finally {
    socket.destroy();
  }
}

const NAMES = /^istio_(requests_total|request_duration_milliseconds_bucket|request_bytes_sum|response_bytes_sum|tcp_connections_opened_total|tcp_connections_closed_total|tcp_received_bytes_total|tcp_sent_bytes_total)\{(.*)\} (\d+(?:\.\d+)?(?:e\+?\d+)?)$/;

/** @param namespace of the sidecar's pod: what it says of connections of others is left out */
export async function sidecarSeries(text: string, namespace: string): Promise<SidecarSeries[]> {
  /** By their labels as they are written; undefined: they are of others. */
  const found = new Map<string, SidecarSeries | undefined>();
  /** Of histograms, cumulative. */
  const buckets = new Map<SidecarSeries, [bound: number, count: number][]>();
  let turn = 0;
  for (const line of text.split('\n')) {
    if (++turn % LINES_A_TURN === 0) await new Promise(setImmediate);
    const [, name, written = '', value] = NAMES.exec(line) ?? [];
    if (name === undefined) continue;
    // Envoy writes the bucket's bound behind all other labels.
    const at = written.lastIndexOf(BOUND);
    const [own, bound] = at < 0 ? [written, undefined] : [written.slice(0, at), written.slice(at + BOUND.length, -1)];
    const key = `${name.startsWith('tcp')} ${own}`;
    if (!found.has(key)) {
      if (found.size >= MAX_SERIES) continue;
      found.set(key, seriesOf(labelsOf(own), name.startsWith('tcp'), namespace));
    }
    const series = found.get(key);
    if (!series) continue;
    if (name !== 'request_duration_milliseconds_bucket') add(series, name, Number(value));
    else if (bound !== undefined) {
      const of = buckets.get(series) ?? [];
      if (of.length === 0) buckets.set(series, of);
      if (of.length < MAX_BUCKETS) of.push([bound === '+Inf' ? Infinity : Number(bound), Number(value)]);
    }
  }
  for (const [series, of] of buckets) series.totals.times = timesOf(of);
  return [...found.values()].filter((series) => series !== undefined);
}

function seriesOf(labels: Record<string, string>, isTcp: boolean, namespace: string): SidecarSeries | undefined {
  const { reporter } = labels;
  if ((reporter !== 'source' && reporter !== 'destination') || labels[`${reporter}_workload_namespace`] !== namespace) return undefined;
  return { reporter, labels: { ...labels, ...(isTcp ? { request_protocol: 'tcp' } : {}) }, totals: { count: 0, failed: 0, received: 0, sent: 0, times: [] } };
}

function labelsOf(text: string): Record<string, string> {
  return Object.fromEntries([...text.matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)].map(([, name = '', value = '']) => [name, value.replace(/\\(.)/g, (_, character: string) => (character === 'n' ? '\n' : character)).slice(0, MAX_LABEL_CHARACTERS)]));
}

function add({ labels, totals }: SidecarSeries, name: string, value: number): void {
  if (name === 'requests_total') {
    const [status, grpc] = [Number(labels['response_code']), labels['grpc_response_status'] ?? ''];
    totals.count += value;
    if (status >= 500 || status === 0 || (grpc !== '' && grpc !== '0')) totals.failed += value;
  } else if (name === 'tcp_connections_opened_total') totals.count += value;
  else if (name === 'tcp_connections_closed_total') totals.failed += (labels['response_flags'] ?? '').split(',').every((flag) => ENDINGS.has(flag)) ? 0 : value;
  else if (name === 'request_bytes_sum' || name === 'tcp_received_bytes_total') totals.received += value;
  else totals.sent += value;
}

/** In the agent's buckets; those of a sidecar may have other bounds. */
function timesOf(buckets: [bound: number, count: number][]): number[] {
  const times = new Array<number>(HTTP_BOUNDS.length + 1).fill(0);
  let before = 0;
  for (const [bound, count] of buckets.sort(([a], [b]) => a - b)) {
    const at = HTTP_BOUNDS.findIndex((own) => bound <= own);
    times[at < 0 ? HTTP_BOUNDS.length : at]! += Math.max(0, count - before);
    before = Math.max(before, count);
  }
  return times;
}
