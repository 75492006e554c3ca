/**
 * One small mesh in both of the product's modes at once, for tests that send real traffic: a lab, pilot in this process,
 * and a node agent as a user runs it. The same pods stand in the namespaces `sidecar` (each with its own Envoy) and `node`
 * (one Envoy for all); `outside` is not in the mesh.
 *
 *   const mesh = new MeshWorld('routing');
 *   before(() => mesh.up());
 *   after(() => mesh.down());
 *   for (const mode of MODES) {
 *     test(`a path is rewritten (${mode})`, async () => {
 *       await mesh.apply(mode, `apiVersion: networking.istio.io/v1 …`);   // in the namespace `mode`, unless metadata says another
 *       const { status, body, version } = await mesh.curl(mode, 'http://web/old/x');
 *     });
 *   }
 *
 * `apply` replaces what the last `apply` of this mode wrote, and returns when every proxy has acknowledged the result; so
 * tests need no clean-up. In each mode namespace: pod `client`; Deployments of the lab's echo server `web-v1`, `web-v2`
 * (labels app=web, version) behind Service `web` (http 80 → 8080, tcp-echo 9000), `other` behind Service `other`; in
 * `outside`: `client` and `web`. More pods and Services: `new MeshWorld(name, { yaml: (namespace) => '…' })`, called for
 * `sidecar` and `node`, and `outside` for what is to be there once.
 */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { askAgent, cleanup, instancePaths, realCleanupParts, type AgentStatus, type Explanation } from '../../agent/index.js';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { TokenIssuer, type TokenSubject } from '../../common/identity/service-account-token.js';
import type { ContainerRecord, PodRecord } from '../../common/lab-api.js';
import { logger } from '../../common/log.js';
import { run, type RunResult } from '../../common/process.js';
import { PATIENCE_MS, waitFor } from '../../common/retry.js';
import { Lab } from '../../lab/index.js';
import { Pilot, type PilotOptions } from '../../pilot/index.js';
import { CLI, SHARED_SELF_TEST } from '../agent-harness.js';

export const MODES = ['sidecar', 'node'] as const;
export type Mode = (typeof MODES)[number];

export interface Answer {
  status: number;
  /** In lower case; of a repeated header all values, joined. */
  headers: Record<string, string>;
  text: string;
  /** What the echo server says it was asked: {path, method, headers, version, pod, …}; {} when the answer is no JSON. */
  body: Record<string, any>;
  /** The answering pod's label `version`. */
  version: string;
}

export interface CurlOptions {
  /** `namespace/pod`, default `<mode>/client`. */
  from?: string;
  method?: string;
  headers?: Record<string, string>;
  data?: string;
  /** More of curl's own options. */
  args?: string[];
  timeoutS?: number;
}

export interface WorldOptions {
  /** More objects for each of the namespaces `sidecar` and `node`. */
  yaml?: (namespace: Mode) => string;
  /** More objects, given once, with their namespaces written in them. */
  outside?: string;
  pilot?: Partial<PilotOptions>;
  nodes?: number;
  /** Those with this product's agent; default: all. Pods of the others are somebody else's to serve. */
  agentNodes?: readonly string[];
  /** Without the node agent: only the sidecars' mode is there. */
  sidecarsOnly?: boolean;
  /** Without the pods and Services of its own. */
  bare?: boolean;
  /** Life of certificates; default: the CA's own, a day. */
  leafTtlMs?: number;
  /** Where the agents find the CA, whose server is at `address`; default: there. */
  caAddress?: (address: string) => Promise<string>;
  /** Of the node agent's environment, beside this process's. */
  agentEnv?: Record<string, string>;
  /** Further options of the node agents. */
  agentArgs?: readonly string[];
}

