/**
 * What the HTTP fast path of an agent with maps of another layout left under way. Its programs live on for the sockets that they
 * were made for, as long as their maps are pinned; then the kernel empties the array of programs that they are called by, and the
 * rest of a request that was half sent to a server would go to Envoy, which would take it for a request. So these maps are set
 * aside, and told at once that nothing new is fast: each connection goes on through Envoy as what it has under way has ended.
 * What does not end in time is ended. Their layouts are read from the maps themselves.
 */
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupProcesses } from '../../common/cgroup.js';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { sleep } from '../../common/retry.js';
import { netnsCookie, openPinnedMap, type BpfMap, type StructLayout } from '../../native/index.js';
import { HttpEndingQueue } from './http-endings.js';
import type { HttpEnd } from './kernel-http-control.js';
import { u32 } from './kernel-codec.js';

/** Beside `maps`; native/src/object.cc names them so as well. */
const ASIDE = /^maps_\d+$/;
/** Exchanges that take longer are cut: what ends them unseen, a server that goes, is not told any more once the pod has hooks of this agent's. */
const DRAIN_MS = 10_000;
const POLL_MS = 100;
/** For so long their upstream connections are told as nobody's; see http-orphans.ts. */
const ORPHANS_MS = 30_000;

/** In bpf/http-structs.h: what these numbers mean has to stay. */
const FAST = 1;
const LOST = 3;
const CUT = 4;

export interface FormerHttpOptions {
  /** Of this instance's pins. */
  pinDir: string;
  logger: Logger;
  drainMs?: number;
}

interface Former {
  folder: string;
  channels: Records | undefined;
  servers: BpfMap | undefined;
}

export class FormerHttp implements Closable {
  readonly #options: FormerHttpOptions;
  readonly #closed = new AbortController();
  #done: Promise<void> = Promise.resolve();
  #orphans: { cookies: bigint[]; until: number } | undefined;

  constructor(options: FormerHttpOptions) {
    this.#options = options;
  }

  /** Maps that have another layout, though they have the same size. */
  static setAside(pinDir: string): void {
    renameSync(join(pinDir, 'maps'), join(pinDir, `maps_${process.hrtime.bigint()}`));
  }

