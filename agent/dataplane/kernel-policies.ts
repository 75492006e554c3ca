/** Pods' policies as bpf/policy.h has them: one map value a pod, replaced at once. */
import { randomBytes } from 'node:crypto';
import type { BpfMap, BpfObject } from '../../native/index.js';
import { UnderpassError } from '../../common/errors.js';
import type { Drift } from '../consistency/drift.js';
import { ALL_PORTS, isAllPorts, type Block, type PortRange } from '../policy/blocks.js';
import { decidingTerm, MAX_BLOCKS, MAX_CLASSES, MAX_PORT_RANGES, MAX_TERMS, type CompiledPolicy, type Term } from '../policy/compile.js';
import { encodeAddress, StructCodec } from './kernel-codec.js';

export interface PodPolicy {
  /** The same for the same policies, from one agent to the next. */
  version: bigint;
  /** undefined: it can't be judged by, and nobody new is let in. */
  compiled: CompiledPolicy | undefined;
  /** What comes over the network is led to the proxy, which decides. */
  behindProxy: boolean;
  /** Of which the kernel's word is enough all the same, for callers of this node; ascending. */
  judgedPorts?: readonly number[];
}

/** How the policy that is in the kernel judges one connection. */
export interface PolicyAnswer {
  allowed: boolean;
  /** Of the deciding term; -1: none fits, and the default decides. undefined: it can't be judged by, or does not know the caller. */
  term: number | undefined;
  version: bigint;
  /** What comes over the network is led to the proxy, which decides. */
  behindProxy: boolean;
}

/** A pod's entry in the kernel's tables. */
export interface Place {
  uid: string;
  netnsCookie: bigint;
  slot: number;
  /** Only these are protected; pods with a sidecar have their own proxy for that. */
  isNode: boolean;
}

/** A policy is several kilobytes. */
const AUDITED_ENTRIES = 64;
/** Whoever has a place and no class is not known to the policy: it lets nobody in whom it can't judge. */
const UNKNOWN_CLASS = 255;

export class KernelPolicies {
  readonly #map: BpfMap;
  readonly #codecs: Record<'policy' | 'term' | 'ports' | 'cidr', StructCodec>;
  readonly #states: { decide: number; unreadable: number };
  readonly #written = new Map<bigint, Buffer>();
  readonly #places: () => Iterable<Place>;
  /** undefined: what a former agent wrote holds. */
  #wanted: ReadonlyMap<string, PodPolicy | 'as it is'> | undefined;

  constructor(object: BpfObject, places: () => Iterable<Place>) {
    this.#map = object.map('policies');
    const codec = (name: string): StructCodec => new StructCodec(object, name);
    this.#codecs = { policy: codec('policy').check(this.#map, 'value'), term: codec('policy_term'), ports: codec('policy_ports'), cidr: codec('policy_cidr') };
    const states = object.enumValues('policy_state');
    this.#states = { decide: states['POLICY_TERMS_DECIDE'] as number, unreadable: states['POLICY_UNREADABLE'] as number };
    this.#places = places;
    this.#checkSizes();
  }

  /** The whole set, by uid; pods that are not in it take all that comes. */
  set(wanted: ReadonlyMap<string, PodPolicy | 'as it is'>): void {
    this.#wanted = wanted;
    this.refresh();
  }