/** The node agent as Kubernetes would run it: what it proves itself to the CA with is a token of its pod on that node. */
const AGENTS = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: underpass-agent, namespace: underpass-system}
spec:
  selector: {matchLabels: {app: underpass}}
  template:
    metadata: {labels: {app: underpass}}
    spec: {serviceAccountName: underpass-agent, containers: [{name: agent, image: sleep}]}
`;
const MARKER = 'mesh-world-step';
const READY_TIMEOUT_MS = 180_000;

interface NodeAgent {
  readonly child: ChildProcess;
  readonly paths: ReturnType<typeof instancePaths>;
  /** Its instance has the world's name. */
  readonly isFirst: boolean;
  log: string;
}

const pod = (namespace: string, name: string, labels: string, container: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}
spec: {serviceAccountName: ${/app: (\w+)/.exec(labels)?.[1] ?? name}, containers: [{${container}}]}
`;
const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';
const service = (namespace: string, name: string): string => `apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec:
  selector: {app: ${name}}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]
`;

const ownProxy = (containers: readonly ContainerRecord[]): ContainerRecord | undefined => containers.find(({ name }) => name === 'istio-proxy');

export class MeshWorld {
  readonly name: string;
  lab!: Lab;
  pilot!: Pilot;
  /** Of sidecars and of the node's pods alike. */
  ca!: CertificateAuthority;
  #tokens!: TokenIssuer;
  #folder = '';
  readonly #agents = new Map<string, NodeAgent>();
  #steps = 0;
  readonly #written = new Map<string, string>();

  /** @param name of the test's area, e.g. `routing`: part of the names of namespaces and cgroups */
  constructor(name: string, readonly options: WorldOptions = {}) {
    this.name = `up-${name}-${process.pid}`;
  }

