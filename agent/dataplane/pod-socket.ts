/** Connections of the agent's own from within a pod's network namespace. */
import { Socket } from 'node:net';
import { openSocket } from '../../native/index.js';

/** @param timeoutMs for the connection to be there @throws KernelError when there is none */
export async function connectInNetns(netns: string, port: number, timeoutMs: number): Promise<Socket> {
  return new Socket({ fd: await openSocket({ netns, family: 'ipv4', type: 'stream', connect: { address: '127.0.0.1', port }, timeoutMs }) });
}
