/**
 * Node's HTTP programs: `peer.js serve PORT`, `peer.js http|fetch|pipeline BASE PLAN AT_ONCE KEEP`. A server says in headers what
 * it was asked and whether Envoy had it (which sets x-forwarded-proto); a client works through a plan, a line for each answer.
 */
import { readFileSync } from 'node:fs';
import { Agent, createServer, request } from 'node:http';
import { connect } from 'node:net';
import { answerOf, bodyOf, hashOf, type Planned, type Reported } from './plan.js';

const HEADERS = ['x-number', 'x-path', 'x-method', 'x-body', 'x-via'] as const;

function serve(port: number): void {
  // As long as those of the others: the race between a server's end and a request is not what is tried here.
  createServer({ keepAliveTimeout: 75_000 }, (asked, answer) => {
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

/** Of what `text` begins with: its status, headers and body, and where it ends; undefined: that is still to come. */
function answerIn(text: string, method: string): { status: number; headers: Map<string, string>; body: string; end: number } | undefined {
  const at = text.indexOf('\r\n\r\n') + 4;
  if (at < 4) return undefined;
  const [line = '', ...lines] = text.slice(0, at - 4).split('\r\n');
  const headers = new Map(lines.map((each) => [each.slice(0, each.indexOf(':')).toLowerCase(), each.slice(each.indexOf(':') + 1).trim()]));
  const status = Number(line.split(' ')[1]);
  const found = (body: string, end: number): ReturnType<typeof answerIn> => ({ status, headers, body, end });
  if (method === 'HEAD' || status === 204 || status === 304) return found('', at);
  if (headers.get('transfer-encoding') !== 'chunked') {
    const end = at + Number(headers.get('content-length') ?? 0);
    return end > text.length ? undefined : found(text.slice(at, end), end);
  }
  let body = '';
  for (let chunk = at; ;) {
    const begin = text.indexOf('\r\n', chunk) + 2;
    const size = parseInt(text.slice(chunk, begin), 16);
    if (begin < 2 || begin + size + 2 > text.length) return undefined;
    if (size === 0) return found(body, begin + 2);
    body += text.slice(begin, begin + size);
    chunk = begin + size + 2;
  }
}

/** Requests that are sent at once after two that were not, on one connection. */
const AT_ONCE = 8;

/** One connection: the first two wait for their answers, the rest do not. What asks for the connection's end has it to itself. */
function byPipeline({ hostname, port, host }: URL, keep: boolean, plan: readonly Planned[]): Promise<Reported[]> {
  return new Promise((resolve) => {
    const reports: Reported[] = [];
    let [text, sent] = ['', 0];
    const done = (error: string): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve([...reports, ...plan.slice(reports.length).map(({ n }): Reported => [n, `${error}, ${sent} sent, ${reports.length} answered`])]);
    };
    const more = (): void => {
      const until = sent < 2 ? sent + 1 : plan.length;
      for (const { n, method, path, body, chunked } of plan.slice(sent, until)) {
        const data = bodyOf(n, body);
        const framing = method !== 'POST' ? '' : chunked ? 'transfer-encoding: chunked\r\n' : `content-length: ${body}\r\n`;
        socket.write(`${method} ${path} HTTP/1.1\r\nhost: ${host}\r\nx-number: ${n}\r\n${framing}${keep ? '' : 'connection: close\r\n'}\r\n${chunked && body > 0 ? `${body.toString(16)}\r\n${data}\r\n0\r\n\r\n` : chunked ? '0\r\n\r\n' : data}`);
      }
      sent = until;
    };
    const socket = connect(Number(port || 80), hostname, more).setEncoding('latin1').on('error', (error) => done(error.message)).on('end', () => done('the end')).on('data', (data: string) => {
      text += data;
      for (let next = plan[reports.length]; next; next = plan[reports.length]) {
        const answer = answerIn(text, next.method);
        if (!answer) return;
        text = text.slice(answer.end);
        const [number, at, by, of, via] = HEADERS.map((name) => answer.headers.get(name) ?? '') as [string, string, string, string, string];
        reports.push([next.n, answer.status, number, at, by, of, via, answer.body.length, hashOf(answer.body)]);
        if (reports.length < sent) continue;
        if (reports.length === plan.length) return done('');
        more();
      }
    });
    const timer = setTimeout(() => done('no answer'), TIMEOUT_MS);
  });
}

/** Requests of which each can be sent whole in one write come on a connection with others, the others alone. */
function connections(plan: readonly Planned[], keep: boolean): Planned[][] {
  const alone = ({ chunked, body }: Planned): boolean => chunked || body > 10_000 || !keep;
  const together = plan.filter((each) => !alone(each));
  return [...plan.filter(alone).map((each) => [each]), ...Array.from({ length: Math.ceil(together.length / (AT_ONCE + 2)) }, (_, i) => together.slice(i * (AT_ONCE + 2), (i + 1) * (AT_ONCE + 2)))];
}

const [what = '', first = '', planFile = '', atOnce = '1', keep = 'keep'] = process.argv.slice(2);
if (what === 'serve') {
  serve(Number(first));
} else if (what === 'pipeline') {
  const rest = connections(JSON.parse(readFileSync(planFile, 'utf8')) as Planned[], keep === 'keep');
  await Promise.all(Array.from({ length: Number(atOnce) }, async () => {
    for (let next = rest.shift(); next; next = rest.shift()) for (const report of await byPipeline(new URL(first), keep === 'keep', next)) console.log(JSON.stringify(report));
  }));
  process.exit();
} else {
  const agent = new Agent({ keepAlive: keep === 'keep', maxSockets: Number(atOnce) });
  const rest = JSON.parse(readFileSync(planFile, 'utf8')) as Planned[];
  await Promise.all(Array.from({ length: Number(atOnce) }, async () => {
    for (let next = rest.shift(); next; next = rest.shift()) console.log(JSON.stringify(await (what === 'http' ? byHttp(first, agent, next) : byFetch(first, keep === 'keep', next))));
  }));
  process.exit();
}
