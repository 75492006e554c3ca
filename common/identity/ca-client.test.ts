import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { test } from 'node:test';
import { CertificateAuthority } from './ca.js';
import { CaIdentitySource } from './ca-client.js';

test('a node with many service accounts asks for all their certificates at once without a word of leaking listeners', async () => {
  const sockets = new Set<Socket>();
  // Takes connections and says nothing.
  const server = createServer((socket) => void sockets.add(socket.on('error', () => undefined))).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const warnings: string[] = [];
  const note = ({ name }: Error): void => void warnings.push(name);
  process.on('warning', note);
  const source = new CaIdentitySource({ address: `127.0.0.1:${(server.address() as AddressInfo).port}`, rootPem: (await CertificateAuthority.create()).rootPem });
  const asked = Array.from({ length: 34 }, (_, index) => source.issue({ trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: `account-${index}` }));
  const outcomes = Promise.allSettled(asked);
  while (sockets.size < asked.length) await once(server, 'connection');
  source.close();
  assert.ok((await outcomes).every(({ status }) => status === 'rejected'), 'who waits hears that it was closed');
  process.off('warning', note);
  assert.deepEqual(warnings.filter((name) => name === 'MaxListenersExceededWarning'), []);
  for (const socket of sockets) socket.destroy();
  server.close();
});
