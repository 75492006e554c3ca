/**
 * As much of `fortio` as Istio's documentation uses:
 *   fortio server                          HTTP on 8080 and 8079 that answers with its pod
 *   fortio curl URL, fortio load -curl URL   one request, its answer on stdout
 *   fortio load -c 2 -qps 0 -n 20 -loglevel Warning [-t 5s] [-H "name: value"] [-timeout 3s] URL
 * prints how often each status came, as fortio does.
 */
import { Agent, request } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { endOnSignal, identity, listenHttp, portList, sendJson } from './http.js';

const DEFAULT_SECONDS = 5;
const DEFAULT_QPS = 8;
const DEFAULT_CONNECTIONS = 4;
/** Flags of fortio that take no value. */
const SWITCHES = new Set(['curl', 'allow-initial-errors', 'quiet', 'uniform', 'nocatchup', 'stdclient', 'h2', 'jitter', 'a', 'keepalive']);

export interface LoadOptions {
  url: string;
  connections: number;
  /** 0: as fast as it goes. */
  qps: number;
  /** 0: until the time is over. */
  calls: number;
  seconds: number;
  timeoutMs: number;
  headers: Record<string, string>;
  curl: boolean;
}

/** fortio's durations, e.g. `1m30s`, `250ms`. */
export function parseDuration(text: string): number {
  const units: Record<string, number> = { ms: 0.001, s: 1, m: 60, h: 3600 };
  let seconds = 0;
  for (const [, number, unit] of text.matchAll(/([\d.]+)(ms|s|m|h)/g)) seconds += Number(number) * (units[unit as string] as number);
  return seconds;
}

export function parseLoad(words: readonly string[]): LoadOptions {
  const options: LoadOptions = { url: '', connections: DEFAULT_CONNECTIONS, qps: DEFAULT_QPS, calls: 0, seconds: DEFAULT_SECONDS, timeoutMs: 3_000, headers: {}, curl: false };
  for (let index = 0; index < words.length; index++) {
    const word = words[index] as string;
    if (!word.startsWith('-')) {
      options.url = word.includes('://') ? word : `http://${word}`;
      continue;
    }
    const [, name = '', inline] = /^--?([^=]+)(?:=(.*))?$/.exec(word) ?? [];
    if (name === 'curl') options.curl = true;
    if (SWITCHES.has(name)) continue;
    const value = inline ?? words[++index] ?? '';
    if (name === 'c') options.connections = Number(value);
    else if (name === 'qps') options.qps = value === 'max' ? 0 : Number(value);
    else if (name === 'n') options.calls = Number(value);
    else if (name === 't') options.seconds = parseDuration(value);
    else if (name === 'timeout') options.timeoutMs = parseDuration(value) * 1000;
    else if (name === 'H') options.headers[value.slice(0, value.indexOf(':')).trim()] = value.slice(value.indexOf(':') + 1).trim();
  }
  return options;
}

/** What one call came to: its status, -1 for an error of the connection, as fortio counts. */
function call(options: LoadOptions, agent: Agent, onBody?: (status: string, body: string) => void): Promise<number> {
  return new Promise((resolve) => {
    const outgoing = request(options.url, { agent, headers: { 'user-agent': 'fortio.org/fortio-lab', ...options.headers }, timeout: options.timeoutMs }, (response) => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('error', () => resolve(-1));
      response.on('end', () => {
        onBody?.(`HTTP/${response.httpVersion} ${response.statusCode} ${response.statusMessage}`, Buffer.concat(chunks).toString('utf8'));
        resolve(response.statusCode ?? -1);
      });
    });
    outgoing.on('timeout', () => outgoing.destroy(new Error('timeout')));
    outgoing.on('error', () => resolve(-1));
    outgoing.end();
  });
}

export function report(counts: ReadonlyMap<number, number>): string[] {
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  return [...counts].sort(([a], [b]) => a - b).map(([code, count]) => `Code ${String(code).padStart(3)} : ${count} (${((100 * count) / total).toFixed(1)} %)`);
}

async function load(options: LoadOptions): Promise<void> {
  const counts = new Map<number, number>();
  const started = performance.now();
  const deadline = options.calls > 0 ? Infinity : started + options.seconds * 1000;
  let [issued, latencyMs] = [0, 0];
  const connection = async (): Promise<void> => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    while (performance.now() < deadline && (options.calls === 0 || issued < options.calls)) {
      const due = options.qps > 0 ? started + (issued * 1000) / options.qps : 0;
      issued++;
      const wait = due - performance.now();
      if (wait > 0) await delay(wait);
      const from = performance.now();
      const code = await call(options, agent);
      latencyMs += performance.now() - from;
      counts.set(code, (counts.get(code) ?? 0) + 1);
    }
    agent.destroy();
  };
  await Promise.all(Array.from({ length: Math.max(1, options.connections) }, connection));
  const seconds = (performance.now() - started) / 1000;
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  process.stdout.write(`${[...report(counts), `All done ${total} calls (plus 0 warmup) ${(latencyMs / Math.max(1, total)).toFixed(3)} ms avg, ${(total / seconds).toFixed(1)} qps`].join('\n')}\n`);
}

async function main([command, ...words]: string[]): Promise<void> {
  if (command === 'server') {
    for (const port of portList('HTTP_PORTS', [8080, 8079])) listenHttp(port, (incoming, response) => sendJson(response, { ...identity, method: incoming.method, path: incoming.url, headers: incoming.headers }));
    return endOnSignal();
  }
  const options = parseLoad(words);
  if ((command !== 'load' && command !== 'curl') || !options.url) {
    process.stderr.write('usage: fortio server | fortio curl URL | fortio load [-c N] [-qps N] [-n N] [-t 5s] [-H "name: value"] [-curl] URL\n');
    process.exitCode = 2;
  } else if (command === 'curl' || options.curl) {
    const agent = new Agent({ keepAlive: false });
    const code = await call(options, agent, (status, body) => process.stdout.write(`${status}\n\n${body}\n`));
    if (code < 200 || code > 399) process.exitCode = 1;
  } else {
    await load(options);
  }
}

if (process.argv[1]?.endsWith('fortio.js')) await main(process.argv.slice(2));
