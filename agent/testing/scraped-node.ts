/** A node with many series: the kernel's tables and the control plane's workloads as plain data, and the agent's telemetry above them. */
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { FlowEntry, Flows, FlowSide } from '../dataplane/kernel-flows.js';
import type { HttpRequests, HttpTotalEntry, HttpTotals } from '../dataplane/kernel-http-totals.js';
import { FlowDirectory, type FlowPod, type KnownWorkloads } from '../telemetry/flow-labels.js';
import { FlowSeriesSource } from '../telemetry/flow-series.js';
import { HTTP_BOUNDS } from '../telemetry/http-bounds.js';
import { HttpSeriesSource } from '../telemetry/http-series.js';

const SERVERS = 50;
const RTT_BUCKETS = 16;

const side = (count: number): FlowSide => ({ opened: BigInt(count), closed: BigInt(count), denied: 0n, failed: 0n, received: BigInt(count * 1_000_003), sent: BigInt(count * 2_000_003), rttSumUs: BigInt(count * 20), rtt: Array.from({ length: RTT_BUCKETS }, (_, index) => BigInt(index === 3 ? count : 0)) });
const buckets = (count: number): bigint[] => Array.from({ length: HTTP_BOUNDS.length + 1 }, (_, index) => BigInt(index === 4 ? count : 0));
const totals = (count: number): HttpTotals => ({ requests: BigInt(count), requestBytes: BigInt(count * 300), answerBytes: BigInt(count * 4_000), durationUs: BigInt(count * 1_500), duration: buckets(count), request: buckets(count), answer: buckets(count) });
const address = (net: number, index: number): string => `10.${net}.${index >> 8}.${index & 255}`;
const bytes = (text: string): Buffer => Buffer.from(text.split('.').map(Number));

/** Clients, each with a workload of its own, of fifty servers and their services. */
class Mesh implements KnownWorkloads {
  readonly addresses = new Map<string, { message: Address }>();
  readonly synced = true;
  readonly revision = 1;
  readonly pods: FlowPod[] = [];

  constructor(pairs: number) {
    const clients = Math.ceil(pairs / SERVERS);
    for (let index = 0; index < clients; index++) this.#pod(`client-of-many-services-${index}`, 1, index, BigInt(1_000 + index));
    for (let index = 0; index < SERVERS; index++) {
      this.#pod(`backend-of-the-shop-${index}`, 2, index, BigInt(1 + index));
      const hostname = this.hostname(index);
      this.addresses.set(`s${index}`, { message: Address.fromPartial({ type: { $case: 'service', value: Service.fromPartial({ name: `backend-of-the-shop-${index}`, namespace: 'production', hostname, addresses: [{ network: '', address: bytes(this.vip(index)) }] }) } }) });
    }
  }

  vip(server: number): string {
    return address(96, server);
  }

  hostname(server: number): string {
    return `backend-of-the-shop-${server}.production.svc.cluster.local`;
  }

  #pod(name: string, net: number, index: number, netnsCookie: bigint): void {
    const own = address(net, index);
    this.pods.push({ netnsCookie, addresses: [own] });
    const value = Workload.fromPartial({ uid: name, name, namespace: 'production', addresses: [bytes(own)], workload_name: name, service_account: name, canonical_name: name, canonical_revision: 'v1', cluster_id: 'Kubernetes', trust_domain: 'cluster.local', locality: { region: 'eu-central-1', zone: 'eu-central-1a', subzone: '' } });
    this.addresses.set(name, { message: Address.fromPartial({ type: { $case: 'workload', value } }) });
  }
}

export class ScrapedNode {
  private constructor(
    readonly flows: FlowSeriesSource,
    readonly requests: HttpSeriesSource,
    readonly description: string,
  ) {}

  /** @param pairs of a client and a server, each with its own labels and both reporters */
  static ofConnections(pairs: number): ScrapedNode {
    const mesh = new Mesh(pairs);
    const entries = Array.from({ length: pairs }, (_, index): FlowEntry => ({ id: `${index}`, key: { client: BigInt(1_000 + Math.floor(index / SERVERS)), server: BigInt(1 + (index % SERVERS)), peer: undefined, service: { address: mesh.vip(index % SERVERS), port: 80 }, endpointPort: 8080 }, source: side(index + 1), destination: side(index + 1) }));
    return ScrapedNode.#of(mesh, entries, [], `${pairs} pairs of workloads`);
  }

  /** As `ofConnections`. */
  static ofRequests(pairs: number): ScrapedNode {
    const mesh = new Mesh(pairs);
    const entries = Array.from({ length: pairs }, (_, index): HttpTotalEntry => ({ id: `${index}`, client: BigInt(1_000 + Math.floor(index / SERVERS)), server: BigInt(1 + (index % SERVERS)), service: { hostname: mesh.hostname(index % SERVERS), name: `backend-of-the-shop-${index % SERVERS}`, namespace: 'production' }, status: 200, ending: 'answered', totals: totals(index + 1) }));
    return ScrapedNode.#of(mesh, [], entries, `${pairs} pairs of workloads`);
  }

  static #of(mesh: Mesh, connections: FlowEntry[], requests: HttpTotalEntry[], description: string): ScrapedNode {
    const flows: Flows = { rttBoundsUs: Array.from({ length: RTT_BUCKETS - 1 }, (_, index) => 16 * 2 ** index), settle: () => undefined, entries: () => connections, take: () => undefined, retired: () => new Map(), retire: () => true, dropRetired: () => undefined };
    const http: HttpRequests = { entries: () => requests, take: () => undefined, retired: () => new Map(), retire: () => true, dropRetired: () => undefined };
    return new ScrapedNode(new FlowSeriesSource({ flows, pods: () => mesh.pods, workloads: mesh }), new HttpSeriesSource({ requests: http, pods: () => mesh.pods, directory: new FlowDirectory(mesh) }), description);
  }
}
