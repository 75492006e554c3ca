/**
 * A node of a real API server's cluster, of which a lab is the kubelet: Pods that the API has run as the lab's, with the same
 * UIDs, and what the lab says of them is their status. The agent is the product's own, told of the API server alone.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { parseAllDocuments, stringify } from 'yaml';
import { askAgent, instancePaths, type AgentStatus } from '../../agent/index.js';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { PodRecord } from '../../common/lab-api.js';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { Lab } from '../../lab/index.js';
import { CLI } from '../agent-harness.js';
import type { KubeCluster } from './cluster.js';

export interface StartingPod {
  uid: string;
  namespace: string;
  name: string;
  cgroup: string;
  netns: string;
}

export class KubeNode {
  readonly instance: string;
  readonly #folder: string;
  readonly #pods = new Map<string, KubeObject>();
  readonly #starting = new Set<StartingPod>();
  #lab!: Lab;
  #agent: ChildProcess | undefined;
  agentLog = '';

  constructor(readonly cluster: KubeCluster, name: string) {
    this.instance = `up-kube-${name}-${process.pid}`;
    this.#folder = mkdtempSync(join(tmpdir(), `${this.instance}-`));
  }

  get name(): string {
    return this.#lab.info().nodes[0]!.name;
  }

  async up(): Promise<void> {
    this.#write();
    this.#lab = await Lab.up({ name: this.instance, sources: [this.#folder], watch: true, purpose: 'test' });
  }

  #write(): void {
    writeFileSync(join(this.#folder, 'pods.yaml'), [...this.#pods.values()].map((pod) => stringify(pod)).join('---\n'));
  }

  /** Makes Pods by the API, runs them, and says by their status that they do. */
  async run(yaml: string): Promise<void> {
    const wanted = parseAllDocuments(yaml).flatMap((document) => (document.toJS() as (KubeObject & { spec: object }) | null) ?? []);
    for (const pod of wanted) {
      const [made] = await this.cluster.apply(stringify({ ...pod, spec: { ...pod.spec, nodeName: this.name } }));
      const { name, namespace, uid } = made!.metadata;
      this.#pods.set(`${namespace}/${name}`, { ...pod, metadata: { ...pod.metadata, namespace: namespace!, uid: uid! } });
    }
    this.#write();
    for (const pod of wanted) await this.#runs(pod.metadata.namespace!, pod.metadata.name);
  }

  async #runs(namespace: string, name: string): Promise<void> {
    const { uid } = this.#pods.get(`${namespace}/${name}`)!.metadata;
    const record = await waitFor(`pod ${namespace}/${name} to run`, () => this.#lab.records(this.name).find((pod) => pod.uid === uid && pod.ready), { timeoutMs: 30_000, everyMs: 20 });
    const ready = { type: 'Ready', status: 'True', lastTransitionTime: new Date().toISOString() };
    await this.cluster.setStatus('v1', 'Pod', { namespace, name }, { phase: 'Running', podIP: record.ips[0], podIPs: record.ips.map((ip) => ({ ip })), conditions: [ready] });
  }

  /**
   * A pod as a container runtime has it when CNI is asked for its network: the API knows of no address of it, its cgroup and
   * network namespace are there, and nothing runs in them.
   */
  async starting(namespace: string, name: string): Promise<StartingPod> {
    const yaml = stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace }, spec: { nodeName: this.name, containers: [{ name: 'curl', image: 'curl' }] } });
    const [made] = await this.cluster.apply(yaml);
    const uid = made!.metadata.uid!;
    const cgroup = join(cgroup2Root(), this.instance, 'burstable', `pod${uid}`);
    mkdirSync(cgroup, { recursive: true });
    const netnsName = `${this.instance}-${name}`;
    await run('ip', ['netns', 'add', netnsName]);
    await run('ip', ['-n', netnsName, 'link', 'set', 'lo', 'up']);
    const pod = { uid, namespace, name, cgroup, netns: `/run/netns/${netnsName}` };
    this.#starting.add(pod);
    return pod;
  }

  /** Its programs, cgroup and network go; the API is not told. */
  async end(pod: StartingPod): Promise<void> {
    this.#starting.delete(pod);
    await removeCgroup(pod.cgroup);
    await run('ip', ['netns', 'del', basename(pod.netns)]);
  }

  /** What the container runtime does: runs the plugin, and waits. */
  async addNetwork({ uid, namespace, name, netns }: StartingPod, address: string): Promise<{ code: number; answer: { ips?: unknown; code?: number; details?: string } }> {
    const { folder } = instancePaths({ instance: this.instance });
    const input = JSON.stringify({ cniVersion: '1.0.0', name: 'net', type: 'underpass-cni', socket: join(folder, 'cni.sock'), labelled: join(folder, 'labelled'), prevResult: { cniVersion: '1.0.0', ips: [{ address: `${address}/24` }] } });
    const env = { CNI_COMMAND: 'ADD', CNI_CONTAINERID: 'c', CNI_NETNS: netns, CNI_IFNAME: 'eth0', CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=${namespace};K8S_POD_NAME=${name};K8S_POD_UID=${uid}` };
    const child = spawn(join(buildDir, 'underpass-cni'), { env, stdio: ['pipe', 'pipe', 'inherit'] });
    let answer = '';
    child.stdout.on('data', (chunk: Buffer) => (answer += chunk.toString()));
    child.stdin.end(input);
    const [code] = (await once(child, 'close')) as [number];
    return { code, answer: JSON.parse(answer) as object };
  }

  /** As kubelet: the pod's end is asked for, its programs end, and the object goes. */
  async remove(namespace: string, name: string): Promise<void> {
    const { uid } = this.#pods.get(`${namespace}/${name}`)!.metadata;
    await this.cluster.client.request('DELETE', `/api/v1/namespaces/${namespace}/pods/${name}`, { body: { gracePeriodSeconds: 0 } });
    this.#pods.delete(`${namespace}/${name}`);
    this.#write();
    await waitFor(`pod ${namespace}/${name} to end`, () => !this.#lab.records(this.name).some((pod) => pod.uid === uid), { timeoutMs: 30_000, everyMs: 20 });
  }

  pod(namespace: string, name: string): PodRecord {
    return this.#lab.pod(namespace, name);
  }

  startAgent(args: readonly string[]): void {
    const child = spawn(process.execPath, [CLI, 'agent', '--instance', this.instance, '--concurrency', '1', '--node', this.name, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (this.agentLog += chunk.toString()));
    this.#agent = child;
  }

  /** @returns its exit code; null when it had to be killed */
  async stopAgent(): Promise<number | null> {
    const child = this.#agent;
    this.#agent = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null;
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), 20_000);
    await ended;
    clearTimeout(timer);
    return child.exitCode;
  }

  async status(): Promise<AgentStatus> {
    return JSON.parse(await askAgent(instancePaths({ instance: this.instance }).adminSocket, '/v1/status')) as AgentStatus;
  }

  /** @returns when the agent has this pod as `mode`, with all that belongs to it in place */
  async settles(namespace: string, name: string, mode: 'node' | 'off'): Promise<void> {
    let last: unknown;
    const { uid } = this.#pods.get(`${namespace}/${name}`)!.metadata;
    await waitFor(`pod ${namespace}/${name} to be ${mode}`, async () => {
      const status = await this.status().catch(() => undefined);
      const pod = status?.pods.find((item) => item.uid === uid);
      last = pod ?? status?.notReady;
      return status?.ready === true && (mode === 'off' ? pod?.mode !== 'node' && pod?.state !== 'enrolled' : pod?.mode === 'node' && pod.state === 'enrolled' && pod.settled);
    }, { timeoutMs: 120_000, everyMs: 50 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${JSON.stringify(last)}\n${this.agentLog.slice(-4000)}`);
    });
  }

  /** @returns status and body, from within a pod */
  async curl(pod: string, url: string, ...args: string[]): Promise<{ status: number; body: string }> {
    const { stdout } = await this.#lab.exec(pod, ['curl', '-s', '--max-time', '30', '-w', '\\n%{http_code}', ...args, url], { timeoutMs: 60_000 });
    const end = stdout.lastIndexOf('\n');
    return { status: Number(stdout.slice(end + 1)), body: stdout.slice(0, end) };
  }

  spawnIn(pod: string, command: readonly string[]): ChildProcess {
    return this.#lab.spawnIn(pod, command);
  }

  async down(): Promise<void> {
    await this.stopAgent();
    await run(process.execPath, [CLI, 'agent', '--cleanup', '--instance', this.instance, '--lab', 'none'], { okCodes: [0, 1], timeoutMs: 60_000 });
    for (const pod of this.#starting) await this.end(pod);
    await removeCgroup(join(cgroup2Root(), this.instance));
    await this.#lab?.down();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
