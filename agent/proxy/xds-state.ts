/**
 * The last good xDS state on disk, so that an Envoy can be set up again while no control plane answers. Resources that
 * hold a private key are left out. What several classes have is there once.
 * Format: magic, then blocks of (u32 length, bytes): a JSON header, then for each resource a JSON [name, type URL] and its bytes;
 * last the SHA-256 of all before.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { DownstreamTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { errorMessage } from '../../common/errors.js';
import type { Logger } from '../../common/log.js';
import { Memo } from '../../common/memo.js';
import { unpack } from '../../common/xds/any.js';
import type { AnyResourceType, XdsResource } from '../xds/resource-type.js';
import { sidecarTypes, type SidecarState } from '../xds/sidecar-stream.js';
import type { FoldedNames } from './fold.js';
import { NO_WAYPOINTS, type WaypointTable } from './waypoint-table.js';

export interface SavedState {
  classes: SavedClass[];
  /** Without it what has a waypoint would be reached around it. */
  waypoints: WaypointTable;
  /** Clusters of which each account has its own: without it their names would change, which ends connections. */
  accountClusters: readonly string[];
  /** Of resources that classes have in several versions: without it they would change, too. */
  names?: FoldedNames;
}

export interface SavedClass {
  key: string;
  node: Node;
  state: SidecarState;
}

interface Header {
  waypoints: WaypointTable;
  accountClusters: readonly string[];
  names?: FoldedNames;
  versions: string[];
  /** Indexes of resources, and of each one's version. */
  classes: { key: string; node: unknown; resources: number[]; versions: number[] }[];
}

const MAGIC = Buffer.from('underpass-xds-4\n');
const DIGEST_BYTES = 32;
const NOTHING: SavedState = { classes: [], waypoints: NO_WAYPOINTS, accountClusters: [] };
/** Written at a time, so that the rest of the process has its turns. */
const CHUNK_BYTES = 1 << 20;

/** The state's file while an agent runs. */
export class StateFile {
  /** What is on disk, or about to be. */
  saved: SavedState;
  /** The last write, of this many milliseconds. */
  tookMs = 0;
  #saving: Promise<void> = Promise.resolve();

  constructor(readonly path: string, readonly logger: Logger) {
    this.saved = loadState(path, (problem) => logger.warn({ problem }, 'last good xDS state'));
  }

  /** Classes of an earlier run first, in their old order: names in an adopted Envoy stay as they are. */
  bySeniority<T extends { key: string }>(classes: ReadonlyMap<string, T>): T[] {
    const order = new Map(this.saved.classes.map((item, index) => [item.key, index]));
    return [...classes.values()].sort((a, b) => (order.get(a.key) ?? Infinity) - (order.get(b.key) ?? Infinity) || 0);
  }

  /** One write at a time; a failure is logged. */
  save(state: SavedState): Promise<void> {
    this.saved = state;
    const began = performance.now();
    this.#saving = this.#saving
      .then(() => saveState(this.path, state))
      .then(() => void (this.tookMs = performance.now() - began))
      .catch((error: unknown) => this.logger.warn({ error: errorMessage(error) }, `saving ${this.path}`));
    return this.#saving;
  }
}

/** Writes all of it anew, atomically; mode 0600. */
export async function saveState(path: string, { classes, waypoints, accountClusters, names }: SavedState): Promise<void> {
  const resources = new Map<Any, XdsResource<unknown>>();
  const indexes = new Map<Any, number>();
  const versions = new Map<string, number>();
  const header: Header = { waypoints, accountClusters, ...(names ? { names } : {}), versions: [], classes: [] };
  for (const { key, node, state } of classes) {
    const own: Header['classes'][number] = { key, node: Node.toJSON(node), resources: [], versions: [] };
    for (const map of Object.values(state) as ReadonlyMap<string, XdsResource<unknown>>[]) {
      for (const resource of map.values()) {
        if (holdsKey(resource)) continue;
        if (!indexes.has(resource.any)) {
          indexes.set(resource.any, indexes.size);
          resources.set(resource.any, resource);
        }
        if (!versions.has(resource.version)) versions.set(resource.version, versions.size);
        own.resources.push(indexes.get(resource.any)!);
        own.versions.push(versions.get(resource.version)!);
      }
    }
    header.classes.push(own);
    await nextTurn();
  }
  header.versions = [...versions.keys()];
  const file = await open(`${path}.new`, 'w', 0o600);
  try {
    const digest = createHash('sha256');
    let pending: Uint8Array[] = [MAGIC];
    let size = 0;
    const flush = async (): Promise<void> => {
      const chunk = Buffer.concat(pending);
      pending = [];
      size = 0;
      digest.update(chunk);
      await file.writeFile(chunk);
    };
    const add = (bytes: Uint8Array): void => {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(bytes.length);
      pending.push(length, bytes);
      size += bytes.length;
    };
    add(Buffer.from(JSON.stringify(header)));
    for (const { name, any } of resources.values()) {
      add(Buffer.from(JSON.stringify([name, any.type_url])));
      add(any.value);
      if (size > CHUNK_BYTES) await flush();
    }
    await flush();
    await file.writeFile(digest.digest());
  } finally {
    await file.close();
  }
  await rename(`${path}.new`, path);
}

