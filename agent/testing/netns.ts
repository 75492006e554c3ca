/** A network namespace that plays a pod in tests: loopback up, any addresses on it, commands inside. */
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { buildDir } from '../../common/paths.js';
import { run, type RunOptions } from '../../common/process.js';

let counter = 0;

/** To each of these URLs so many clients that keep their connections, and so many that open one for each request. */
export interface LoadClients {
  urls: readonly string[];
  host: string;
  kept: number;
  anew?: number;
  pauseMs?: number;
}

export interface Load {
  done: number;
  /** Statuses other than 200, and errors. */
  failed: string[];
  connections: number;
}

export class TestNetns {
  readonly #children: ChildProcess[] = [];

  private constructor(readonly name: string) {}

  get path(): string {
    return `/run/netns/${this.name}`;
  }

  static async create(): Promise<TestNetns> {
    const netns = new TestNetns(`up-proxy-${process.pid}-${++counter}`);
    await run('ip', ['netns', 'add', netns.name]);
    await netns.ip('link', 'set', 'lo', 'up');
    return netns;
  }

  async ip(...args: string[]): Promise<void> {
    await run('ip', ['-n', this.name, ...args]);
  }

  /** Redirects connections to `destination` (CIDR) to the listener on 15001, but not those that Envoy opens. */
  async redirect(destination: string): Promise<void> {
    await this.ip('route', 'add', destination, 'dev', 'lo');
    await this.exec(destination.includes(':') ? 'ip6tables' : 'iptables', '-t', 'nat', '-A', 'OUTPUT', '-p', 'tcp', '-d', destination, '-m', 'mark', '!', '--mark', '1337', '-j', 'REDIRECT', '--to-ports', '15001');
  }

  async exec(command: string, ...args: string[]): Promise<string> {
    return (await run('ip', ['netns', 'exec', this.name, command, ...args], { timeoutMs: 60_000 })).stdout;
  }

  /** Runs a JavaScript program (CommonJS) inside and waits for its result, a line of JSON. */
  async script<T>(source: string, options: RunOptions = {}): Promise<T> {
    return JSON.parse((await run('ip', ['netns', 'exec', this.name, process.execPath, '-e', source], { timeoutMs: 120_000, ...options })).stdout) as T;
  }

  /** Clients at work from a first answer until `body` has ended, and there were a hundred requests. */
  load(clients: LoadClients, body: () => Promise<void>): Promise<Load> {
    return this.script<Load>(loadOf(clients), { onOutput: body, timeoutMs: 600_000 });
  }

  /** Starts a JavaScript program inside that prints `ready` when it is; it ends with the namespace. */
  async serve(source: string): Promise<ChildProcess> {
    const child = spawn(join(buildDir, 'underpass-exec'), ['--netns', this.path, '--die-with-parent', '--', process.execPath, '-e', source], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#children.push(child);
    for await (const line of createInterface({ input: child.stdout })) if (line === 'ready') return child;
    throw new Error('the program in the namespace ended before it was ready');
  }

  /** The path goes, the namespace lives on for as long as something runs in it. */
  async deletePath(): Promise<void> {
    await run('ip', ['netns', 'del', this.name]);
  }

  async close(): Promise<void> {
    for (const child of this.#children) child.kill('SIGKILL');
    await run('ip', ['netns', 'del', this.name]).catch(() => undefined);
  }
}

/**
 * HTTP server on `port` of all addresses: answers which address was called, from where, on which of its connections (a
 * number), and the request's headers.
 */
export function echoServer(port: number): string {
  return `
    const http = require('http'); let connections = 0;
    const server = http.createServer({ keepAliveTimeout: 0 }, (req, res) => {
      const { localAddress, remoteAddress, connection } = req.socket;
      res.setHeader('content-type', 'application/json');
      res.end(JSON.stringify({ server: localAddress.replace('::ffff:', ''), client: remoteAddress.replace('::ffff:', ''), connection: req.socket.id, path: req.url, headers: req.headers }));
    });
    server.on('connection', (socket) => { socket.id = ++connections; });
    server.listen(${port}, () => console.log('ready'));`;
}

/** Sends requests one after another and prints the answers: [{status, body}]. */
export function requests(list: readonly { url: string; headers?: Record<string, string> }[]): string {
  return `
    const http = require('http'); const agent = new http.Agent({ keepAlive: true });
    const list = ${JSON.stringify(list)}; const results = [];
    const next = () => {
      const item = list[results.length];
      if (!item) { console.log(JSON.stringify(results)); agent.destroy(); return; }
      const req = http.get(item.url, { agent, headers: item.headers ?? {}, timeout: 10000 }, (res) => {
        let text = ''; res.on('data', (d) => (text += d)); res.on('end', () => { let body = text; try { body = JSON.parse(text); } catch {} results.push({ status: res.statusCode, body }); next(); });
      });
      req.on('timeout', () => req.destroy(new Error('timeout')));
      req.on('error', (error) => { results.push({ status: 0, body: error.message }); next(); });
    };
    next();`;
}

function loadOf({ urls, host, kept, anew = 0, pauseMs = 0 }: LoadClients): string {
  return `
    const http = require('http'); let done = 0, active = 0, over = false; const failed = [], ports = new Set();
    process.stdin.on('end', () => (over = true)).resume();
    const heard = (ok, text) => { if (done + failed.length === 0) console.log(); ok ? done++ : failed.push(text); };
    const call = (url, agent) => {
      if (over && done + failed.length > 100) return --active === 0 && (console.log(JSON.stringify({ done, failed, connections: ports.size })), process.exit(0));
      const again = () => setTimeout(call, ${pauseMs}, url, agent);
      const req = http.get(url, { agent, headers: { host: '${host}' }, timeout: 60000 }, (res) => {
        let text = ''; ports.add(res.socket.localPort);
        res.on('data', (d) => (text += d)).on('end', () => { heard(res.statusCode === 200, res.statusCode + ' ' + text); again(); }).on('error', (e) => { heard(false, e.message); again(); });
      });
      req.on('timeout', () => req.destroy(new Error('timeout'))).on('error', (e) => { heard(false, e.code + ' ' + e.message); again(); });
    };
    for (const url of ${JSON.stringify(urls)}) {
      for (let i = 0; i < ${kept}; i++) { active++; call(url, new http.Agent({ keepAlive: true, maxSockets: 1 })); }
      for (let i = 0; i < ${anew}; i++) { active++; call(url, false); }
    }`;
}
