/**
 * A lab for real programs: the same pods in the namespaces `l4` (accelerated after probation) and `off`, all of mode
 * `node` on one node, so that what one sends to another's own address goes from pod to pod. Each test does the same on
 * both sides, and what was sent, received and stored must be equal in every byte.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { askAgent, type PodProbation } from '../../agent/index.js';
import { cgroupProcesses } from '../../common/cgroup.js';
import type { PodRecord } from '../../common/lab-api.js';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { NodeUnderTest, enrolled } from '../agent-harness.js';
import type { Received } from './exchange.js';

export const SIDES = ['l4', 'off'] as const;
export type Acceleration = (typeof SIDES)[number];

/** `cleared` ones have the label that says that they don't splice. */
const PODS = ['server', 'client', 'client-2', 'client-3', 'proxy', 'server-cleared', 'client-cleared', 'proxy-cleared'] as const;
export type PodNamed = (typeof PODS)[number];

const PAYLOAD_BYTES = 3_000_000;
const PROGRAM_TIMEOUT_MS = 60_000;
/** What a program says when it fails, for the test's message. */
const MAX_SAID = 2_000;

const unpacked = join(projectRoot, 'build', 'programs');
const FOLDERS = ['usr/bin', 'usr/sbin', 'bin', 'sbin', 'usr/lib/postgresql/15/bin', 'usr/lib/openssh', 'go'];
/** Of what it brought. */
export const libraries = join(unpacked, 'usr', 'lib', 'x86_64-linux-gnu');
export const pythonModules = join(unpacked, 'usr', 'lib', 'python3', 'dist-packages');

/** A program that scripts/setup-programs.sh brought, or else one of this machine. */
export function program(name: string): string {
  const brought = FOLDERS.map((folder) => join(unpacked, folder, name));
  const own = (process.env['PATH'] ?? '').split(':').map((folder) => join(folder, name));
  return [...brought, ...own].find((path) => existsSync(path)) ?? assert.fail(`there is no ${name}: \`make test-programs\` brings it`);
}

