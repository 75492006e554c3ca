/** A lab and a node agent as a user runs them (`underpass node --embedded-pilot`), for tests. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { askAgent, cleanup, instancePaths, realCleanupParts, type AgentStatus, type PodStatus } from '../agent/index.js';
import { projectRoot } from '../common/paths.js';
import { logger } from '../common/log.js';
import { run, type RunResult } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { Load } from './load.js';

export const CLI = join(projectRoot, 'dist', 'cli', 'main.js');

/** For the environment of an agent that goes by the self-test of another one: shared-self-test.ts. */
export const SHARED_SELF_TEST = { NODE_OPTIONS: `--import=${pathToFileURL(join(projectRoot, 'dist', 'test', 'shared-self-test.js')).href}` };

export const enrolled = (way: 'bpf' | 'iptables') => (pod: PodStatus) => pod.state === 'enrolled' && pod.way === way && pod.settled;

export class NodeUnderTest {
  readonly paths: ReturnType<typeof instancePaths>;
  lab!: Lab;
  /** All that the agent's process wrote since it was started. */
  log = '';
  /** A command that runs the agent, e.g. with less than root's rights. */
  under: readonly string[] = [];
  /** Whether each agent is started as a user starts it, with a self-test of its own. */
  ownSelfTest = false;
  #sources = '';
  #agent: ChildProcess | undefined;
  readonly #loads: Load[] = [];

  constructor(readonly instance: string) {
    this.paths = instancePaths({ instance });
  }

  /** What the lab and pilot read. */
  get sourceDir(): string {
    return this.#sources;
  }

  /** Starts a lab with these files of examples/canary, and with YAML of the test's own. */
  async up(files: readonly string[], yaml?: string): Promise<void> {
    this.#sources = mkdtempSync(join(tmpdir(), `${this.instance}-`));
    if (yaml !== undefined) writeFileSync(join(this.#sources, 'own.yaml'), yaml);
    for (const file of files) copyFileSync(join(projectRoot, 'examples', 'canary', file), join(this.#sources, file));
    const discovery = `unix:${join(this.paths.folder, 'pilot.sock')}`;
    this.lab = await Lab.up({ name: this.instance, sources: [this.#sources], watch: false, purpose: 'test', discovery, sidecarConcurrency: 1 });
    await this.lab.whenReady();
  }

  async down(): Promise<void> {
    for (const { child } of this.#loads) child.kill('SIGKILL');
    await this.endAgent('SIGKILL');
    // Before the agent's leftovers, as nobody is there any more who would have to hear that its pods take no mutual TLS.
    await (this.lab as Lab | undefined)?.down();
    await cleanup({ instance: this.instance, logger: logger('test.cleanup').child({}, { level: 'warn' }) }, realCleanupParts);
    rmSync(this.#sources, { recursive: true, force: true });
  }

  cli(args: readonly string[], okCodes: readonly number[] = [0]): Promise<RunResult> {
    return run(process.execPath, [CLI, ...args], { okCodes, timeoutMs: 180_000 });
  }

  startAgent(...more: string[]): void {
    this.start('node', '--embedded-pilot', ...more);
  }

  /** @param command `node` or `agent`, and its own options */
  start(...command: string[]): void {
    this.log = '';
    const args = [...command, '--lab-socket', this.lab.socket, '--instance', this.instance, '--concurrency', '1'];
    const [program = '', ...rest] = [...this.under, process.execPath, CLI, ...args];
    const child = spawn(program, rest, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...(this.ownSelfTest ? {} : SHARED_SELF_TEST) } });
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (this.log += chunk.toString()));
    this.#agent = child;
  }

  async endAgent(signal: NodeJS.Signals): Promise<void> {
    const child = this.#agent;
    this.#agent = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, 'exit');
  }

  async status(): Promise<AgentStatus> {
    return JSON.parse(await askAgent(this.paths.adminSocket, '/v1/status')) as AgentStatus;
  }

  /** What the shared Envoy's admin interface says. */
  async proxyAdmin(path: string): Promise<string> {
    return (await run('curl', ['-s', '--max-time', '10', '--unix-socket', join(this.paths.folder, 'envoy-admin.sock'), `http://envoy${path}`])).stdout;
  }

  async counters(): Promise<Record<string, number>> {
    return (JSON.parse(await askAgent(this.paths.adminSocket, '/v1/counters')) as { node: Record<string, number> }).node;
  }

  /** Waits until the agent is ready and all pods of the namespace are as `wanted` says. */
  async podsAre(namespace: string, what: string, wanted: (pod: PodStatus) => boolean): Promise<void> {
    let last: unknown;
    const probe = async (): Promise<boolean> => {
      if (this.#agent?.exitCode !== null) throw new Error('the agent ended');
      const now = await this.status().catch((error: unknown) => void (last = error));
      if (!now) return false;
      const pods = now.pods.filter((pod) => pod.namespace === namespace);
      last = { pods, notReady: now.notReady };
      return pods.length > 0 && now.ready && pods.every(wanted);
    };
    try {
      await waitFor(what, probe, { timeoutMs: 240_000, everyMs: 50 });
    } catch (error) {
      throw new Error(`${String(error)}\n${JSON.stringify(last, undefined, 1)}\n${this.log.slice(-4000)}`);
    }
  }

  /** Sets labels `underpass.io/<key>` of a namespace; null removes one. */
  label(namespace: string, labels: Record<string, string | null>): Promise<void> {
    return this.lab.label({ kind: 'Namespace', name: namespace, labels: Object.fromEntries(Object.entries(labels).map(([key, value]) => [`underpass.io/${key}`, value])) });
  }

  load(pod: string, options: { keepAlive?: number; fresh?: number; headers?: Record<string, string>; url?: string } = {}): Load {
    const started = Load.start(this.lab, pod, { url: options.url ?? 'http://nginx/', keepAlive: options.keepAlive ?? 3, fresh: options.fresh ?? 2, headers: options.headers ?? {} });
    this.#loads.push(started);
    return started;
  }

  /** What iptables and nft say in a pod, without counters; of the lab's own table only that it is there. */
  async rulesOf(pod: string): Promise<string> {
    const { stdout, code } = await this.lab.exec(pod, ['sh', '-c', 'iptables-nft-save; ip6tables-nft-save; nft list tables; cat /proc/net/ip_tables_names']);
    assert.equal(code, 0);
    return stdout.replace(/^#.*$/gm, '').replace(/\[\d+:\d+\]/g, '');
  }

  async pod(namespace: string, name: string): Promise<PodStatus> {
    const found = (await this.status()).pods.find((pod) => pod.namespace === namespace && pod.name.startsWith(name));
    return found ?? assert.fail(`no pod ${namespace}/${name}`);
  }
}