  /** Directory with the configuration that `apply` writes, read by pilot. */
  get configDir(): string {
    return join(this.#folder, 'config');
  }

  /** Where proxies find pilot. */
  get discovery(): string {
    return `unix:${join(this.#folder, 'xds.sock')}`;
  }

  async up(): Promise<void> {
    this.#folder = mkdtempSync(join(tmpdir(), `${this.name}-`));
    const world = join(this.#folder, 'world');
    for (const folder of [world, this.configDir]) mkdirSync(folder);
    writeFileSync(join(world, 'world.yaml'), this.#world());
    this.ca = await CertificateAuthority.create(this.options.leafTtlMs === undefined ? {} : { leafTtlMs: this.options.leafTtlMs });
    this.#tokens = await TokenIssuer.create();
    writeFileSync(join(this.#folder, 'jwks.json'), JSON.stringify(this.#tokens.jwks));
    this.lab = await Lab.up({ name: this.name, ca: this.ca, sources: [world], watch: false, discovery: this.discovery, sidecarConcurrency: 1, purpose: 'test', ...(this.options.nodes ? { nodes: this.options.nodes } : {}) });
    await this.lab.whenReady();
    // Pilot after the lab, and its socket last: proxies that wait for it then come up at once.
    await this.startPilot();
    if (!this.options.sidecarsOnly) for (const name of this.options.agentNodes ?? this.lab.info().nodes.map((node) => node.name)) await this.startAgent(name);
    await this.lab.whenReady({ sidecars: true, timeoutMs: READY_TIMEOUT_MS });
    if (!this.options.sidecarsOnly) await this.enrolled();
    await this.settled();
  }

  /** At first, and again after `pilot.stop`: then certificates of the agents are not renewed, since it signs them at another address. */
  async startPilot(): Promise<void> {
    const { pilot = {} } = this.options;
    this.pilot = new Pilot({ sources: [join(this.#folder, 'world'), this.lab.objectsDir, this.configDir], logger: logger('pilot').child({}, { level: 'warn' }), debounce: { quietMs: 20 }, security: { listen: ['127.0.0.1:0'], hosts: ['localhost'], ca: this.ca, tokenJwks: join(this.#folder, 'jwks.json') }, ...pilot, listen: [this.discovery, ...(pilot.listen ?? [])] });
    await this.pilot.start();
  }

  #world(): string {
    const { yaml, outside, bare } = this.options;
    const parts: string[] = [];
    const own = (...objects: string[]): string[] => (bare ? [] : objects);
    if (!this.options.sidecarsOnly) parts.push(AGENTS);
    for (const mode of MODES) {
      if (mode === 'node' && this.options.sidecarsOnly) continue;
      parts.push(
        `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${mode}, labels: {underpass.io/mode: ${mode}}}\n`,
        ...own(
          pod(mode, 'client', 'app: client', 'name: curl, image: curl'),
          ...['v1', 'v2'].map((version) => pod(mode, `web-${version}`, `app: web, version: ${version}`, ECHO)),
          pod(mode, 'other', 'app: other, version: v1', ECHO),
          service(mode, 'web'),
          service(mode, 'other'),
        ),
        ...(yaml ? [yaml(mode)] : []),
      );
    }
    parts.push(...own(pod('outside', 'client', 'app: client', 'name: curl, image: curl'), pod('outside', 'web', 'app: web, version: out', ECHO), service('outside', 'web')), ...(outside ? [outside] : []));
    return parts.join('---\n');
  }

  /** The agent of a node: at first, and again after `stopAgent`. */
  async startAgent(node: string): Promise<void> {
    const address = this.pilot.secureAddresses[0]!.replace('127.0.0.1', 'localhost');
    const caAddress = (await this.options.caAddress?.(address)) ?? address;
    const instance = `${this.name}${this.#agents.size === 0 || this.#agents.get(node)?.isFirst ? '' : `-${node}`}`;
    const folder = join(this.#folder, `agent-${node}`);
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const [pod] = this.lab.records(node).filter(({ namespace }) => namespace === 'underpass-system');
    writeFileSync(join(folder, 'token'), await this.#tokens.issue({ namespace: 'underpass-system', serviceAccount: 'underpass-agent', pod: { name: pod!.name }, nodeName: node }), { mode: 0o600 });
    writeFileSync(join(folder, 'root.pem'), this.ca.rootPem);
    const args = ['agent', '--discovery', this.discovery, '--lab-socket', this.lab.socket, '--node', node, '--instance', instance, '--concurrency', '1', ...(this.options.agentArgs ?? [])];
    const child = spawn(process.execPath, [CLI, ...args, '--ca', caAddress, '--ca-root', join(folder, 'root.pem'), '--ca-token', join(folder, 'token')], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...SHARED_SELF_TEST, ...this.options.agentEnv } });
    const before = this.#agents.get(node);
    const agent: NodeAgent = { child, paths: instancePaths({ instance }), isFirst: before?.isFirst ?? this.#agents.size === 0, log: before?.log ?? '' };
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (agent.log += chunk.toString()));
    this.#agents.set(node, agent);
  }

  /** What a service account proves itself to pilot with. */
  token(subject: TokenSubject): Promise<string> {
    return this.#tokens.issue(subject);
  }

  /** Ends a node's agent; its Envoy and the kernel go on. */
  async stopAgent(node: string, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const { child } = this.#agentOf(node);
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
    await once(child, 'exit');
    clearTimeout(timer);
  }

  /** Ends a node's agent and takes away all that it made. */
  async removeAgent(node: string): Promise<void> {
    await this.stopAgent(node);
    await run(process.execPath, [CLI, 'agent', '--cleanup', '--instance', this.#agentOf(node).paths.instance], { okCodes: [0, 1], timeoutMs: 30_000 });
  }

  #agentOf(node = [...this.#agents.keys()][0]!): NodeAgent {
    const agent = this.#agents.get(node);
    assert.ok(agent, `no agent of node ${node}`);
    return agent;
  }

  /** What a node's agent wrote; of the first node, if none is named. */
  agentLog(node?: string): string {
    return this.#agentOf(node).log;
  }

  async agentStatus(node?: string): Promise<AgentStatus> {
    return JSON.parse(await askAgent(this.#agentOf(node).paths.adminSocket, '/v1/status')) as AgentStatus;
  }

  /** What the agent of the pod's node says of a connection of the pod (`namespace/name`). */
  async explain(pod: string, host: string, port: number): Promise<Explanation> {
    const query = new URLSearchParams({ pod, host, port: String(port) });
    return JSON.parse(await askAgent(this.#agentOf(this.#record(pod).nodeName).paths.adminSocket, `/v1/explain?${query.toString()}`)) as Explanation;
  }

  async agentMetrics(node?: string): Promise<string> {
    return askAgent(this.#agentOf(node).paths.adminSocket, '/metrics');
  }

  /** What the shared Envoy's admin interface says. */
  async nodeProxyAdmin(path: string, node?: string, method = 'GET'): Promise<string> {
    return (await run('curl', ['-s', '-X', method, '--max-time', String(PATIENCE_MS / 1_000), '--unix-socket', join(this.#agentOf(node).paths.folder, 'envoy-admin.sock'), `http://envoy${path}`])).stdout;
  }

  /** What the admin interface of the proxy that serves a pod (`namespace/name`) says: its own Envoy's, else its node's. */
  async proxyAdmin(pod: string, path: string, method = 'GET'): Promise<string> {
    const { containers, nodeName } = this.#record(pod);
    return ownProxy(containers) ? this.lab.proxyAdmin(pod, path, { method }) : this.nodeProxyAdmin(path, nodeName, method);
  }

  /** What that proxy has logged. */
  proxyLog(pod: string): string {
    const { containers, nodeName } = this.#record(pod);
    return readFileSync(ownProxy(containers)?.log ?? join(this.#agentOf(nodeName).paths.folder, 'envoy.log'), 'utf8');
  }

  #record(pod: string): PodRecord {
    const [namespace = '', name = ''] = pod.split('/');
    return this.lab.pod(namespace, name);
  }

  /** Resolves when each agent is ready and the pods of its node are enrolled. */
  async enrolled(): Promise<void> {
    for (const [node, agent] of this.#agents) {
      let last: unknown;
      const probe = async (): Promise<boolean> => {
        if (agent.child.exitCode !== null) throw new Error('the agent ended');
        const now = await this.agentStatus(node).catch(() => undefined);
        const pods = now?.pods.filter(({ mode }) => mode === 'node') ?? [];
        last = [now?.notReady, pods];
        const some = pods.length > 0 || this.#agents.size > 1;
        return now?.ready === true && some && pods.every((item) => item.state === 'enrolled' && item.settled);
      };
      await waitFor(`the pods of mode node on ${node} to be enrolled`, probe, { timeoutMs: READY_TIMEOUT_MS, everyMs: 50 }).catch((error: unknown) => {
        throw new Error(`${String(error)}\n${JSON.stringify(last)}\n${agent.log.slice(-4000)}`);
      });
    }
  }

  /**
   * Puts `yaml` in the place of what this mode had, and waits until it is in force in every proxy.
   * @param mode objects without a namespace are put into the namespace of that name; `mesh`: they must say theirs
   */
  async apply(mode: Mode | 'mesh', yaml: string): Promise<void> {
    const documents = parseAllDocuments(yaml).filter((document) => document.toJS() !== null);
    for (const document of documents) {
      if (mode !== 'mesh' && !document.hasIn(['metadata', 'namespace'])) document.setIn(['metadata', 'namespace'], mode);
    }
    await this.#write(mode, documents.map((document) => document.toString()).join('---\n'));
  }

  /** Takes away what `apply` wrote for this mode. */
  async clear(mode: Mode | 'mesh'): Promise<void> {
    await this.#write(mode, '');
  }

  async #write(file: string, yaml: string): Promise<void> {
    if ((this.#written.get(file) ?? '') === yaml) return this.settled();
    this.#written.set(file, yaml);
    const step = String(++this.#steps);
    // What stands last in the file is taken over with the rest of it.
    const marker = `apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ${MARKER}-${file}, namespace: outside}\ndata: {step: "${step}"}\n`;
    const path = join(this.configDir, `${file}.yaml`);
    writeFileSync(join(this.configDir, `.${file}.part`), `${yaml === '' ? '' : `${yaml}\n---\n`}${marker}`);
    renameSync(join(this.configDir, `.${file}.part`), path);
    const inForce = (): string | undefined => (this.pilot.object(`/ConfigMap/outside/${MARKER}-${file}`) as { data?: { step?: string } } | undefined)?.data?.step;
    await waitFor(`pilot to read ${file}.yaml`, () => inForce() === step, { timeoutMs: 120_000, everyMs: 5 });
    const errors = this.pilot.status().problems.filter((problem) => problem.severity === 'error' && problem.file === path);
    assert.deepEqual(errors.map(({ field, message }) => `${field}: ${message}`), [], 'pilot refuses the configuration');
    await this.settled();
  }

  /** Every proxy, the shared Envoy included, has acknowledged all that follows from what pilot has read. */
  async settled(): Promise<void> {
    let last: unknown;
    const now = async (): Promise<boolean> => {
      const { settled, ads } = this.pilot.status();
      last = ads.connections.filter(({ types }) => Object.values(types).some(({ isAnswered }) => !isAnswered)).map(({ node }) => node);
      if (!settled) return false;
      if (this.options.sidecarsOnly) return true;
      for (const node of this.#agents.keys()) {
        const { proxy } = await this.agentStatus(node);
        last = proxy;
        if (!proxy.settled) return false;
      }
      return this.pilot.status().settled;
    };
    await waitFor('all proxies to have the newest configuration', now, { timeoutMs: 120_000, everyMs: 10 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${JSON.stringify(last)}`);
    });
  }

  /** What any proxy refused; a test that expects none says so. */
  async nacks(): Promise<string[]> {
    const fromPilot = this.pilot.status().ads.connections.flatMap(({ node, types }) => Object.entries(types).flatMap(([type, { nack }]) => (nack ? [`${node}: ${type}: ${nack.message}`] : [])));
    const agents = await Promise.all([...this.#agents.keys()].map((node) => this.agentStatus(node)));
    return [...fromPilot, ...agents.flatMap(({ node, proxy }) => proxy.nacks.map(({ type, name, message }) => `${node}: ${type} ${name}: ${message}`))];
  }

  /** One request with curl from a pod. A connection that fails is an error, unless `tryCurl` is used. */
  async curl(mode: Mode | 'outside', url: string, options: CurlOptions = {}): Promise<Answer> {
    const result = await this.#runCurl(mode, url, { timeoutS: PATIENCE_MS / 1_000, ...options });
    assert.equal(result.code, 0, `curl ${url} from ${options.from ?? `${mode}/client`}: exit ${result.code} ${result.stderr}`);
    return parseAnswer(result.stdout);
  }

  /** The same for requests that may fail to connect: curl's exit code (0: answered), and the answer if there is one. */
  async tryCurl(mode: Mode | 'outside', url: string, options: CurlOptions = {}): Promise<{ code: number; answer?: Answer; stderr: string }> {
    const { code, stdout, stderr } = await this.#runCurl(mode, url, options);
    return code === 0 ? { code, stderr, answer: parseAnswer(stdout) } : { code, stderr };
  }

  async #runCurl(mode: string, url: string, { from = `${mode}/client`, method, headers = {}, data, args = [], timeoutS = 10 }: CurlOptions): Promise<RunResult> {
    const flags = ['-sS', '-i', '--max-time', String(timeoutS)];
    if (method) flags.push('-X', method);
    for (const [name, value] of Object.entries(headers)) flags.push('-H', `${name}: ${value}`);
    if (data !== undefined) flags.push('--data-binary', data);
    return this.lab.exec(from, ['curl', ...flags, ...args, url], { timeoutMs: (timeoutS + 5) * 1_000 });
  }

  /** `count` requests, each over a connection of its own unless `keepAlive`; how many had each status and version. */
  async load(mode: Mode | 'outside', url: string, count: number, options: CurlOptions & { keepAlive?: boolean; /** Requests of one connection; default: all. */ each?: number } = {}): Promise<{ statuses: Record<string, number>; versions: Record<string, number>; pods: Record<string, number> }> {
    const { from = `${mode}/client`, headers = {}, keepAlive = true, each = count } = options;
    const script = `
const http = require('node:http');
const [url, count, headers, keepAlive, each] = JSON.parse(process.argv[1]);
let agent = new http.Agent({ keepAlive, maxSockets: 1 });
const result = { statuses: {}, versions: {}, pods: {} };
const add = (table, key) => (table[key] = (table[key] ?? 0) + 1);
const one = () => new Promise((resolve) => {
  const request = http.request(url, { agent, headers, timeout: 30000 }, (response) => {
    let text = '';
    response.on('data', (chunk) => (text += chunk)).on('end', () => {
      add(result.statuses, response.statusCode);
      let body = {};
      try { body = JSON.parse(text); } catch {}
      add(result.versions, body.version ?? response.headers['x-version'] ?? '');
      add(result.pods, body.pod ?? response.headers['x-pod'] ?? '');
      resolve();
    }).on('error', () => { add(result.statuses, 'reset'); resolve(); });
  });
  request.on('timeout', () => request.destroy(new Error('timeout'))).on('error', (error) => { add(result.statuses, error.code ?? error.message); resolve(); });
  request.end();
});
(async () => {
  for (let i = 0; i < count; i++) {
    if (i > 0 && i % each === 0) {
      agent.destroy();
      agent = new http.Agent({ keepAlive, maxSockets: 1 });
    }
    await one();
  }
  agent.destroy(); console.log(JSON.stringify(result));
})();`;
    const { code, stdout, stderr } = await this.lab.exec(from, [process.execPath, '-e', script, JSON.stringify([url, count, headers, keepAlive, each])], { timeoutMs: 10 * PATIENCE_MS });
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout) as Awaited<ReturnType<MeshWorld['load']>>;
  }

  async down(): Promise<void> {
    await Promise.all([...this.#agents.keys()].map((node) => this.stopAgent(node)));
    await (this.pilot as Pilot | undefined)?.stop();
    // Before the agents' leftovers, as nobody is there any more who would have to hear that their pods take no mutual TLS.
    await (this.lab as Lab | undefined)?.down();
    for (const { paths: { instance } } of this.#agents.values()) await cleanup({ instance, logger: logger('test.cleanup').child({}, { level: 'warn' }) }, realCleanupParts);
    if (this.#folder) rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Of `curl -i`; answers of 1xx before the last are passed over. */
function parseAnswer(output: string): Answer {
  let rest = output;
  let head = '';
  do {
    const end = rest.indexOf('\r\n\r\n');
    assert.ok(end >= 0, `no HTTP answer: ${output.slice(0, 200)}`);
    [head, rest] = [rest.slice(0, end), rest.slice(end + 4)];
  } while (/^HTTP\/[\d.]+ 1\d\d/.test(head));
  const [first = '', ...lines] = head.split('\r\n');
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const colon = line.indexOf(':');
    const name = line.slice(0, colon).toLowerCase();
    const value = line.slice(colon + 1).trim();
    headers[name] = name in headers ? `${headers[name]}, ${value}` : value;
  }
  let body: Record<string, any> = {};
  try {
    body = JSON.parse(rest) as Record<string, any>;
  } catch {
    // Not the echo server's.
  }
  return { status: Number(first.split(' ')[1]), headers, text: rest, body, version: String(body['version'] ?? headers['x-version'] ?? '') };
}