  get #folders(): string[] {
    const { pinDir } = this.#options;
    return existsSync(pinDir) ? readdirSync(pinDir).filter((name) => ASIDE.test(name)) : [];
  }

  /** Whether there are pods whose requests they repeated. */
  hadPrograms(): boolean {
    return this.#folders.some((folder) => {
      const programs = openPinnedMap(join(this.#options.pinDir, folder, 'http_programs'))?.map;
      const isFilled = programs?.get(u32(0)) !== undefined;
      programs?.close();
      return isFilled;
    });
  }

  /** Nothing of them is fast any more when it returns; what is under way is waited for behind that. */
  start(): void {
    const { pinDir, logger } = this.#options;
    const folders = this.#folders;
    for (const folder of folders) {
      const control = openPinnedMap(join(pinDir, folder, 'http_control'))?.map;
      // No heartbeat and no leave, wherever the two are.
      control?.set(u32(0), Buffer.alloc(control.valueSize));
      control?.close();
    }
    this.#done = this.#drain(folders).catch((error: unknown) => logger.error({ reason: errorMessage(error) }, 'what the HTTP fast path of a former agent left under way could not be waited for: its clients may wait in vain'));
  }

  /** Resolves when nothing of them is under way any more. */
  settled(): Promise<void> {
    return this.#done;
  }

  /** Cookies of servers' sockets that were its clients' own: those clients' requests take other connections now. */
  orphans(): bigint[] {
    if (!this.#orphans || performance.now() > this.#orphans.until) return [];
    return this.#orphans.cookies;
  }

  async close(): Promise<void> {
    this.#closed.abort();
    await this.#done;
  }

  async #drain(folders: readonly string[]): Promise<void> {
    const { pinDir, logger, drainMs = DRAIN_MS } = this.#options;
    const deadline = performance.now() + drainMs;
    for (const name of folders) {
      const former: Former = { folder: join(pinDir, name), channels: Records.open(join(pinDir, name, 'http_channels')), servers: openPinnedMap(join(pinDir, name, 'http_servers'))?.map };
      try {
        const cut = await this.#wait(former, deadline);
        if (this.#closed.signal.aborted) return; // the next agent finds them
        const cookies = former.servers?.entries().map(([key]) => key.readBigUInt64LE()) ?? [];
        this.#orphans = { cookies: [...(this.#orphans?.cookies ?? []), ...cookies], until: performance.now() + ORPHANS_MS };
        rmSync(former.folder, { recursive: true, force: true });
        logger.info({ cut }, "a former agent's maps, which had another layout, are let go: its HTTP connections go on through Envoy");
      } finally {
        former.channels?.map.close();
        former.servers?.close();
      }
    }
  }

  /** @returns how many connections had to be ended */
  async #wait({ folder, channels }: Former, deadline: number): Promise<number> {
    if (!channels?.has('state', 'unknown', 'proxy_cookie', 'tuple.netns_cookie', 'tuple.local', 'tuple.remote', 'tuple.local_port', 'tuple.remote_port')) return 0;
    let cut = 0;
    for (;;) {
      // A program that found it on may begin an exchange a moment later.
      await sleep(POLL_MS);
      if (this.#closed.signal.aborted) return cut;
      const isLate = performance.now() >= deadline;
      const rows = channels.all();
      // Whoever was to end what is cut may have been gone before it came to that.
      const ends = rows.filter((row) => (row.number('state') === FAST ? isLate : row.number('state') === LOST && row.number('unknown') === CUT));
      if (ends.length > 0) cut += await this.#end(folder, ends.map(endOf));
      if (isLate || !rows.some((row) => row.number('state') === FAST)) return cut;
    }
  }

  async #end(folder: string, ends: readonly HttpEnd[]): Promise<number> {
    const paths = await namespacesOf(folder, new Set(ends.map(({ netnsCookie: cookie }) => cookie)));
    const queue = new HttpEndingQueue({ netnsPathOf: (cookie) => paths.get(cookie), proxyPid: () => undefined, logger: this.#options.logger });
    for (const end of ends) queue.end(end);
    await queue.idle();
    return queue.count.clientsReset;
  }
}

/** Entries of a map whose layout its own BTF tells. */
class Records {
  private constructor(readonly map: BpfMap, readonly layout: StructLayout) {}

  static open(path: string): Records | undefined {
    const found = openPinnedMap(path);
    return found?.value && new Records(found.map, found.value);
  }

  has(...fields: string[]): boolean {
    return fields.every((field) => field in this.layout.fields);
  }

  all(): Row[] {
    return this.map.entries().map(([key, value]) => new Row(key, value, this.layout));
  }
}

class Row {
  constructor(readonly key: Buffer, readonly value: Buffer, readonly layout: StructLayout) {}

  bytes(field: string): Buffer {
    const { offset, sizeBytes } = this.layout.fields[field]!;
    return this.value.subarray(offset, offset + sizeBytes);
  }

  number(field: string): number {
    return this.bytes(field).readUIntLE(0, Math.min(6, this.bytes(field).length));
  }

  text(field: string): string {
    const bytes = this.bytes(field);
    const end = bytes.indexOf(0);
    return bytes.subarray(0, end < 0 ? bytes.length : end).toString();
  }
}

/** From Envoy's side, as the programs tell it. */
function endOf(row: Row): HttpEnd {
  return {
    side: 'client', orderly: false, netnsCookie: row.bytes('tuple.netns_cookie').readBigUInt64LE(),
    socket: { local: row.bytes('tuple.remote'), remote: row.bytes('tuple.local'), localPort: row.number('tuple.remote_port'), remotePort: row.number('tuple.local_port'), cookie: row.bytes('proxy_cookie').readBigUInt64LE() },
  };
}

/** By the processes of the pods that the former agent had. */
async function namespacesOf(folder: string, cookies: ReadonlySet<bigint>): Promise<Map<bigint, string>> {
  const found = new Map<bigint, string>();
  const pods = Records.open(join(folder, 'pods'));
  if (!pods?.has('cgroup_path')) return found;
  try {
    for (const pod of pods.all()) {
      const cookie = pod.key.readBigUInt64LE();
      if (!cookies.has(cookie)) continue;
      for (const pid of processesOf(pod.text('cgroup_path'))) {
        const path = `/proc/${pid}/ns/net`;
        if ((await netnsCookie(path).catch(() => undefined)) !== cookie) continue;
        found.set(cookie, path);
        break;
      }
    }
  } finally {
    pods.map.close();
  }
  return found;
}

function processesOf(cgroupPath: string): number[] {
  try {
    return cgroupProcesses(cgroupPath);
  } catch {
    return []; // it is gone, and its connections
  }
}
