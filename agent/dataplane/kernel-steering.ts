/** Leads what comes to a pod over the network to the proxy's listener in its namespace, without NAT: bpf/steer.h. */
import { mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorCode } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import { waitFor } from '../../common/retry.js';
import { linkInfo, type BpfLink, type BpfMap, type BpfObject } from '../../native/index.js';
import { pinName } from './bpffs.js';
import type { Drift } from '../consistency/drift.js';
import type { AuditedLink } from './kernel-audit.js';
import { StructCodec } from './kernel-codec.js';
import { leftSteering } from './kernel-leftovers.js';

const PROGRAM = 'steer_inbound';
const FOLDER = 'links/steering';
/** Empty folders: pods that were steered, for the agent that comes next. */
const FORMER = 'links/steered';
const AF_INET = 2;
const AF_INET6 = 10;
/** Envoy listens before it says that it has the listener. */
const LISTENING_MS = 2_000;

export interface SteeredPod {
  uid: string;
  netnsPath: string;
  netnsCookie: bigint;
  /** Whether the proxy listens for IPv6 too. */
  ipv6: boolean;
}

export class KernelSteering implements Closable {
  readonly #object: BpfObject;
  readonly #pinDir: string | null;
  readonly #listeners: BpfMap;
  readonly #key: StructCodec;
  readonly #links = new Map<string, BpfLink>();
  /** Where each of these is: its namespace's inode, and a path once that is known. */
  readonly #places = new Map<string, { inode: bigint; path?: string }>();
  readonly #former = new Set<string>();
  /** Names of pins of an agent whose maps are not these: its program goes on until this one's takes its place. */
  readonly #kept = new Set<string>();
  readonly #leftovers: Drift[] = [];

  constructor(object: BpfObject, pinDir: string | null) {
    this.#object = object;
    this.#pinDir = pinDir;
    this.#listeners = object.map('inbound_listeners');
    this.#key = new StructCodec(object, 'inbound_key').check(this.#listeners, 'key');
  }

  /**
   * From now on whoever comes to the pod over the network gets to the proxy, and is refused when it does not listen.
   * @param mayWait for the proxy to listen
   * @throws UnderpassError `UNDERPASS_NO_LISTENER` when it does not, KernelError when the kernel refuses
   */
  async start(pod: SteeredPod, mayWait = true): Promise<void> {
    const { uid, netnsPath, netnsCookie, ipv6 } = pod;
    const families = ipv6 ? [AF_INET, AF_INET6] : [AF_INET];
    const missing = (): number | undefined => families.find((family) => this.#listeners.get(this.#key.encode({ netns_cookie: netnsCookie, family })) === undefined);
    if (mayWait) await waitFor("the proxy's inbound listener", () => missing() === undefined, { timeoutMs: LISTENING_MS, everyMs: 20 }).catch(() => undefined);
    const family = missing();
    if (family !== undefined) throw new UnderpassError('UNDERPASS_NO_LISTENER', `steering to the proxy's listener in ${netnsPath}: the kernel's programs have not seen it listen${family === AF_INET6 ? ' for IPv6' : ''}`);
    this.#attach(uid, netnsPath);
  }

  #attach(uid: string, netnsPath: string): void {
    const link = this.#object.attachNetns(PROGRAM, netnsPath, this.#pinDir === null ? null : join(FOLDER, pinName(uid)));
    this.#kept.delete(pinName(uid));
    this.#links.get(uid)?.close();
    this.#links.set(uid, link);
    this.#places.set(uid, { inode: statSync(netnsPath, { bigint: true }).ino, path: netnsPath });
  }

  /** By which path a pod's namespace is entered that a former agent had steered. */
  place(uid: string, netnsPath: string): void {
    const known = this.#places.get(uid);
    if (known) known.path ??= netnsPath;
  }

  /** Those that somebody may have taken away. */
  *audited(): Generator<AuditedLink> {
    if (this.#pinDir === null) return;
    for (const [uid, { inode, path }] of this.#places) {
      if (path === undefined) continue;
      yield { name: `${uid} ${PROGRAM}`, pod: uid, programId: this.#object.programId(PROGRAM), pin: join(this.#pinDir, FOLDER, pinName(uid)), targetId: inode, attach: () => this.#links.has(uid) && this.#attach(uid, path) };
    }
  }

  /** New connections go to the pod's programs; those that are there stay with the proxy. */
  stop(uid: string): void {
    if (!this.#links.has(uid) && !this.#kept.has(pinName(uid))) return;
    this.#former.add(uid);
    if (this.#pinDir !== null) mkdirSync(join(this.#pinDir, FORMER, pinName(uid)), { recursive: true });
    this.#detach(uid);
  }

  /** The pod has no connection any more that was steered. */
  forget(uid: string): void {
    this.#detach(uid);
    this.#former.delete(uid);
    if (this.#pinDir !== null) rmSync(join(this.#pinDir, FORMER, pinName(uid)), { recursive: true, force: true });
  }

  state(uid: string): 'none' | 'active' | 'stopped' {
    return this.#links.has(uid) ? 'active' : this.#former.has(uid) || this.#kept.has(pinName(uid)) ? 'stopped' : 'none';
  }

  #detach(uid: string): void {
    this.#links.get(uid)?.close();
    this.#links.delete(uid);
    this.#places.delete(uid);
    this.#kept.delete(pinName(uid));
    if (this.#pinDir !== null) rmSync(join(this.#pinDir, FOLDER, pinName(uid)), { force: true });
  }

  /** Takes over what a former agent attached to these pods; that of others is another version's, see `keep`. */
  adopt(uids: readonly string[]): void {
    if (this.#pinDir === null) return;
    const known = new Map(uids.map((uid) => [pinName(uid), uid]));
    for (const name of names(join(this.#pinDir, FOLDER))) {
      const uid = known.get(name);
      if (uid === undefined) {
        this.#kept.add(name);
        continue;
      }
      const link = this.#object.replaceLink(PROGRAM, join(FOLDER, name));
      if (link) {
        this.#links.set(uid, link);
        this.#places.set(uid, { inode: linkInfo(join(this.#pinDir, FOLDER, name)).targetId });
      } else rmSync(join(this.#pinDir, FOLDER, name), { force: true });
    }
    for (const name of names(join(this.#pinDir, FORMER))) {
      const uid = known.get(name);
      if (uid !== undefined) this.#former.add(uid);
      else rmSync(join(this.#pinDir, FORMER, name), { recursive: true, force: true });
    }
  }

  /** What another version attached to pods that are not among these is removed: they are gone, or no longer in the mesh. */
  keep(uids: ReadonlySet<string>): void {
    const wanted = new Set([...uids].map(pinName));
    for (const name of this.#kept) {
      if (wanted.has(name)) continue;
      this.#kept.delete(name);
      rmSync(join(this.#pinDir!, FOLDER, name), { force: true });
      this.#leftovers.push(leftSteering(name));
    }
  }

  /** Each is told once. */
  leftovers(): Drift[] {
    return this.#leftovers.splice(0);
  }

  close(): void {
    for (const link of this.#links.values()) link.close();
  }
}

function names(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return [];
    throw error;
  }
}
