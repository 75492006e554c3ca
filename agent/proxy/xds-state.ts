/**
 * The last good xDS state on disk, so that an Envoy can be set up again while no control plane answers. Resources that
 * hold a private key are left out.
 * Format: magic, then blocks of (u32 length, bytes): the waypoints as JSON; for each class a JSON header, then for each
 * resource one xDS `Resource`; last the SHA-256 of all before.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import { Resource } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { DownstreamTlsContext, UpstreamTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';
import type { TransportSocket } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import type { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { unpack } from '../../common/xds/any.js';
import type { AnyResourceType, XdsResource } from '../xds/resource-type.js';
import { sidecarTypes, type SidecarState } from '../xds/sidecar-stream.js';
import { NO_WAYPOINTS, type WaypointTable } from './waypoint-table.js';

export interface SavedState {
  classes: SavedClass[];
  /** Without it what has a waypoint would be reached around it. */
  waypoints: WaypointTable;
}

export interface SavedClass {
  key: string;
  node: Node;
  state: SidecarState;
}

const MAGIC = Buffer.from('underpass-xds-2\n');
const DIGEST_BYTES = 32;
const NOTHING: SavedState = { classes: [], waypoints: NO_WAYPOINTS };

/** Writes all of it anew, atomically; mode 0600. */
export async function saveState(path: string, { classes, waypoints }: SavedState): Promise<void> {
  const blocks: Buffer[] = [MAGIC];
  const add = (bytes: Uint8Array): void => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    blocks.push(length, Buffer.from(bytes));
  };
  add(Buffer.from(JSON.stringify(waypoints)));
  for (const { key, node, state } of classes) {
    const resources = Object.values(state).flatMap((map: ReadonlyMap<string, XdsResource<unknown>>) => [...map.values()]).filter((item) => !holdsKey(item));
    add(Buffer.from(JSON.stringify({ key, node: Node.toJSON(node), resources: resources.length })));
    for (const { name, version, any } of resources) add(Resource.encode(Resource.fromPartial({ name, version, resource: any })).finish());
  }
  const content = Buffer.concat(blocks);
  const file = await open(`${path}.new`, 'w', 0o600);
  try {
    await file.writeFile(Buffer.concat([content, createHash('sha256').update(content).digest()]));
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
  const classes: SavedClass[] = [];
  let offset = MAGIC.length;
  const next = (): Buffer => {
    const end = offset + 4 + content.readUInt32BE(offset);
    const block = content.subarray(offset + 4, end);
    offset = end;
    return block;
  };
  const waypoints = JSON.parse(next().toString('utf8')) as WaypointTable;
  while (offset < content.length) {
    const header = JSON.parse(next().toString('utf8')) as { key: string; node: unknown; resources: number };
    const state = { clusters: new Map(), endpoints: new Map(), listeners: new Map(), routes: new Map() };
    for (let index = 0; index < header.resources; index++) {
      const { name, version, resource } = Resource.decode(next());
      for (const kind of Object.keys(sidecarTypes) as (keyof typeof sidecarTypes)[]) {
        const type: AnyResourceType = sidecarTypes[kind];
        if (type.typeUrl !== resource?.type_url) continue;
        try {
          state[kind].set(name, type.decode(name, version, resource));
        } catch (error) {
          onProblem(`${path}: ${(error as Error).message}`);
        }
      }
    }
    classes.push({ key: header.key, node: Node.fromJSON(header.node), state });
  }
  return { classes, waypoints };
}

function holdsKey(resource: XdsResource<unknown>): boolean {
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
