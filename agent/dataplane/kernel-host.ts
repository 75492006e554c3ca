/** The node itself, whose processes (the kubelet above all) reach its pods whatever their policy says: bpf/policy.h. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Closable } from '../../common/lifecycle.js';
import { cgroup2Root, cgroupId, netnsCookie, type BpfLink, type BpfMap, type BpfObject } from '../../native/index.js';
import type { AuditedLink } from './kernel-audit.js';
import { StructCodec, u32 } from './kernel-codec.js';

const PROGRAM = 'host_sockops';
const PIN = `links/host/${PROGRAM}`;
const MATCH = 'match_host';

export class KernelHost implements Closable {
  readonly #object: BpfObject;
  readonly #pinDir: string | null;
  readonly #map: BpfMap;
  readonly #openings: BpfMap;
  readonly #codecs: Record<'host' | 'tuple' | 'opening', StructCodec>;
  readonly #layout: number;
  #link: BpfLink | undefined;
  #netnsCookie = 0n;

  constructor(object: BpfObject, pinDir: string | null, layout: number) {
    this.#object = object;
    this.#pinDir = pinDir;
    this.#layout = layout;
    this.#map = object.map('hosts');
    this.#openings = object.map('openings');
    this.#codecs = {
      host: new StructCodec(object, 'host').check(this.#map, 'value'),
      tuple: new StructCodec(object, 'tuple').check(this.#openings, 'key'),
      opening: new StructCodec(object, 'opening').check(this.#openings, 'value'),
    };
  }

  /**
   * Exempts what sockets of this network namespace open to pods, but for the shared proxy's. The hook is on the root of the cgroup
   * tree, since a kubelet can be anywhere in it, and looks at nothing but the opening and the end of connections.
   * @returns the path of the program that tells iptables rules (`-m bpf --object-pinned`) of such connections; none if nothing is pinned
   */
  async attach(netnsPath: string, proxyCgroupPath?: string): Promise<string | undefined> {
    this.#netnsCookie = await netnsCookie(netnsPath);
    this.#map.set(u32(0), this.#codecs.host.encode({ netns_cookie: this.#netnsCookie, proxy_cgroup: proxyCgroupPath === undefined ? 0n : cgroupId(proxyCgroupPath) }));
    this.#attach();
    if (this.#pinDir === null) return undefined;
    // Rules hold the program that they were made with. With other maps it has another name, so that they are seen to be out of date.
    const name = `programs/${MATCH}_${this.#layout.toString(16)}`;
    return this.#object.pinProgram(MATCH, name);
  }

  #attach(): void {
    const former = this.#link;
    this.#link = this.#object.attachCgroup(PROGRAM, cgroup2Root(), this.#pinDir === null ? null : PIN);
    former?.close();
  }

  *audited(): Generator<AuditedLink> {
    if (this.#pinDir === null || !this.#link) return;
    yield { name: `node ${PROGRAM}`, programId: this.#object.programId(PROGRAM), pin: join(this.#pinDir, PIN), targetId: cgroupId(cgroup2Root()), attach: () => this.#attach() };
  }

  /** Takes over what a former agent attached. */
  adopt(): void {
    const value = this.#map.get(u32(0));
    this.#netnsCookie = value ? this.#codecs.host.bigint(value, 'netns_cookie') : 0n;
    this.#link = this.#object.replaceLink(PROGRAM, PIN);
  }

  /** Takes the exemption away. */
  detach(): void {
    this.#map.set(u32(0), this.#codecs.host.encode({}));
    this.#netnsCookie = 0n;
    this.#link?.close();
    this.#link = undefined;
    if (this.#pinDir !== null) rmSync(join(this.#pinDir, PIN), { force: true });
  }

  /** Whether the node itself opened this connection to a pod, and has not closed it. Addresses of 16 bytes. */
  opened(podCookie: bigint, remote: { address: Buffer; port: number }, local: { address: Buffer; port: number }): boolean {
    if (this.#netnsCookie === 0n) return false;
    const key = this.#codecs.tuple.encode({ netns_cookie: podCookie, local: remote.address, remote: local.address, local_port: remote.port, remote_port: local.port });
    const value = this.#openings.get(key);
    const { opening } = this.#codecs;
    return value !== undefined && opening.number(value, 'slot') === 0 && opening.bigint(value, 'netns_cookie') === this.#netnsCookie;
  }

  /** How many connections the node itself has with pods, or opens. Walks the table. */
  noted(): number {
    const { opening } = this.#codecs;
    return this.#openings.entries().filter(([, value]) => opening.number(value, 'slot') === 0 && opening.bigint(value, 'netns_cookie') === this.#netnsCookie).length;
  }

  close(): void {
    this.#link?.close();
  }
}
