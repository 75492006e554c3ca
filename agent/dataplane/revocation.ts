/** Connections that a pod's policies no longer allow, found among its sockets. */
import type { TcpSocket } from '../../native/index.js';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { INBOUND_PORT, OUTBOUND_PORT } from './iptables.js';

export interface SocketOwner {
  /** The pod's own addresses, 16 bytes each in hex, IPv4 in mapped form. */
  addresses: ReadonlySet<string>;
  /** The shared proxy's sockets in the pod's namespace; undefined: there is none. */
  proxyCgroupId: bigint | undefined;
}

export type Judge = (source: Buffer, destination: Buffer, port: number, sourcePort: number) => boolean;

/**
 * Connections that came over the network straight to a program of the pod, and may not. A socket whose port is listened on at its
 * address was accepted: the kernel gives no such port to a client. One whose listener is gone is not known from a client's, and stays.
 */
export function forbiddenDirect(sockets: readonly TcpSocket[], owner: SocketOwner, isAllowed: Judge): TcpSocket[] {
  const listening = placesListenedAt(sockets);
  const isAccepted = ({ local, localPort }: TcpSocket): boolean => listening.has(`any ${localPort}`) || listening.has(placeOf(local, localPort));
  return sockets.filter(
    (socket) =>
      !socket.listening && !isProxys(socket, owner) && socket.localPort !== INBOUND_PORT && socket.localPort !== OUTBOUND_PORT &&
      isAccepted(socket) && !isOwn(socket.remote, owner) && !isAllowed(socket.remote, socket.local, socket.localPort, socket.remotePort),
  );
}

/** Of connections that were accepted in one namespace, those that the proxy opened in another. @param there the sockets of that one */
export function openedByProxy(accepted: readonly TcpSocket[], there: readonly TcpSocket[], proxyCgroupId: bigint): TcpSocket[] {
  const opened = new Set(there.filter(({ cgroupId }) => cgroupId === proxyCgroupId).map(({ local, localPort, remote, remotePort }) => `${placeOf(local, localPort)} ${placeOf(remote, remotePort)}`));
  return accepted.filter(({ local, localPort, remote, remotePort }) => opened.has(`${placeOf(remote, remotePort)} ${placeOf(local, localPort)}`));
}

export interface ProxysSocket {
  socket: TcpSocket;
  side: 'accepted' | 'opened';
  /** Of the pod, that the caller asked for; undefined where rules have led it to the proxy's, and of tunnels. */
  port: number | undefined;
}

/**
 * What the proxy holds for callers of the pod: connections that it accepted for it, and those that it opened to the pod's
 * programs. Who calls is not to be seen from here.
 */
export function throughProxy(sockets: readonly TcpSocket[], owner: SocketOwner): ProxysSocket[] {
  const ofPrograms = sockets.filter((socket) => socket.listening && !isProxys(socket, owner));
  const listening = portsListenedOn(ofPrograms);
  const proxys = sockets.filter((socket) => !socket.listening && isProxys(socket, owner));
  return proxys.flatMap((socket) => {
    if (isOwn(socket.remote, owner)) return listening.has(socket.remotePort) ? { socket, side: 'opened' as const, port: socket.remotePort } : [];
    if (socket.localPort === INBOUND_PORT || socket.localPort === HBONE_PORT) return { socket, side: 'accepted' as const, port: undefined };
    return listening.has(socket.localPort) ? { socket, side: 'accepted' as const, port: socket.localPort } : [];
  });
}

const ANY = /^0{20}(0000|ffff)0{8}$/;

function placesListenedAt(sockets: readonly TcpSocket[]): ReadonlySet<string> {
  return new Set(sockets.filter(({ listening }) => listening).map(({ local, localPort }) => {
    const hex = local.toString('hex');
    return `${ANY.test(hex) ? 'any' : hex} ${localPort}`;
  }));
}

function placeOf(address: Buffer, port: number): string {
  return `${address.toString('hex')} ${port}`;
}

function portsListenedOn(sockets: readonly TcpSocket[]): ReadonlySet<number> {
  return new Set(sockets.filter(({ listening }) => listening).map(({ localPort }) => localPort));
}

function isProxys({ cgroupId }: TcpSocket, { proxyCgroupId }: SocketOwner): boolean {
  return proxyCgroupId !== undefined && cgroupId === proxyCgroupId;
}

const LOOPBACK = /^(0{30}01|0{20}ffff7f[0-9a-f]{6})$/;

function isOwn(address: Buffer, { addresses }: SocketOwner): boolean {
  const hex = address.toString('hex');
  return LOOPBACK.test(hex) || addresses.has(hex);
}
