/** Real servers, clients and proxies for the HTTP fast path, each in a pod of its own on one node, and plans of requests for them. */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { askAgent, instancePaths, type AgentFastPathStatus, type PodProbation } from '../../../agent/index.js';
import { projectRoot } from '../../../common/paths.js';
import { run } from '../../../common/process.js';
import { waitFor } from '../../../common/retry.js';
import { MeshWorld } from '../../mesh/world.js';
import { libraries, program, pythonModules } from '../../programs/world.js';
import { PROGRAMS, type Battery, type Peer } from './battery.js';
import { ANSWERS, bodyOf, fileOf, hashOf, planOf, wrongIn, type Kind, type Planned, type Reported } from './plan.js';

const PORT = 8080;
const NAMESPACE = 'fast';
/** Probation asks for eight, on connections that live for long enough to be looked at. */
const WARM = 16;
const ROUNDS = 12;
const PLAN_TIMEOUT_MS = 60_000;

const peerJs = [process.execPath, join(projectRoot, 'dist', 'test', 'http', 'programs', 'peer.js')];
const HERE = join(projectRoot, 'test', 'http', 'programs');
const peerPy = ['python3', '-u', join(HERE, 'peer.py')];
/** Whose modules are Debian's. */
const DEBIANS_PYTHON = '/usr/bin/python3';

const pod = (name: string, labels: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${NAMESPACE}, labels: {${labels}}}
spec: {containers: [{name: programs, image: sleep, ports: [{name: http, containerPort: ${PORT}}]}]}
---
`;
const service = (name: string, selector: string): string => `apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${NAMESPACE}}
spec:
  selector: {${selector}}
  ports: [{name: http, port: 80, targetPort: ${PORT}}]
---
`;

export interface Outcome {
  reports: Reported[];
  wrong: string[];
}

export class HttpPrograms {
  readonly world: MeshWorld;
  readonly folder = mkdtempSync(join(tmpdir(), 'up-http-programs-'));
  readonly #children = new Set<ChildProcess>();
  /** Programs that keep connections as long as they run. */
  proxies: ChildProcess[] = [];
  #number = 1_000;
  #files = 0;

  constructor(area: string, readonly battery: Battery = PROGRAMS) {
    const label = ({ cleared }: Peer): string => (cleared ? ', underpass.io/splice: "false"' : '');
    const servers = Object.entries(battery.servers).map(([name, server]) => pod(`s-${name}`, `app: ${name}, version: ${name}, group: ${server.kind}${label(server)}`) + service(name, `app: ${name}`));
    const clients = Object.entries({ ...battery.clients, wrk: { cleared: true }, rude: { cleared: true } } satisfies Record<string, Peer>).map(([name, client]) => pod(`c-${name}`, `app: c-${name}${label(client)}`));
    // `both`: two servers whose answers are alike, for routes.
    const outside = `apiVersion: v1
