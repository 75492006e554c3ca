/** Small worlds for tests of the kernel side: pods with a namespace and a cgroup each, joined by a bridge. */
import { mkdirSync, rmdirSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { ClosableStore, type Closable } from '../common/lifecycle.js';
import { buildDir } from '../common/paths.js';
import { run, type RunOptions } from '../common/process.js';
import { cgroup2Root, netnsCookie } from './index.js';

export interface TestPod {
  name: string;
  netns: string;
  netnsCookie: bigint;
  cgroup: string;
  ipv4: string;
  ipv6: string;
}

export interface ProbeServer {
  pod: TestPod;
  cgroup?: string;
  netns?: string;
  address: string;
}

export interface ProbeClient {
  pod: TestPod;
  cgroup?: string;
  /** What it connects to; default: the server's address. */
  address?: string;
}

const PROBE_LIMIT_MS = 120_000;
/** What a test does meanwhile may wait for one thing after the other. */
const HOLD_LIMIT_MS = 600_000;

export const underpassExec = join(buildDir, 'underpass-exec');
export const socketProbe = join(buildDir, 'socket-probe');

/**
 * Pods `a`, `b`, … on one bridge (in a namespace of its own), with IPv4 10.77.0.N and IPv6 fd77::N, and a cgroup for a
 * proxy. Everything is gone after close().
 */
export class TestWorld implements Closable {
  readonly #store = new ClosableStore();
  readonly pods: TestPod[] = [];
  proxyCgroup = '';

  private constructor(readonly name: string) {}

  static async create(area: string, podCount = 2): Promise<TestWorld> {
    const world = new TestWorld(`up-${area}-${process.pid}-${randomBytes(2).toString('hex')}`);
    try {
      await world.#build(podCount);
    } catch (error) {
      await world.close();
      throw error;
    }
    return world;
  }

  pod(index: number): TestPod {
    const pod = this.pods[index];
    if (!pod) throw new RangeError(`pod ${index}: the world has ${this.pods.length}`);
    return pod;
  }

  /** The command line that runs `argv` in a pod's namespace and cgroup. */
  inPod(pod: TestPod, argv: readonly string[], options: readonly string[] = []): string[] {
    return [underpassExec, '--cgroup', pod.cgroup, '--netns', pod.netns, '--die-with-parent', ...options, '--', ...argv];
  }

  /** Runs one case of socket-probe, or of a copy of it, with the server and the client in these pods. */
  probe(which: string, server: ProbeServer, client: ProbeClient, args: readonly string[] = [], program = socketProbe): Promise<ProbeResult> {
    return this.#probe(which, server, client, args, program, { timeoutMs: PROBE_LIMIT_MS });
  }

  /** The same of `churn`, `ping-pong` or `addresses`: the last connection stays open, its exchanges over, until `body` has ended. */
  holding(which: string, server: ProbeServer, client: ProbeClient, args: readonly string[], body: () => Promise<unknown>, program = socketProbe): Promise<ProbeResult> {
    return this.#probe(which, server, client, ['--hold', '--timeout', String(HOLD_LIMIT_MS / 1000), ...args], program, { timeoutMs: HOLD_LIMIT_MS, onOutput: async () => void (await body()) });
  }

  async #probe(which: string, server: ProbeServer, client: ProbeClient, args: readonly string[], program: string, options: RunOptions): Promise<ProbeResult> {
    const { stdout } = await run(program, [
      which,
      '--server-netns', server.netns ?? server.pod.netns, '--server-cgroup', server.cgroup ?? server.pod.cgroup,
      '--client-netns', client.pod.netns, '--client-cgroup', client.cgroup ?? client.pod.cgroup,
      '--listen', server.address, '--connect', client.address ?? server.address,
      ...args,
    ], options);
    return JSON.parse(stdout) as ProbeResult;
  }

  async close(): Promise<void> {
    await this.#store.close();
  }

  async #build(podCount: number): Promise<void> {
    const bridge = await this.#namespace('bridge');
    await this.#ip('-n', bridge, 'link', 'add', 'br0', 'type', 'bridge');
    await this.#ip('-n', bridge, 'link', 'set', 'br0', 'up');
    const group = this.#cgroup(join(cgroup2Root(), this.name));
    this.proxyCgroup = this.#cgroup(join(group, 'proxy'));
    for (let index = 0; index < podCount; index++) {
      const name = String.fromCharCode('a'.charCodeAt(0) + index);
      const netnsName = await this.#namespace(name);
      const ipv4 = `10.77.0.${index + 1}`;
      const ipv6 = `fd77::${index + 1}`;
      await this.#ip('-n', bridge, 'link', 'add', `v${index}`, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', netnsName);
      await this.#ip('-n', bridge, 'link', 'set', `v${index}`, 'master', 'br0', 'up');
      await this.#ip('-n', netnsName, 'link', 'set', 'lo', 'up');
      await this.#ip('-n', netnsName, 'addr', 'add', `${ipv4}/24`, 'dev', 'eth0');
      await this.#ip('-n', netnsName, 'addr', 'add', `${ipv6}/64`, 'dev', 'eth0', 'nodad');
      await this.#ip('-n', netnsName, 'link', 'set', 'eth0', 'up');
      // Addresses that no pod has: reachable for connect(), so that a capture is what decides.
      await this.#ip('-n', netnsName, 'route', 'add', 'default', 'via', '10.77.0.254');
      await this.#ip('-n', netnsName, '-6', 'route', 'add', 'default', 'via', 'fd77::fe');
      const netns = `/run/netns/${netnsName}`;
      this.pods.push({ name, netns, netnsCookie: await netnsCookie(netns), cgroup: this.#cgroup(join(group, name)), ipv4, ipv6 });
    }
  }

  async #namespace(suffix: string): Promise<string> {
    const name = `${this.name}-${suffix}`;
    await this.#ip('netns', 'add', name);
    this.#store.defer(async () => {
      await this.#ip('netns', 'delete', name);
    });
    return name;
  }

  #cgroup(path: string): string {
    mkdirSync(path);
    this.#store.defer(() => removeWhenEmpty(path));
    return path;
  }

  async #ip(...args: string[]): Promise<void> {
    await run('ip', args);
  }
}

export interface ProbeResult {
  case: string;
  ok: boolean;
  eagain?: number;
  other?: number;
  queued?: number;
  per_second?: number;
  p50_ns?: number;
  p99_ns?: number;
  failure?: string;
  [name: string]: unknown;
}

/** The kernel lets go of a cgroup some time after its last process ended. */
async function removeWhenEmpty(path: string): Promise<void> {
  for (let attempt = 0; ; attempt++) {
    try {
      rmdirSync(path);
      return;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'ENOENT') return;
      if (code !== 'EBUSY' || attempt === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