  /** Of what is in force, by uid. */
  versions(): Map<string, bigint> {
    const found = [...this.#places()].map(({ uid, netnsCookie }) => [uid, this.#map.get(keyOf(netnsCookie))] as const);
    return new Map(found.flatMap(([uid, value]) => (value ? [[uid, this.#codecs.policy.bigint(value, 'version')]] : [])));
  }

  /**
   * What `policy_allows` in bpf/policy.h would say, asked of the map's own value.
   * @param from the caller's uid
   * @returns undefined: the pod takes all that comes
   */
  judge(from: string, to: bigint, source: string, destination: string, port: number): PolicyAnswer | undefined {
    const { policy: codec } = this.#codecs;
    const value = this.#map.get(keyOf(to));
    if (!value) return undefined;
    const common = { version: codec.bigint(value, 'version'), behindProxy: codec.number(value, 'behind_proxy') !== 0 };
    const slot = [...this.#places()].find(({ uid }) => uid === from)?.slot;
    const number = slot === undefined ? 0 : (codec.bytes(value, 'class_of')[slot] ?? UNKNOWN_CLASS);
    if (codec.number(value, 'state') !== this.#states.decide || codec.bigint(value, 'netns_cookie') !== to || number >= MAX_CLASSES) return { ...common, allowed: false, term: undefined };
    const terms = this.#decodeTerms(value);
    const term = decidingTerm(terms, { class: number, source: encodeAddress(source), destination: encodeAddress(destination), port });
    return { ...common, allowed: term < 0 ? codec.number(value, 'allow_by_default') !== 0 : !terms[term]!.deny, term };
  }

  /**
   * After a change of places.
   * @param about whose policy it is about; others' are tried again by whoever sets them
   * @throws KernelError of the first that the kernel does not take, when all others are written
   */
  refresh(about?: bigint): void {
    if (!this.#wanted) return;
    const places = [...this.#places()];
    const governed = new Map(places.flatMap(({ uid, netnsCookie, isNode }) => {
      const policy = isNode ? this.#wanted!.get(uid) : undefined;
      return policy ? [[netnsCookie, policy] as const] : [];
    }));
    // First, since it makes room.
    const present = new Set(this.#map.keys().map((key) => key.readBigUInt64LE()));
    for (const netnsCookie of present) if (!governed.has(netnsCookie)) this.forget(netnsCookie);
    const failures: unknown[] = [];
    for (const [netnsCookie, policy] of governed) {
      if (policy === 'as it is') continue;
      const value = this.#encode(policy, places);
      try {
        if (!present.has(netnsCookie) || !this.#written.get(netnsCookie)?.equals(value)) this.#write(netnsCookie, value);
        this.#written.set(netnsCookie, value);
      } catch (error) {
        if (about === undefined || about === netnsCookie) failures.push(error);
      }
    }
    if (failures.length > 0) throw failures[0];
  }

  /** Compares the map with what it was given: parts as those of a Check. */
  *audit(): Generator<Drift[]> {
    const { policy: codec } = this.#codecs;
    const wanted = this.#wanted;
    if (!wanted) return;
    const byCookie = new Map([...this.#places()].filter(({ isNode }) => isNode).map(({ uid, netnsCookie }) => [netnsCookie, uid]));
    for (const [netnsCookie, uid] of byCookie) {
      const written = this.#written.get(netnsCookie);
      // What a former agent wrote, or could not be written.
      if (!written || this.#wanted !== wanted) continue;
      const found = this.#map.get(keyOf(netnsCookie));
      const drift = (state: Drift['state']): Drift[] => [{ kind: 'policy', state, name: uid, pod: uid, repair: () => this.#write(netnsCookie, written) }];
      if (!found) {
        yield drift('missing');
        continue;
      }
      const isOwn = codec.bigint(found, 'netns_cookie') === netnsCookie;
      codec.bytes(found, 'write').fill(0);
      codec.bytes(found, 'netns_cookie').fill(0);
      yield isOwn && found.equals(written) ? [] : drift('wrong');
    }
    const keys = [...this.#map.parts(AUDITED_ENTRIES)].flatMap(({ keys: all, count }) => Array.from({ length: count }, (_, at) => all.readBigUInt64LE(at * 8)));
    const places = new Map([...this.#places()].map(({ netnsCookie, uid, isNode }) => [netnsCookie, isNode && this.#wanted!.has(uid)]));
    yield keys.filter((cookie) => !places.get(cookie)).map((cookie): Drift => ({ kind: 'policy', state: 'orphaned', name: `netns ${cookie}`, repair: () => this.forget(cookie) }));
  }

  /** Before the place goes to another pod: values that are not written anew still know it as the former one's. */
  forgetPlace(slot: number): void {
    const { policy: codec } = this.#codecs;
    for (const key of this.#map.keys()) {
      const netnsCookie = key.readBigUInt64LE();
      const written = this.#written.get(netnsCookie);
      if (written && codec.bytes(written, 'class_of')[slot] === UNKNOWN_CLASS) continue;
      const value = this.#map.get(key);
      const classes = value && codec.bytes(value, 'class_of');
      if (!classes || classes[slot] === UNKNOWN_CLASS) continue;
      classes[slot] = UNKNOWN_CLASS;
      this.#written.delete(netnsCookie);
      this.#write(netnsCookie, value);
    }
  }

  forget(netnsCookie: bigint): void {
    this.#written.delete(netnsCookie);
    this.#map.delete(keyOf(netnsCookie));
  }

  #write(netnsCookie: bigint, value: Buffer): void {
    const { policy: codec } = this.#codecs;
    const marked = Buffer.from(value);
    randomBytes(8).copy(codec.bytes(marked, 'write'));
    keyOf(netnsCookie).copy(codec.bytes(marked, 'netns_cookie'));
    this.#map.set(keyOf(netnsCookie), marked);
  }

  #encode({ compiled, behindProxy, version, judgedPorts = [] }: PodPolicy, places: readonly Place[]): Buffer {
    const { policy: codec } = this.#codecs;
    const behind_proxy = behindProxy ? 1 : 0;
    if (!compiled) return codec.encode({ state: this.#states.unreadable, behind_proxy, version });
    const class_of = Buffer.alloc(codec.size('class_of'), UNKNOWN_CLASS);
    for (const { uid, slot } of places) class_of[slot] = compiled.classes.get(uid) ?? UNKNOWN_CLASS;
    const ports: Buffer[] = [];
    const cidrs: Buffer[] = [];
    const terms = compiled.terms.map((term) => this.#encodeTerm(term, ports, cidrs));
    // Where there is no room they are all the proxy's.
    const judged = rangesOf(judgedPorts).map(([first, last]) => this.#codecs.ports.encode({ first, last }));
    const room = ports.length + judged.length <= MAX_PORT_RANGES ? judged : [];
    const first = ports.push(...room) - room.length;
    return codec.encode({
      'judged.first': first, 'judged.count': room.length,
      state: this.#states.decide, terms_used: terms.length, allow_by_default: compiled.allowByDefault ? 1 : 0, behind_proxy, version, class_of,
      terms: Buffer.concat(terms), ports: Buffer.concat(ports), cidrs: Buffer.concat(cidrs),
    });
  }

  #encodeTerm(term: Term, ports: Buffer[], cidrs: Buffer[]): Buffer {
    const span = <T>(name: string, items: readonly T[], into: Buffer[], encode: (item: T) => Buffer): Record<string, number> => {
      const at = into.push(...items.map(encode)) - items.length;
      return { [`${name}.first`]: at, [`${name}.count`]: items.length };
    };
    const block = ({ address, mask, ipv4 }: Block): Buffer => this.#codecs.cidr.encode({ address, mask, ipv4: ipv4 ? 1 : 0 });
    return this.#codecs.term.encode({
      classes: term.classes,
      deny: term.deny ? 1 : 0,
      ...span('ports', isAllPorts(term.ports) ? [] : term.ports, ports, ([first, last]: PortRange) => this.#codecs.ports.encode({ first, last })),
      ...span('sources', term.sources ?? [], cidrs, block),
      ...span('not_sources', term.notSources, cidrs, block),
      ...span('destinations', term.destinations ?? [], cidrs, block),
      ...span('not_destinations', term.notDestinations, cidrs, block),
    });
  }

  #decodeTerms(value: Buffer): Omit<Term, 'policy'>[] {
    const { policy, term: codec, ports, cidr } = this.#codecs;
    const items = <T>(term: Buffer, span: string, list: string, of: StructCodec, decode: (item: Buffer) => T): T[] =>
      Array.from({ length: codec.number(term, `${span}.count`) }, (_, index) => {
        const at = (codec.number(term, `${span}.first`) + index) * of.sizeBytes;
        return decode(policy.bytes(value, list).subarray(at, at + of.sizeBytes));
      });
    return Array.from({ length: policy.number(value, 'terms_used') }, (_, index) => {
      const term = policy.bytes(value, 'terms').subarray(index * codec.sizeBytes, (index + 1) * codec.sizeBytes);
      const blocks = (span: string): Block[] => items(term, span, 'cidrs', cidr, (item) => ({ address: cidr.bytes(item, 'address'), mask: cidr.bytes(item, 'mask'), ipv4: cidr.number(item, 'ipv4') !== 0 }));
      const or = <T>(found: T[]): T[] | undefined => (found.length > 0 ? found : undefined);
      return {
        deny: codec.number(term, 'deny') !== 0, classes: codec.bigint(term, 'classes'),
        ports: or(items(term, 'ports', 'ports', ports, (item): PortRange => [ports.number(item, 'first'), ports.number(item, 'last')])) ?? ALL_PORTS,
        sources: or(blocks('sources')), notSources: blocks('not_sources'), destinations: or(blocks('destinations')), notDestinations: blocks('not_destinations'),
      };
    });
  }

  #checkSizes(): void {
    const { policy, term, ports, cidr } = this.#codecs;
    const sizes = [policy.size('terms') / term.sizeBytes, policy.size('ports') / ports.sizeBytes, policy.size('cidrs') / cidr.sizeBytes];
    if (sizes.join() !== [MAX_TERMS, MAX_PORT_RANGES, MAX_BLOCKS].join()) throw new UnderpassError('UNDERPASS_KERNEL_LAYOUT', `struct policy holds ${sizes.join(', ')} terms, ranges and blocks, expected ${MAX_TERMS}, ${MAX_PORT_RANGES} and ${MAX_BLOCKS}`);
  }
}

/** @param ports ascending */
function rangesOf(ports: readonly number[]): PortRange[] {
  const ranges: [number, number][] = [];
  for (const port of ports) {
    const last = ranges.at(-1);
    if (last && last[1] === port - 1) last[1] = port;
    else ranges.push([port, port]);
  }
  return ranges;
}

function keyOf(netnsCookie: bigint): Buffer {
  const key = Buffer.alloc(8);
  key.writeBigUInt64LE(netnsCookie);
  return key;
}
