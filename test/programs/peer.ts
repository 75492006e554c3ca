// Both ends of the exchange of exchange.ts in Node; the same arguments as peer.py's, without the style.
//   node peer.js server HOST PORT
//   node peer.js client HOST PORT FILE COUNT HOLD_S SIZE…
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { sha256, type Received } from './exchange.js';

const TIMEOUT_MS = 60_000;

function serve(host: string, port: number): void {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const hash = createHash('sha256');
    const parts: Buffer[] = [];
    socket.on('data', (part: Buffer) => {
      hash.update(part);
      parts.push(part);
    });
    socket.once('end', () => socket.end(Buffer.concat([Buffer.from(`${hash.digest('hex')}\n`), ...parts])));
    socket.once('error', (error) => console.error(error.message));
  });
  server.listen(port, host);
}

async function exchange(host: string, port: number, payload: Buffer, holdMs: number): Promise<Buffer> {
  const socket: Socket = connect({ host, port, allowHalfOpen: true });
  const parts: Buffer[] = [];
  const received = new Promise<Buffer>((resolve, reject) => {
    socket.on('data', (part: Buffer) => parts.push(part));
    socket.once('end', () => resolve(Buffer.concat(parts)));
    socket.once('error', reject);
  });
  socket.write(payload);
  await sleep(holdMs);
  socket.end();
  return received;
}

async function ask(host: string, port: number, file: string, count: number, holdS: number, sizes: readonly number[]): Promise<Received> {
  const payload = readFileSync(file);
  const report: Received = {};
  for (const size of sizes) {
    const all = await Promise.all(Array.from({ length: count }, () => exchange(host, port, payload.subarray(0, size), holdS * 1000)));
    const table: Record<string, number> = {};
    for (const received of all) table[sha256(received)] = (table[sha256(received)] ?? 0) + 1;
    report[size] = table;
  }
  return report;
}

const [role, host = '', port, file = '', count, holdS, ...sizes] = process.argv.slice(2);
if (role === 'server') {
  serve(host, Number(port));
} else {
  setTimeout(() => {
    console.error('time is up');
    process.exit(3);
  }, TIMEOUT_MS).unref();
  console.log(JSON.stringify(await ask(host, Number(port), file, Number(count), Number(holdS), sizes.map(Number))));
}
