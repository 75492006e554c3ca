/**
 * Node's HTTP programs: `peer.js serve PORT`, `peer.js http|fetch BASE PLAN AT_ONCE KEEP`. A server says in headers what it was
 * asked and whether Envoy had it (which sets x-forwarded-proto); a client works through a plan, a line for each answer.
 */
import { readFileSync } from 'node:fs';
import { Agent, createServer, request } from 'node:http';
import { answerOf, bodyOf, hashOf, type Planned, type Reported } from './plan.js';

const HEADERS = ['x-number', 'x-path', 'x-method', 'x-body', 'x-via'] as const;

function serve(port: number): void {
  createServer((asked, answer) => {
    const parts: Buffer[] = [];
    asked.on('data', (part: Buffer) => parts.push(part)).on('end', () => {
      const body = Buffer.concat(parts);
      const path = asked.url ?? '';
      const number = String(asked.headers['x-number']);
      const query = new URLSearchParams(path.split('?')[1]);
      const status = Number(query.get('status'));
      answer.statusCode = status;
      const said = [number, path, asked.method ?? '', `${body.length} ${hashOf(body)}`, asked.headers['x-forwarded-proto'] === undefined ? 'fast' : 'envoy'];
      HEADERS.forEach((name, i) => answer.setHeader(name, said[i]!));
      if (status !== 200) return void answer.end();
      const text = answerOf(number, path, Number(query.get('size')));
      if (query.get('answer') !== 'chunked') return void answer.setHeader('content-length', text.length).end(text);
      for (let at = 0; at < text.length; at += 50_000) answer.write(text.slice(at, at + 50_000));
      return void answer.end();
    });
  }).listen(port, '0.0.0.0');
}

/** Beyond what any answer takes here: one that hangs. */
const TIMEOUT_MS = 15_000;

function byHttp(base: string, agent: Agent, { n, method, path, body, chunked }: Planned): Promise<Reported> {
  return new Promise((resolve) => {
    const headers = { 'x-number': n, ...(method === 'POST' && !chunked ? { 'content-length': body } : {}) };
    const asked = request(base + path, { agent, method, headers }, (answer) => {
      const parts: Buffer[] = [];
      answer.on('data', (part: Buffer) => parts.push(part)).on('error', (error) => resolve([n, error.message])).on('end', () => {
        clearTimeout(timer);
        const all = Buffer.concat(parts);
        const [number, at, by, of, via] = HEADERS.map((name) => String(answer.headers[name] ?? '')) as [string, string, string, string, string];
        resolve([n, answer.statusCode ?? 0, number, at, by, of, via, all.length, hashOf(all)]);
      });
    });
    const timer = setTimeout(() => asked.destroy(new Error('no answer')), TIMEOUT_MS);
    asked.on('error', (error) => {
      clearTimeout(timer);
      resolve([n, `${error.message}${asked.reusedSocket ? ' (reused)' : ''}`]);
    });
    const text = bodyOf(n, body);
    // In pieces, so that requests come in several messages.
    if (chunked || body > 20_000) for (let at = 0; at < text.length; at += 16_000) asked.write(text.slice(at, at + 16_000));
    else if (body > 0) asked.write(text);
    asked.end();
  });
}

async function byFetch(base: string, keep: boolean, { n, method, path, body, chunked }: Planned): Promise<Reported> {
  try {
    const text = bodyOf(n, body);
    const given = method !== 'POST' ? {} : chunked ? { body: new Blob([text]).stream(), duplex: 'half' } : { body: text };
    const answer = await fetch(base + path, { method, headers: { 'x-number': String(n), ...(keep ? {} : { connection: 'close' }) }, signal: AbortSignal.timeout(TIMEOUT_MS), ...given } as RequestInit);
    const all = Buffer.from(await answer.arrayBuffer());
    const [number, at, by, of, via] = HEADERS.map((name) => answer.headers.get(name) ?? '') as [string, string, string, string, string];
    return [n, answer.status, number, at, by, of, via, all.length, hashOf(all)];
  } catch (error) {
    return [n, `${(error as Error).message} ${String((error as Error).cause ?? '')}`];
  }
}

const [what = '', first = '', planFile = '', atOnce = '1', keep = 'keep'] = process.argv.slice(2);
if (what === 'serve') {
  serve(Number(first));
} else {
  const agent = new Agent({ keepAlive: keep === 'keep', maxSockets: Number(atOnce) });
  const rest = JSON.parse(readFileSync(planFile, 'utf8')) as Planned[];
  await Promise.all(Array.from({ length: Number(atOnce) }, async () => {
    for (let next = rest.shift(); next; next = rest.shift()) console.log(JSON.stringify(await (what === 'http' ? byHttp(first, agent, next) : byFetch(first, keep === 'keep', next))));
  }));
  process.exit();
}
