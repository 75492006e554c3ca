/**
 * Telemetry of connections that no proxy sees, as the BPF programs keep it (bpf/flow.h): totals by client, server and
 * service, and a record of each connection that ends. The totals outlive the agent, so they are what everything is told from.
 */
import { UnderpassError } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { decodeAddress, StructCodec, u64 } from './kernel-codec.js';

export type FlowSideName = 'source' | 'destination';

/** `received` by the server and `sent` by it, at both sides. */
export interface FlowSide {
  opened: bigint;
  /** Of these three each connection adds to one. */
  closed: bigint;
  /** Closed since policy forbids it, before it was established or later. */
  denied: bigint;
  /** Closed without ever being established. */
  failed: bigint;
  received: bigint;
  sent: bigint;
  rttSumUs: bigint;
  /** Observations by bucket; FlowTotals.rttBoundsUs has the bounds, and the last bucket none. */
  rtt: bigint[];
}

/** Pods by netns cookies. */
export interface FlowKey {
  /** 0: none of this node's mesh, or every one for which there was no room. */
  client: bigint;
  /** 0: every server and service for which the client had no room left, or a proxy. */
  server: bigint;
  /** Address of a client that is no pod of this node's mesh. */
  peer: string | undefined;
  /** What the client asked for; undefined: the server's own address. */
  service: { address: string; port: number } | undefined;
  endpointPort: number;
}

export interface FlowEntry extends Record<FlowSideName, FlowSide> {
  /** For `take`. */
  id: string;
  key: FlowKey;
}

/** `denied`: policy refused it, and there never was a connection. */
export type FlowWay = 'short-circuited' | 'plain' | 'proxy' | 'denied';

export interface FlowRecord {
  key: FlowKey;
  /** Port 0: it was denied before it had one. */
  client: { address: string; port: number };
  endpoint: string;
  way: FlowWay;
  /** The counter that says why it was not short-circuited, or where it was denied. */
  reason: string | undefined;
  received: bigint;
  sent: bigint;
  /** Of both directions: what was moved between the sockets. */
  moved: bigint;
  durationMs: number;
  rttUs: number;
}

/** What telemetry needs of the kernel. */
export interface Flows {
  /** Upper bounds of all RTT buckets but the last, in microseconds. */
  readonly rttBoundsUs: readonly number[];
  /** Adds what open connections have carried by now. */
  settle(): void;
  entries(): FlowEntry[];
  /** Ends an entry, and returns what it held last. */
  take(id: string): FlowEntry | undefined;
  /** Totals of sides whose entries are gone, by a hash of 16 bytes in hex. */
  retired(): Map<string, FlowSide>;
  /** Adds to one of these. False: there is no room. */
  retire(hash: string, side: FlowSide): boolean;
  dropRetired(hash: string): void;
}

const WAYS: Record<string, FlowWay> = { FLOW_SHORT_CIRCUITED: 'short-circuited', FLOW_PLAIN: 'plain', FLOW_PROXY: 'proxy', FLOW_DENIED: 'denied' };

/** Decoded when it is looked at, since there are thousands, and whoever reads them has others' turns between. */
class ReadEntry implements FlowEntry {
  #key: FlowKey | undefined;
  #source: FlowSide | undefined;
  #destination: FlowSide | undefined;

  constructor(readonly bytes: Buffer, readonly readKey: () => FlowKey, readonly readSide: (side: FlowSideName) => FlowSide) {}

  get id(): string {
    return this.bytes.toString('hex');
  }

