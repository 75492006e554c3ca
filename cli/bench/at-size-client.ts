/**
 * Runs inside a pod: asks a server again and again over one connection. Each line of input is a version; when an answer is that
 * version's, and then when the answers since have all been so for a while, a line says when: {version, first, steady} in epoch ms.
 *   node at-size-client.js http://web.ns-0/
 */
import { Agent, request } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const PAUSE_MS = 1;
const STEADY_MS = 300;

const url = process.argv[2] ?? '';
const agent = new Agent({ keepAlive: true, maxSockets: 1 });
let wanted: { version: string; first?: number; steady?: number } | undefined;
let ended = false;

const ask = (): Promise<string> => new Promise((resolve) => {
  const failed = (): void => resolve('');
  request(url, { agent, timeout: 10_000 }, (response) => {
    let text = '';
    response.on('data', (chunk: Buffer) => (text += chunk.toString())).on('error', failed).on('end', () => {
      try {
        resolve(String((JSON.parse(text) as { version?: string }).version));
      } catch {
        failed();
      }
    });
  }).on('error', failed).on('timeout', failed).end();
});

createInterface({ input: process.stdin }).on('line', (version) => (wanted = { version })).on('close', () => (ended = true));
while (!ended) {
  const version = await ask();
  const now = Date.now();
  if (wanted && version === wanted.version) {
    wanted.first ??= now;
    wanted.steady ??= now;
    if (now - wanted.steady > STEADY_MS) {
      process.stdout.write(`${JSON.stringify(wanted)}\n`);
      wanted = undefined;
    }
  } else if (wanted) delete wanted.steady;
  await sleep(PAUSE_MS);
}
agent.destroy();