const namespaceYaml = (acceleration: Acceleration): string => `apiVersion: v1
kind: Namespace
metadata: {name: ${acceleration === 'l4' ? 'l4' : '"off"'}, labels: {underpass.io/mode: node, underpass.io/acceleration: "${acceleration}"}}
---
${PODS.map((name) => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: "${acceleration}"${name.endsWith('-cleared') ? ', labels: {underpass.io/splice: "false"}' : ''}}
spec: {containers: [{name: programs, image: sleep, env: [{name: LD_LIBRARY_PATH, value: ${libraries}}]}]}
`).join('---\n')}`;

export class ProgramsWorld {
  readonly node: NodeUnderTest;
  readonly folder = mkdtempSync(join(tmpdir(), 'up-programs-'));
  /** Every program sends this, or its beginning. */
  readonly payload = randomBytes(PAYLOAD_BYTES);
  readonly payloadFile = join(this.folder, 'payload');
  readonly #sides: Side[] = [];

  constructor(area: string) {
    this.node = new NodeUnderTest(`up-${area}-${process.pid}`);
  }

  async up(): Promise<void> {
    writeFileSync(this.payloadFile, this.payload, { mode: 0o644 });
    // Programs that refuse to be root run as another user.
    chmodSync(this.folder, 0o755);
    await this.node.up([], SIDES.map(namespaceYaml).join('---\n'));
    this.node.startAgent();
    for (const acceleration of SIDES) {
      await this.node.podsAre(acceleration, `the pods of ${acceleration} to be enrolled`, enrolled('bpf'));
      this.#sides.push(new Side(this, acceleration));
    }
    const { acceleration } = await this.node.status();
    assert.equal(acceleration.on, true, acceleration.reason);
  }

  async down(): Promise<void> {
    for (const side of this.#sides) await side.close();
    await this.node.down();
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Does the same with and without acceleration. @returns what both came to, which was equal */
  async both<T>(body: (side: Side) => Promise<T>): Promise<T> {
    const results: T[] = [];
    for (const side of this.#sides) results.push(await body(side));
    assert.deepEqual(results[0], results[1], 'with acceleration, and without');
    return results[0] as T;
  }
}

export interface RunOptions {
  /** Files for its input and output; without the latter its output is returned. */
  input?: string;
  output?: string;
  env?: Record<string, string>;
}

export class Side {
  readonly folder: string;
  readonly #world: ProgramsWorld;
  readonly #children = new Set<ChildProcess>();

  constructor(world: ProgramsWorld, readonly acceleration: Acceleration) {
    this.#world = world;
    this.folder = join(world.folder, acceleration);
    mkdirSync(this.folder);
    chmodSync(this.folder, 0o777);
  }

  get accelerated(): boolean {
    return this.acceleration === 'l4';
  }

  async close(): Promise<void> {
    await Promise.all([...this.#children].map((child) => end(child)));
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  write(name: string, content: string | Uint8Array, mode = 0o644): string {
    writeFileSync(this.path(name), content, { mode });
    return this.path(name);
  }

  address(pod: PodNamed): string {
    return this.#record(pod).ips[0] ?? assert.fail(`${pod} has no address`);
  }

  #record(pod: PodNamed): PodRecord {
    return this.#world.node.lab.records().find(({ name, namespace }) => name === pod && namespace === this.acceleration) ?? assert.fail(`no pod ${pod}`);
  }

  /** Starts a server and waits until it listens. */
  async start(pod: PodNamed, argv: readonly string[], port: number, env: Record<string, string> = {}): Promise<ChildProcess> {
    const child = this.#world.node.lab.spawnIn(this.#in(pod), argv, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#children.add(child);
    let said = '';
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(-MAX_SAID)));
    try {
      await waitFor(`${argv[0]} to listen on ${port}`, () => {
        if (child.exitCode !== null) throw new Error('it ended');
        return listens(child.pid ?? 0, port);
      }, { timeoutMs: 120_000, everyMs: 20 });
    } catch (error) {
      throw new Error(`${String(error)}: ${said}`);
    }
    return child;
  }

  /** Whether something in the pod listens. */
  listens(pod: PodNamed, port: number): boolean {
    const [pid] = cgroupProcesses(this.#record(pod).cgroup);
    return listens(pid ?? 0, port);
  }

  async listening(pod: PodNamed, port: number): Promise<void> {
    await waitFor(`port ${port} of ${pod}`, () => this.listens(pod, port), { timeoutMs: 120_000, everyMs: 10 });
  }

  async stop(child: ChildProcess): Promise<void> {
    this.#children.delete(child);
    await end(child);
  }

  /** Runs a program to its end. @throws Error with what it said when it fails, or takes a minute */
  async run(pod: PodNamed, argv: readonly string[], options: RunOptions = {}): Promise<string> {
    const files: number[] = [];
    const opened = (path: string | undefined, flags: string): number | undefined => {
      if (path === undefined) return undefined;
      const fd = openSync(path, flags, 0o666);
      files.push(fd);
      return fd;
    };
    try {
      const child = this.#world.node.lab.spawnIn(this.#in(pod), argv, {
        env: options.env ?? {},
        stdio: [opened(options.input, 'r') ?? 'ignore', opened(options.output, 'w') ?? 'pipe', 'pipe'],
      });
      return await this.#finish(child, argv);
    } finally {
      for (const fd of files) closeSync(fd);
    }
  }

  async #finish(child: ChildProcess, argv: readonly string[]): Promise<string> {
    this.#children.add(child);
    let [out, err] = ['', ''];
    child.stdout?.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.stderr?.on('data', (chunk: Buffer) => (err = (err + chunk.toString()).slice(-MAX_SAID)));
    const timer = setTimeout(() => child.kill('SIGKILL'), PROGRAM_TIMEOUT_MS);
    const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
    clearTimeout(timer);
    this.#children.delete(child);
    if (code !== 0) throw new Error(`${argv.join(' ')} (${this.acceleration}): ${signal ?? `exit ${code}`}: ${err}`);
    return out;
  }

  /** A client of exchange.ts; what it received, by size. */
  async exchange(pod: PodNamed, client: readonly string[], at: { address: string; port: number }, sizes: readonly number[], count: number, holdS = 0): Promise<Received> {
    const { payloadFile } = this.#world;
    return JSON.parse(await this.run(pod, [...client, 'client', at.address, String(at.port), payloadFile, String(count), String(holdS), ...sizes.map(String)])) as Received;
  }

  /** Does `again` until probation has come to a verdict on what `wanted` finds; never where nothing is accelerated. */
  async untilDecided(what: string, wanted: (entry: PodProbation) => boolean, again: () => Promise<unknown>): Promise<PodProbation['verdict'] | undefined> {
    if (!this.accelerated) return undefined;
    let last: PodProbation | undefined;
    for (let round = 0; round < MAX_ROUNDS; round++) {
      last = (await this.probation()).find(wanted);
      if (last && last.verdict !== 'probation') return last.verdict;
      await again();
    }
    return assert.fail(`${what} is not decided after ${MAX_ROUNDS} rounds: ${JSON.stringify(last ?? (await this.probation()))}`);
  }

  async probation(): Promise<PodProbation[]> {
    return (await this.#world.node.status()).probation.filter(({ namespace }) => namespace === this.acceleration);
  }

  async listener(pod: PodNamed, port: number): Promise<PodProbation | undefined> {
    return (await this.probation()).find((entry) => entry.kind === 'listener' && entry.pod === pod && entry.port === port);
  }

  /** By the last part of its executable's name. */
  async client(pod: PodNamed, name: string): Promise<PodProbation | undefined> {
    return (await this.probation()).find(isClient(pod, name));
  }

  /** Connections of the pod that were short-circuited while `body` ran. */
  async shortCircuited(pod: PodNamed, body: () => Promise<unknown>): Promise<number> {
    const before = await this.#connections(pod);
    await body();
    return (await this.#connections(pod)) - before;
  }

  async #connections(pod: PodNamed): Promise<number> {
    const { pods } = JSON.parse(await askAgent(this.#world.node.paths.adminSocket, '/v1/counters')) as { pods: { namespace: string; pod: string; connections_short_circuited: number }[] };
    return pods.find((entry) => entry.namespace === this.acceleration && entry.pod === pod)?.connections_short_circuited ?? assert.fail(`no counters of ${pod}`);
  }

  #in(pod: PodNamed): string {
    return `${this.acceleration}/${pod}`;
  }
}

const MAX_ROUNDS = 40;

export function isClient(pod: PodNamed, name: string): (entry: PodProbation) => boolean {
  return (entry) => entry.kind === 'client' && entry.pod === pod && entry.program?.replace(/^.*\//, '') === name;
}

export function isListener(pod: PodNamed, port: number): (entry: PodProbation) => boolean {
  return (entry) => entry.kind === 'listener' && entry.pod === pod && entry.port === port;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 3_000);
  await ended;
  clearTimeout(timer);
}

function listens(pid: number, port: number): boolean {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, '0')} `;
  return ['tcp', 'tcp6'].some((table) => {
    try {
      return readFileSync(`/proc/${pid}/net/${table}`, 'utf8').split('\n').some((line) => line.includes(wanted) && line.trim().split(/\s+/)[3] === '0A');
    } catch {
      return false;
    }
  });
}