  get key(): FlowKey {
    return (this.#key ??= this.readKey());
  }

  get source(): FlowSide {
    return (this.#source ??= this.readSide('source'));
  }

  get destination(): FlowSide {
    return (this.#destination ??= this.readSide('destination'));
  }
}

export class KernelFlows implements Flows, Closable {
  readonly rttBoundsUs: readonly number[];
  readonly #object: BpfObject;
  readonly #totals: BpfMap;
  readonly #retired: BpfMap;
  readonly #quotas: BpfMap;
  readonly #key: StructCodec;
  readonly #side: StructCodec;
  readonly #value: StructCodec;
  readonly #record: StructCodec;
  readonly #ways: Map<number, FlowWay>;
  #ring: Closable | undefined;

  constructor(object: BpfObject, readonly counterNames: readonly string[]) {
    this.#object = object;
    this.#totals = object.map('flow_totals');
    this.#retired = object.map('flow_retired');
    this.#quotas = object.map('flow_quotas');
    this.#key = new StructCodec(object, 'flow_key').check(this.#totals, 'key');
    this.#value = new StructCodec(object, 'flow_totals').check(this.#totals, 'value');
    this.#side = new StructCodec(object, 'flow_side').check(this.#retired, 'value');
    this.#record = new StructCodec(object, 'flow_record');
    const limits = object.enumValues('flow_limit');
    const [buckets, first] = [limits['FLOW_RTT_BUCKETS'], limits['FLOW_RTT_FIRST_US']];
    if (buckets === undefined || first === undefined) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', 'reading the BPF object\'s constants: no FLOW_RTT_BUCKETS or FLOW_RTT_FIRST_US');
    this.rttBoundsUs = Array.from({ length: buckets - 1 }, (_, index) => first * 2 ** index);
    const ways = object.enumValues('flow_way');
    this.#ways = new Map(Object.entries(WAYS).map(([name, way]) => [ways[name] ?? -1, way]));
  }

  /** The entry for all that finds no room has to be there before that. */
  start(): void {
    const all = Buffer.alloc(this.#key.sizeBytes);
    if (!this.#totals.get(all)) this.#totals.set(all, Buffer.alloc(this.#value.sizeBytes));
  }

  /** Whether the bytes of open connections can be told; those that have closed always are. */
  get tellsOpen(): boolean {
    return this.#object.isLoaded('settle_flows');
  }

  settle(): void {
    if (this.tellsOpen) this.#object.runIterator('settle_flows', 'socket_states');
  }

  entries(): FlowEntry[] {
    return this.#totals.entries().map(([key, value]) => this.#entry(key, value));
  }

  take(id: string): FlowEntry | undefined {
    const key = Buffer.from(id, 'hex');
    const value = this.#totals.get(key);
    if (!value) return undefined;
    // What a program adds between these two lines is lost: the ends of such an entry are gone.
    this.#totals.delete(key);
    const entry = this.#entry(key, value);
    this.#release(entry.key.client || entry.key.server);
    return entry;
  }

  retired(): Map<string, FlowSide> {
    return new Map(this.#retired.entries().map(([key, value]) => [key.toString('hex'), this.#decode(value, this.#side, '')]));
  }

  retire(hash: string, side: FlowSide): boolean {
    const key = Buffer.from(hash, 'hex');
    const before = this.#retired.get(key);
    const sum = before ? addSides(this.#decode(before, this.#side, ''), side) : side;
    const rtt = Buffer.alloc(sum.rtt.length * 8);
    sum.rtt.forEach((count, index) => rtt.writeBigUInt64LE(count, index * 8));
    return this.#retired.setIfRoom(key, this.#side.encode({ opened: sum.opened, closed: sum.closed, denied: sum.denied, failed: sum.failed, received: sum.received, sent: sum.sent, rtt_sum_us: sum.rttSumUs, rtt }));
  }

  dropRetired(hash: string): void {
    this.#retired.delete(Buffer.from(hash, 'hex'));
  }

  /** A pod that is gone will not need its quota. */
  forgetNamespace(cookie: bigint): void {
    this.#quotas.delete(u64(cookie));
  }

  /** Records come when the kernel's setting says so; without a reader they are lost, and counted. */
  onRecord(callback: (record: FlowRecord) => void): void {
    this.#ring ??= this.#object.ringBuffer('flow_records', (record) => callback(this.#flowRecord(record)));
  }

  close(): void {
    void this.#ring?.close();
  }

  /** A race with a connection that begins makes it wrong by one: it is a bound, no count. */
  #release(owner: bigint): void {
    const value = this.#quotas.get(u64(owner));
    if (!value || value.readUInt32LE() === 0) return;
    const less = Buffer.alloc(4);
    less.writeUInt32LE(value.readUInt32LE() - 1);
    this.#quotas.set(u64(owner), less);
  }

  #entry(key: Buffer, value: Buffer): FlowEntry {
    return new ReadEntry(key, () => this.#flowKey(key), (side) => this.#decode(value, this.#value, `${side}.`));
  }

  #flowKey(key: Buffer): FlowKey {
    const address = (name: 'peer' | 'service'): string | undefined => {
      const bytes = this.#key.bytes(key, name);
      return bytes.every((byte) => byte === 0) ? undefined : decodeAddress(bytes);
    };
    const service = address('service');
    return {
      client: this.#key.bigint(key, 'client'),
      server: this.#key.bigint(key, 'server'),
      peer: address('peer'),
      service: service === undefined ? undefined : { address: service, port: this.#key.number(key, 'service_port') },
      endpointPort: this.#key.number(key, 'endpoint_port'),
    };
  }

  #decode(value: Buffer, codec: StructCodec, prefix: string): FlowSide {
    const number = (name: string): bigint => codec.bigint(value, prefix + name);
    const rtt = codec.bytes(value, `${prefix}rtt`);
    return {
      opened: number('opened'), closed: number('closed'), denied: number('denied'), failed: number('failed'),
      received: number('received'), sent: number('sent'), rttSumUs: number('rtt_sum_us'),
      rtt: Array.from({ length: rtt.length / 8 }, (_, index) => rtt.readBigUInt64LE(index * 8)),
    };
  }

  #flowRecord(record: Buffer): FlowRecord {
    const number = (name: string): number => this.#record.number(record, name);
    return {
      key: this.#flowKey(this.#record.bytes(record, 'key')),
      client: { address: decodeAddress(this.#record.bytes(record, 'client')), port: number('client_port') },
      endpoint: decodeAddress(this.#record.bytes(record, 'endpoint')),
      way: this.#ways.get(number('way')) ?? 'plain',
      reason: this.counterNames[number('reason')],
      received: this.#record.bigint(record, 'received'),
      sent: this.#record.bigint(record, 'sent'),
      moved: this.#record.bigint(record, 'moved'),
      durationMs: Number(this.#record.bigint(record, 'duration_ns')) / 1e6,
      rttUs: number('rtt_us'),
    };
  }
}

/** Connections that there are. */
export function openOf({ opened, closed, denied, failed }: FlowSide): bigint {
  return opened - closed - denied - failed;
}

export function addSides(a: FlowSide, b: FlowSide): FlowSide {
  return {
    opened: a.opened + b.opened, closed: a.closed + b.closed, denied: a.denied + b.denied, failed: a.failed + b.failed, received: a.received + b.received, sent: a.sent + b.sent,
    rttSumUs: a.rttSumUs + b.rttSumUs, rtt: a.rtt.map((count, index) => count + (b.rtt[index] ?? 0n)),
  };
}