/** What was saved; nothing when there is no file, or it is damaged or of another version (`onProblem` says which). */
export function loadState(path: string, onProblem: (problem: string) => void): SavedState {
  let file: Buffer;
  try {
    file = readFileSync(path);
  } catch {
    return NOTHING;
  }
  const content = file.subarray(0, -DIGEST_BYTES);
  if (!content.subarray(0, MAGIC.length).equals(MAGIC) || !createHash('sha256').update(content).digest().equals(file.subarray(-DIGEST_BYTES))) {
    onProblem(`${path} is damaged or was written by another version`);
    return NOTHING;
  }
  let offset = MAGIC.length;
  const next = (): Buffer => {
    const end = offset + 4 + content.readUInt32BE(offset);
    const block = content.subarray(offset + 4, end);
    offset = end;
    return block;
  };
  const { waypoints, accountClusters, names, versions, classes } = JSON.parse(next().toString('utf8')) as Header;
  const resources: { name: string; any: Any }[] = [];
  while (offset < content.length) {
    const [name, type_url] = JSON.parse(next().toString('utf8')) as [string, string];
    resources.push({ name, any: { type_url, value: next() } });
  }
  const loaded = classes.map(({ key, node, resources: own, versions: ofOwn }) => {
    const state = { clusters: new Map(), endpoints: new Map(), listeners: new Map(), routes: new Map() };
    own.forEach((index, at) => {
      const { name, any } = resources[index]!;
      for (const kind of Object.keys(sidecarTypes) as (keyof typeof sidecarTypes)[]) {
        const type: AnyResourceType = sidecarTypes[kind];
        if (type.typeUrl !== any.type_url) continue;
        try {
          state[kind].set(name, type.decode(name, versions[ofOwn[at]!]!, any));
        } catch (error) {
          onProblem(`${path}: ${(error as Error).message}`);
        }
      }
    });
    return { key, node: Node.fromJSON(node), state };
  });
  return { classes: loaded, waypoints, accountClusters, ...(names ? { names } : {}) };
}

const keyHolders = new Memo<Any, boolean>();

function holdsKey(resource: XdsResource<unknown>): boolean {
  return keyHolders.once(resource.any, () => looksForKey(resource));
}

function looksForKey(resource: XdsResource<unknown>): boolean {
  return transportSockets(resource).some((socket) => {
    const any = socket?.config_type?.value;
    const tls = unpack(UpstreamTlsContext, any) ?? unpack(DownstreamTlsContext, any);
    return tls?.common_tls_context?.tls_certificates.some((certificate) => certificate.private_key !== undefined) ?? false;
  });
}

function transportSockets(resource: XdsResource<unknown>): (TransportSocket | undefined)[] {
  if (resource.any.type_url === sidecarTypes.clusters.typeUrl) {
    const { transport_socket, transport_socket_matches } = resource.message as Cluster;
    return [transport_socket, ...transport_socket_matches.map((match) => match.transport_socket)];
  }
  if (resource.any.type_url === sidecarTypes.listeners.typeUrl) {
    const { filter_chains, default_filter_chain } = resource.message as Listener;
    return [...filter_chains, default_filter_chain].map((chain) => chain?.transport_socket);
  }
  return [];
}