kind: Namespace
metadata: {name: ${NAMESPACE}, labels: {underpass.io/mode: node, underpass.io/acceleration: l7}}
---
${servers.join('')}${clients.join('')}${service('both', 'group: echo')}`.replace(/---\n$/, '');
    this.world = new MeshWorld(area, { bare: true, outside });
  }

  async up(): Promise<void> {
    await this.world.up();
    const { servers, clients } = this.battery;
    for (const name of Object.keys(servers)) await this.#start(`s-${name}`, ...this.#server(name));
    const proxies = Object.entries(clients).filter(([, { proxy }]) => proxy).map(([name]) => [name, this.#proxy(name)] as const);
    this.proxies = await Promise.all(proxies.map(([name, argv]) => this.#start(`c-${name}`, argv)));
    for (const name of Object.keys(servers)) await this.#listens(`s-${name}`, PORT);
    const [first = ''] = Object.keys(servers);
    const proxying = (): Promise<unknown> => Promise.all(proxies.map(([name]) => this.#listens(`c-${name}`, this.#proxyPort(first))));
    await proxying();
    // Each program to some server past Envoy, which would pool connections: probation looks at those.
    const probation = async (): Promise<PodProbation[]> => (await this.world.agentStatus()).probation;
    let undecided = [...Object.keys(clients), 'wrk'];
    for (let round = 0; undecided.length > 0 && round < ROUNDS; round++) {
      await Promise.all(undecided.map((client, i) => {
        const server = Object.keys(servers)[(i + round) % Object.keys(servers).length]!;
        if (client === 'wrk') return this.wrk(first, 1, WARM, `http://${this.address(first)}:${PORT}/`);
        return this.work(client, server, this.plan(WARM), { keep: false, ...(clients[client]!.proxy ? {} : { base: `http://${this.address(server)}:${PORT}` }) });
      }));
      const decided = (await probation()).filter(({ kind, verdict }) => kind === 'client' && verdict !== 'probation');
      undecided = undecided.filter((client) => !decided.some(({ pod: of, program: by = '' }) => of === `c-${client}` && (!clients[client]?.proxy || by.includes(client.replace('-proxy', '')))));
    }
    assert.deepEqual(undecided, [], JSON.stringify(await probation()));
    // Connections that they opened on probation stay Envoy's, and they keep them.
    for (const child of this.proxies) await ended(child);
    this.proxies = await Promise.all(proxies.map(([name, argv]) => this.#start(`c-${name}`, argv)));
    await proxying();
    await waitFor('the servers to be known', async () => (await probation()).filter(({ kind, pod: of, verdict }) => kind === 'listener' && of?.startsWith('s-') === true && verdict !== 'probation').length >= Object.keys(servers).length, { timeoutMs: 120_000, everyMs: 100 }).catch(async (error: unknown) => {
      throw new Error(`${String(error)} ${JSON.stringify(await probation())}`);
    });
    for (const { kind, pod: of, port, verdict } of await probation()) {
      const server = servers[of?.replace(/^s-/, '') ?? ''];
      if (kind === 'listener' && server && port === PORT) assert.equal(verdict, server.slow ?? 'event-driven', `port of ${of}`);
    }
    await sleep(1_500);
    await this.world.settled();
    await this.live();
  }

  async down(): Promise<void> {
    for (const child of this.#children) await ended(child);
    await this.world.down();
    rmSync(this.folder, { recursive: true, force: true });
  }

  address(server: string): string {
    return this.world.lab.pod(NAMESPACE, `s-${server}`).ips[0] ?? assert.fail(`no address of ${server}`);
  }

  async counters(): Promise<Record<string, number>> {
    return (JSON.parse(await askAgent(this.#socket, '/v1/counters')) as { node: Record<string, number> }).node;
  }

  async fastPath(): Promise<AgentFastPathStatus> {
    return JSON.parse(await askAgent(this.#socket, '/v1/http-fast-path')) as AgentFastPathStatus;
  }

  get #socket(): string {
    return instancePaths({ instance: this.world.name }).adminSocket;
  }

  async live(): Promise<void> {
    let last: unknown;
    await waitFor('the pods to be live', async () => {
      const status = await this.fastPath();
      last = status;
      return status.on && status.pods.suspended === 0 && status.pods.live > Object.keys(this.battery.clients).length;
    }, { timeoutMs: 120_000, everyMs: 20 }).catch((error: unknown) => {
      throw new Error(`${String(error)} ${JSON.stringify(last)}`);
    });
  }

  /** How many entries the kernel has of connections. */
  async entries(): Promise<Record<string, number>> {
    const found: Record<string, number> = {};
    for (const map of ['http_channels', 'http_clients', 'http_servers']) {
      const { stdout } = await run('bpftool', ['-j', 'map', 'dump', 'pinned', join('/sys/fs/bpf/underpass', this.world.name, 'maps', map)]);
      found[map] = (JSON.parse(stdout) as unknown[]).length;
    }
    return found;
  }

  /** Numbers that no other request has. */
  #next(count: number): number {
    this.#number += count;
    return this.#number - count;
  }

  plan(count: number): Planned[] {
    return planOf(this.#next(count), count);
  }

  spawn(of: string, argv: readonly string[], env: Record<string, string> = {}): ChildProcess {
    const child = this.world.lab.spawnIn(`${NAMESPACE}/${of}`, argv, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#children.add(child);
    child.once('exit', () => this.#children.delete(child));
    return child;
  }

  async #start(of: string, argv: readonly string[], env: Record<string, string> = {}): Promise<ChildProcess> {
    const child = this.spawn(of, argv, { LD_LIBRARY_PATH: libraries, ...env });
    child.stdout?.resume();
    child.stderr?.on('data', (data: Buffer) => (this.said = (this.said + `${of}: ${data.toString()}`).slice(-4_000)));
    return child;
  }

  /** What servers and proxies complained of last. */
  said = '';

  async #listens(of: string, port: number): Promise<void> {
    await waitFor(`${of} to listen`, async () => (await this.world.lab.exec(`${NAMESPACE}/${of}`, ['python3', '-c', `import socket; socket.create_connection(("127.0.0.1", ${port}))`], { timeoutMs: 120_000 })).code === 0, { everyMs: 50 }).catch((error: unknown) => {
      throw new Error(`${String(error)}: ${this.said}`);
    });
  }

  /** A client works through a plan. @param base default: the server's Service */
  async work(client: string, server: string, plan: readonly Planned[], { keep = true, base = `http://${server}` }: { keep?: boolean; base?: string } = {}): Promise<Outcome> {
    const { atOnce, proxy } = this.battery.clients[client]!;
    const at = proxy ? `http://127.0.0.1:${this.#proxyPort(server)}` : base;
    const reports = client === 'curl'
      ? (await Promise.all(Array.from({ length: atOnce }, (_, i) => this.#curl(at, plan.filter((__, index) => index % atOnce === i), keep)))).flat()
      : await this.#reports(`c-${client}`, this.argv(client, at, this.planFile(plan), atOnce, keep));
    return { reports, wrong: this.check(plan, this.battery.servers[server]?.kind ?? 'echo', reports) };
  }

  argv(client: string, base: string, planFile: string, atOnce: number, keep = true): string[] {
    const end = [base, planFile, String(atOnce), keep ? 'keep' : 'close'];
    if (client.startsWith('go')) return [program('http-peer'), 'client', ...end];
    if (client === 'http-client') return [...peerPy, 'client', ...end];
    if (client === 'asyncio' || client === 'rude') return [...peerPy, client, ...end];
    return [...peerJs, client === 'fetch' || client === 'pipeline' ? client : 'http', ...end];
  }

  planFile(plan: readonly Planned[]): string {
    const file = join(this.folder, `plan-${this.#files++}.json`);
    writeFileSync(file, JSON.stringify(plan));
    return file;
  }

  check(plan: readonly Planned[], kind: Kind, reports: readonly Reported[]): string[] {
    const answered = new Map(reports.map((report) => [report[0], report]));
    const wrong = plan.map((planned) => wrongIn(planned, kind, answered.get(planned.n) ?? [planned.n, 'nothing came of it'])).filter((text) => text !== undefined);
    return answered.size === reports.length ? wrong : [...wrong, `${reports.length - answered.size} answers too many`];
  }

  async #reports(of: string, argv: readonly string[]): Promise<Reported[]> {
    return (await this.run(of, argv)).trim().split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Reported);
  }

  /** @returns what it wrote, with a report of its failure behind it */
  async run(of: string, argv: readonly string[], env: Record<string, string> = {}): Promise<string> {
    const child = this.spawn(of, argv, env);
    let [out, err] = ['', ''];
    child.stdout?.on('data', (data: Buffer) => (out += data.toString()));
    child.stderr?.on('data', (data: Buffer) => (err = (err + data.toString()).slice(-2_000)));
    const timer = setTimeout(() => child.kill('SIGKILL'), PLAN_TIMEOUT_MS);
    const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
    clearTimeout(timer);
    if (code !== 0) out += `\n${JSON.stringify([-1, `${argv.join(' ')}: ${signal ?? `exit ${code}`}: ${err}`])}\n`;
    return out;
  }

  /** One curl, which keeps its connection from one URL to the next. */
  async #curl(base: string, plan: readonly Planned[], keep: boolean): Promise<Reported[]> {
    const folder = mkdtempSync(join(this.folder, 'curl-'));
    const config = plan.map(({ n, method, path, body, chunked }) => {
      const lines = [`url = "${base}${path}"`, `output = "${folder}/${n}"`, 'max-time = 15', `header = "x-number: ${n}"`, `write-out = "${n} %{http_code} %header{x-number} %header{x-path} %header{x-method} %header{x-via} %{errormsg}|%header{x-body}\\n"`];
      if (method === 'HEAD') lines.push('head');
      if (!keep) lines.push('header = "Connection: close"');
      if (method === 'POST') {
        writeFileSync(`${folder}/${n}.body`, bodyOf(n, body));
        lines.push(`data-binary = "@${folder}/${n}.body"`, 'header = "Content-Type: text/plain"');
        if (chunked) lines.push('header = "Transfer-Encoding: chunked"');
      }
      return lines.join('\n');
    });
    writeFileSync(`${folder}/config`, `silent\n${config.join('\nnext\n')}\n`);
    const out = await this.run('c-curl', ['curl', '-K', `${folder}/config`]);
    const reports = out.split('\n').filter((line) => /^\d+ /.test(line)).map((line): Reported => {
      const [first = '', said = ''] = line.split('|');
      const [n = '', status = '', number = '', path = '', method = '', via = '', ...error] = first.split(' ');
      if (Number(status) === 0 || (error.join('') !== '' && error.join('') !== '(nil)')) return [Number(n), line];
      let body = Buffer.alloc(0);
      try {
        // With `head` that is the answer's head.
        if (method !== 'HEAD') body = readFileSync(`${folder}/${n}`);
      } catch {
        // Without a body curl writes no file.
      }
      return [Number(n), Number(status), number, path, method, said, via, body.length, hashOf(body)];
    });
    rmSync(folder, { recursive: true });
    return reports;
  }

  /** wrk for so many seconds; its script looks at the answers. */
  async wrk(server: string, seconds: number, connections = 4, url = `http://${server}/`): Promise<{ right: number; wrong: number; fast: number; errors: number; said: string }> {
    const out = await this.run('c-wrk', ['wrk', '-t1', `-c${connections}`, `-d${seconds}s`, '-s', join(HERE, 'answers.lua'), url], { FIRST: String(this.#next(1_000_000)) });
    return JSON.parse(out.trim().split('\n').filter((line) => line.startsWith('{')).at(-1) ?? assert.fail(out)) as Awaited<ReturnType<HttpPrograms['wrk']>>;
  }

  #server(name: string): [argv: string[], env?: Record<string, string>] {
    if (name === 'node') return [[...peerJs, 'serve', String(PORT)]];
    if (name === 'nginx') return [[program('nginx'), '-c', this.#nginxServer(), '-e', 'stderr']];
    if (name.startsWith('go')) return [[program('http-peer'), 'serve', String(PORT)]];
    if (!name.startsWith('gunicorn-')) return [[...peerPy, `serve-${name}`, String(PORT)]];
    // Its connections last as long as those of the others: the race between a server's end and a request is not what is tried here.
    const options = ['-b', `0.0.0.0:${PORT}`, '-k', name.slice('gunicorn-'.length), '-w', '2', '--keep-alive', '75', '--log-level', 'warning'];
    return [[DEBIANS_PYTHON, '-m', 'gunicorn', ...options, 'wsgi:application'], { PYTHONPATH: `${pythonModules}:${HERE}`, PYTHONDONTWRITEBYTECODE: '1' }];
  }

  #proxy(name: string): string[] {
    return name === 'nginx-proxy' ? [program('nginx'), '-c', this.#nginxProxy(), '-e', 'stderr'] : [program('haproxy'), '-db', '-f', this.#haproxy()];
  }

  #proxyPort(server: string): number {
    return 9_100 + Object.keys(this.battery.servers).indexOf(server);
  }

  #nginxBase(name: string): { dir: string; head: string } {
    const dir = join(this.folder, name);
    for (const folder of ['', '/files', '/temp']) mkdirSync(dir + folder);
    const temps = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((each) => `${each}_temp_path ${dir}/temp/${each};`).join(' ');
    return { dir, head: `daemon off; master_process off; pid ${dir}/pid; user root;\nevents { worker_connections 256; }\nhttp {\n  access_log off; client_max_body_size 1m; ${temps}\n` };
  }

  /** Ends its connections every 200 requests, by saying so in an answer. */
  #nginxServer(): string {
    const { dir, head } = this.#nginxBase('nginx');
    for (const bytes of ANSWERS) writeFileSync(join(dir, 'files', String(bytes)), fileOf(bytes));
    const headers = ['x-number $http_x_number', 'x-path $request_uri', 'x-method $request_method', 'x-via $via'].map((each) => `add_header ${each} always;`).join(' ');
    writeFileSync(`${dir}/conf`, `${head}  map $http_x_forwarded_proto $via { default envoy; "" fast; }
  default_type text/plain; sendfile on; keepalive_requests 200;
  server {
    listen ${PORT};
    root ${dir}/files;
    ${headers}
    location /r/ {
      if ($arg_status = 204) { return 204; }
      if ($arg_status = 304) { return 304; }
      if ($request_method = POST) { return 200 "posted $http_x_number $request_uri"; }
      if ($arg_answer = chunked) { rewrite ^ /chunked last; }
      try_files /$arg_size =404;
    }
    location = /chunked { internal; sub_filter NUMBER $http_x_number; sub_filter_types *; try_files /$arg_size =404; }
  }
}
`);
    return `${dir}/conf`;
  }

  #nginxProxy(): string {
    const { dir, head } = this.#nginxBase('nginx-proxy');
    const servers = Object.keys(this.battery.servers).map((name) => `  upstream ${name} { server ${name}:80; keepalive 3; }
  server {
    listen 127.0.0.1:${this.#proxyPort(name)};
    location / { proxy_pass http://${name}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host ${name}; proxy_next_upstream off; }
  }
`);
    writeFileSync(`${dir}/conf`, `${head}${servers.join('')}}\n`);
    return `${dir}/conf`;
  }

  #haproxy(): string {
    const parts = Object.keys(this.battery.servers).map((name) => `listen ${name}
  bind 127.0.0.1:${this.#proxyPort(name)}
  http-request set-header host ${name}
  server ${name} ${name}:80 pool-max-conn 3
`);
    const file = join(this.folder, 'haproxy.cfg');
    writeFileSync(file, `global\n  nosplice\ndefaults\n  mode http\n  http-reuse always\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n${parts.join('')}`);
    return file;
  }
}

export async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit');
  child.kill('SIGKILL');
  await exit;
}
