/** Patches of clusters. */
import { reflect, type ReflectMessage } from '@bufbuild/protobuf/reflect';
import type { Message } from '@bufbuild/protobuf';
import { clone, descOf, merge, mergePatch, plain } from './registry.js';
import type { CompiledPatch, Place } from './types.js';

type TransportSocket = Message & { name: string };

interface PlainCluster {
  name: string;
  transportSocket?: TransportSocket;
  transportSocketMatches: { transportSocket?: TransportSocket }[];
}

/** The cluster's patches; empty: it stays as it is. */
export function clusterPatches(name: string, patches: readonly CompiledPatch[], { context, hosts }: Place): CompiledPatch[] {
  const [direction, port, part = '', host = ''] = name.split('|');
  // A waypoint's has its protocol before the subset.
  const subset = direction === 'inbound-vip' ? part.replace(/^(?:http|tcp)\/?/, '') : part;
  // An inbound cluster's name has no host, and the port that the workload listens on.
  const served = direction === 'inbound' ? hosts : [host];
  return patches.filter(({ applyTo, operation, contexts, cluster }) => {
    if (applyTo !== 'CLUSTER' || operation === 'ADD' || !contexts.has(context)) return false;
    if (cluster.name) return cluster.name === name;
    if (cluster.service && !served.includes(cluster.service)) return false;
    if (cluster.subset && cluster.subset !== subset) return false;
    return !cluster.portNumber || cluster.portNumber === Number(port);
  });
}

/** @returns whether the cluster stays */
export function patchCluster(message: ReflectMessage, patches: readonly CompiledPatch[]): boolean {
  for (const patch of patches) {
    if (patch.operation === 'REMOVE') return false;
    const value = clone(patch.value!);
    mergeTransportSocket(plain<PlainCluster>(message), plain<PlainCluster>(value));
    mergePatch(message, value, patch);
  }
  return true;
}

/** A cluster that chooses its socket by the endpoint never uses a socket beside those: it is merged into the first of them with that name. */
function mergeTransportSocket(cluster: PlainCluster, patch: PlainCluster): void {
  const { transportSocket } = patch;
  if (!transportSocket) return;
  const { transportSocketMatches: choices } = cluster;
  const sockets = choices.length > 0 ? choices.map((choice) => choice.transportSocket) : [cluster.transportSocket];
  const target = sockets.find((socket) => socket?.name === transportSocket.name);
  const desc = descOf('envoy.config.core.v3.TransportSocket');
  if (target) merge(reflect(desc, target), reflect(desc, transportSocket));
  else if (choices.length === 0) cluster.transportSocket = transportSocket;
  delete patch.transportSocket;
}
