/** One pod while it lives: namespace, cgroup, files, containers, readiness, and an Envoy of its own where it is to have one. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomUUID } from 'node:crypto';
import { cgroup2Root, removeCgroup } from '../common/cgroup.js';
import { errorMessage } from '../common/errors.js';
import type { ContainerRecord, ExecPlan, PodRecord } from '../common/lab-api.js';
import { run } from '../common/process.js';
import { sleep } from '../common/retry.js';
import type { DualAddress, NodeAddresses } from './addresses.js';
import { findCommand } from './builtin-images.js';
import { ContainerProcess } from './container.js';
import { CLUSTER_DOMAIN } from './dns.js';
import { expand, podEnvironment, type ConfigLookup } from './environment.js';
import { EnvoyProxy, ISTIO_PROXY, type EnvoyProxyOptions } from './envoy-proxy.js';
import { familiesOf, type Family } from './families.js';
import type { ImageTable } from './images.js';
import type { AdmittedPod, ProxyPlan } from './injection.js';
import type { ContainerSpec, DesiredPod } from './kube.js';
import { execHelper, netnsPath, type LabNames } from './names.js';
import type { ExecOptions } from './options.js';
import { endProcessesIn, type LabNetwork } from './network.js';
import { ReadinessCheck } from './readiness.js';
import { ServiceProxy, SERVICE_PROXY_ANNOTATION } from './service-proxy.js';
import { Volumes } from './volumes.js';

const STOP_GRACE_MS = 2_000;
/** `none`: as with a runtime that makes no cgroup v2 directories, the pod's programs stay at the root of the hierarchy. */
const CGROUP_ANNOTATION = 'lab.underpass.io/cgroup';
/** Between the end of a pod's programs and of its network; a kubelet and its container runtime take no less. */
const SANDBOX_END_MS = 300;

export interface PodOptions {
  desired: DesiredPod;
  /** The same after injection. */
  admitted: AdmittedPod;
  nodeName: string;
  node: NodeAddresses;
  nodeFamilies: readonly Family[];
  address: DualAddress & { host: number };
  names: LabNames;
  network: LabNetwork;
  images: ImageTable;
  config: ConfigLookup;
  /** What a pod's Envoy needs to know. */
  proxy: Pick<EnvoyProxyOptions, 'envoy' | 'concurrency' | 'clusterId' | 'discoverySocket' | 'ca' | 'onError'>;
  /** Those of this moment. */
  serviceRules: () => string;
  onChange: () => void;
  onError: (error: unknown) => void;
}

interface Container {
  spec: ContainerSpec;
  /** Absent when it could not be set up: then `problem` says why. */
  process?: ContainerProcess;
  readiness?: ReadinessCheck;
  problem?: string;
  log: string;
  ports: ContainerRecord['ports'];
  env: Record<string, string>;
  cwd?: string;
}

export class Pod {
  readonly uid: string;
  readonly createdAt = new Date().toISOString();
  readonly dir: string;
  readonly cgroup: string;
  readonly hostNetwork: boolean;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  /** Set as soon as its end has begun: it is no endpoint any more. */
  terminating = false;
  /** Its processes have ended. */
  gone = false;
  readonly #options: PodOptions;
  readonly #containers: Container[] = [];
  readonly #volumes: Volumes;
  #volumeProblem = '';
  #netnsName = '';
  #proxy: EnvoyProxy | undefined;
  #serviceProxy: ServiceProxy | undefined;

  constructor(options: PodOptions) {
    this.#options = options;
    const { desired, admitted, names, nodeName } = options;
    this.uid = desired.uid ?? randomUUID();
    this.dir = names.podDir(this.uid);
    this.cgroup = names.podCgroup(nodeName, this.uid);
    this.hostNetwork = desired.spec.hostNetwork === true;
    this.#volumes = new Volumes(join(this.dir, 'volumes'), admitted.spec.volumes ?? [], options.config);
    this.labels = { ...admitted.labels };
    this.annotations = { ...admitted.annotations };
  }

  get desired(): DesiredPod {
    return this.#options.desired;
  }

  get nodeName(): string {
    return this.#options.nodeName;
  }

  get address(): PodOptions['address'] {
    return this.#options.address;
  }

  get ips(): string[] {
    const { ipv4, ipv6 } = this.hostNetwork ? this.#options.node.node : this.#options.address;
    const families = this.hostNetwork ? this.#options.nodeFamilies : this.#families;
    return [...(families.includes('IPv4') ? [ipv4] : []), ...(families.includes('IPv6') && this.#options.network.ipv6 ? [ipv6] : [])];
  }

  get #hasCgroup(): boolean {
    return this.#options.desired.annotations[CGROUP_ANNOTATION] !== 'none';
  }

  get #families(): readonly Family[] {
    return familiesOf(this.#options.desired.annotations);
  }

  get netns(): string {
    return netnsPath(this.hostNetwork ? this.#options.names.nodeNetns(this.nodeName) : this.#netnsName);
  }

  get hasSidecar(): boolean {
    return this.#proxy?.role === 'sidecar';
  }

  get isGateway(): boolean {
    return this.#proxy !== undefined && this.#proxy.role !== 'sidecar';
  }

  get proxy(): EnvoyProxy | undefined {
    return this.#proxy;
  }

  get key(): string {
    return `${this.desired.namespace}/${this.desired.name}`;
  }

  async start(): Promise<void> {
    const { desired, network, nodeName, address, names } = this.#options;
    mkdirSync(join(this.dir, 'logs'), { recursive: true });
    mkdirSync(join(this.cgroup, 'app'), { recursive: true });
    if (!this.hostNetwork) {
      this.#netnsName = names.podNetns(desired.namespace, desired.name);
      await network.addPod(nodeName, desired.namespace, desired.name, address, this.#families);
    }
    this.#writeFiles();
    this.refreshVolumes();
    if (!this.hostNetwork && this.annotations[SERVICE_PROXY_ANNOTATION] !== 'none') {
      this.#serviceProxy = new ServiceProxy(this.netns, this.#options.onError);
      // As on a node, whose rules are there before the pod: its programs may call a service first of all.
      await this.setServiceRules(this.#options.serviceRules());
    }
    const { spec: admittedSpec, proxy } = this.#options.admitted;
    if (proxy) await this.#startProxy(proxy);
    const own = admittedSpec.containers.filter((spec) => spec !== proxy?.container);
    for (const spec of own) this.#containers.push(this.#startContainer(spec));
    this.#options.onChange();
  }

  /** Brings the files of its volumes to what ConfigMaps and Secrets say now. */
  refreshVolumes(): void {
    try {
      if (this.#volumes.refresh()) this.#proxy?.filesChanged();
      this.#volumeProblem = '';
    } catch (error) {
      if (errorMessage(error) !== this.#volumeProblem) this.#options.onError(error);
      this.#volumeProblem = errorMessage(error);
    }
  }

  async #startProxy({ container, ...plan }: ProxyPlan): Promise<void> {
    mkdirSync(join(this.cgroup, ISTIO_PROXY), { recursive: true });
    this.#proxy = new EnvoyProxy({
      ...this.#options.proxy,
      ...plan,
      container,
      env: this.#environment(container),
      pod: this,
      dir: this.dir,
      cgroup: join(this.cgroup, ISTIO_PROXY),
      mounts: this.#mountArguments(container),
      readFile: (path) => this.#volumes.read(container, path),
      onChange: this.#options.onChange,
    });
    await this.#proxy.start();
  }

  /** Rules that send cluster IPs to endpoints; nothing for a pod that wants none. */
  async setServiceRules(rules: string): Promise<void> {
    if (!this.gone) await this.#serviceProxy?.set(rules);
  }

  #writeFiles(): void {
    const { desired, node } = this.#options;
    const search = [`${desired.namespace}.svc.${CLUSTER_DOMAIN}`, `svc.${CLUSTER_DOMAIN}`, CLUSTER_DOMAIN];
    writeFileSync(
      join(this.dir, 'resolv.conf'),
      `search ${search.join(' ')}\nnameserver ${this.#families.includes('IPv4') ? node.bridge.ipv4 : node.bridge.ipv6}\noptions ndots:5 timeout:2\n`,
    );
    const hosts = [
      '127.0.0.1 localhost',
      '::1 localhost ip6-localhost ip6-loopback',
      ...this.ips.map((ip) => `${ip} ${desired.name}`),
    ];
    writeFileSync(join(this.dir, 'hosts'), hosts.join('\n') + '\n');
  }

  #startContainer(spec: ContainerSpec): Container {
    const { desired, images, onChange } = this.#options;
    const log = join(this.dir, 'logs', `${spec.name}.log`);
    const container: Container = { spec, log, ports: spec.ports ?? [], env: {} };
    try {
      container.env = this.#environment(spec);
      const dir = join(this.dir, spec.name);
      mkdirSync(dir, { recursive: true });
      const image = spec.image ? images.find(spec.image) : undefined;
      const context = {
        podName: desired.name,
        namespace: desired.namespace,
        labels: this.labels,
        ports: container.ports,
        env: container.env,
        dir,
        ipv6: this.#options.network.ipv6 && this.#families.includes('IPv6'),
      };
      const usual = spec.command ? image?.(context) : images.require(spec.image ?? '')(context);
      const entrypoint = spec.command ?? usual?.entrypoint ?? [];
      const args = spec.args ?? (spec.command ? [] : (usual?.args ?? []));
      const ports = spec.ports?.length ? spec.ports : (usual?.ports ?? []).map((containerPort) => ({ containerPort }));
      if (!spec.command) container.ports = ports;
      this.#volumes.mounts(spec);
      const left = Object.fromEntries(this.#volumes.leftOut);
      container.env = { ...(Object.keys(left).length ? { LAB_VOLUMES: JSON.stringify(left) } : {}), ...usual?.env, ...container.env };
      const cwd = spec.workingDir ?? usual?.cwd;
      if (cwd) container.cwd = cwd;
      const argv = [...entrypoint, ...args].map((word) => expand(word, container.env));
      if (argv[0] !== undefined) argv[0] = findCommand(argv[0]);
      container.process = new ContainerProcess({
        name: spec.name,
        plan: this.#plan(container, ['--die-with-parent', '--setsid']),
        argv,
        logPath: log,
        restartPolicy: desired.spec.restartPolicy ?? 'Always',
        ...(usual?.stopSignal && !spec.command ? { stopSignal: usual.stopSignal } : {}),
        onChange,
      });
      const tcpPorts = container.ports.filter((port) => (port.protocol ?? 'TCP') === 'TCP').map((port) => port.containerPort);
      const target = {
        container: { ...spec, ports: container.ports },
        netns: this.hasSidecar ? this.netns : netnsPath(this.#options.names.nodeNetns(this.nodeName)),
        address: this.ips[0] as string,
        ports: tcpPorts,
        pid: () => container.process?.pid,
        exec: async (probe: readonly string[], timeoutMs: number) =>
          (await this.run(probe, { container: spec.name, timeoutMs })).code === 0,
      };
      container.readiness = new ReadinessCheck(target, onChange);
    } catch (error) {
      container.problem = errorMessage(error);
      this.#options.onError(error);
    }
    return container;
  }

  #environment(spec: ContainerSpec): Record<string, string> {
    const { desired, names, node, config } = this.#options;
    const { labels, annotations, uid, ips, nodeName } = this;
    const { name, namespace } = desired;
    const facts = { name, namespace, uid, nodeName, serviceAccount: desired.spec.serviceAccountName ?? 'default', ips, hostIp: node.node.ipv4, labels, annotations };
    return podEnvironment(spec, facts, names.binDir, config);
  }

  /** The pod's own files in place of this machine's. */
  #mountArguments(container: ContainerSpec): string[] {
    const { overlays, binds } = this.#volumes.mounts(container);
    const own = [`${join(this.dir, 'resolv.conf')}:/etc/resolv.conf`, `${join(this.dir, 'hosts')}:/etc/hosts`];
    const options = [...overlays.flatMap((overlay) => ['--overlay', overlay]), ...[...own, ...binds].flatMap((bind) => ['--bind', bind])];
    return ['--new-mount-ns', ...options];
  }

  #plan(container: Container, options: readonly string[]): ExecPlan {
    const args = [
      '--cgroup',
      this.#hasCgroup ? join(this.cgroup, 'app') : cgroup2Root(),
      '--netns',
      this.netns,
      ...this.#mountArguments(container.spec),
    ];
    args.push('--hostname', this.desired.name, ...options, '--');
    return { file: execHelper, args, env: container.env, ...(container.cwd ? { cwd: container.cwd } : {}) };
  }

  /** How to start another program in a container; the first one unless named. */
  execPlan(name?: string, options: readonly string[] = []): ExecPlan {
    const container = name === undefined ? this.#containers[0] : this.#containers.find(({ spec }) => spec.name === name);
    if (!container) {
      const known = this.#containers.map(({ spec }) => spec.name).join(', ');
      throw new Error(`pod ${this.key} has no container ${name ?? ''}; it has ${known || 'none running'}`);
    }
    return this.#plan(container, options);
  }

  async run(
    argv: readonly string[],
    options: ExecOptions = {},
  ): Promise<{ code: number; stdout: string; stderr: string }> {
    const plan = this.execPlan(options.container, [
      '--die-with-parent',
      ...(options.cpu === undefined ? [] : ['--cpu', String(options.cpu)]),
    ]);
    const anyCode = Array.from({ length: 256 }, (_, code) => code);
    const [program, ...rest] = argv;
    return run(plan.file, [...plan.args, ...(program === undefined ? [] : [findCommand(program)]), ...rest], {
      env: plan.env,
      okCodes: anyCode,
      ...(plan.cwd ? { cwd: plan.cwd } : {}),
      ...(options.input === undefined ? {} : { input: options.input }),
      ...(options.timeoutMs === undefined ? {} : { timeoutMs: options.timeoutMs }),
      ...(options.signal ? { signal: options.signal } : {}),
      ...(options.onOutput ? { onOutput: options.onOutput } : {}),
    });
  }

  /** Whether its own containers are ready, whatever its Envoy is waiting for. */
  get appReady(): boolean {
    if (this.#containers.length === 0) return this.#proxy?.running === true;
    return this.#containers.every(({ readiness }) => readiness?.ready === true);
  }

  get ready(): boolean {
    return !this.terminating && this.appReady && (this.#proxy?.ready ?? true);
  }

  get phase(): PodRecord['phase'] {
    const ends = this.#containers.map((container) => container.process?.ended);
    if (ends.length > 0 && ends.every((end) => end)) return ends.every((end) => end?.code === 0) ? 'Succeeded' : 'Failed';
    const onlyProxy = this.#containers.length === 0 && this.#proxy?.started === true;
    return onlyProxy || this.#containers.some((container) => container.process) ? 'Running' : 'Pending';
  }

  /** Why it is not as it should be, one line per container. */
  get problems(): string[] {
    const found: string[] = [...this.#volumes.leftOut.keys()].map((path) => `the volume at ${path} is left out: there is no place for it on this machine`);
    if (this.#volumeProblem) found.push(this.#volumeProblem);
    for (const { spec, problem, process: program } of this.#containers) {
      if (problem) found.push(`${spec.name}: ${problem}`);
      else if (program && program.pid === undefined && !program.ended)
        found.push(`${spec.name}: ${program.lastExit}, will be started again`);
    }
    if (this.#proxy && !this.#proxy.ready) found.push(`${this.#proxy.name}: ${this.#proxy.waitingFor}`);
    return found;
  }

  containerRecords(): ContainerRecord[] {
    const records: ContainerRecord[] = this.#containers.map(({ spec, process: program, readiness, log, ports }) => ({
      name: spec.name,
      image: spec.image ?? '',
      ports,
      ...(program?.pid === undefined ? {} : { pid: program.pid }),
      ready: readiness?.ready ?? false,
      restarts: program?.restarts ?? 0,
      log,
    }));
    if (this.#proxy) records.push(this.#proxy.record());
    return records;
  }

  record(namespaceLabels: Record<string, string>): PodRecord {
    const { desired, nodeName } = this.#options;
    return {
      uid: this.uid,
      name: desired.name,
      namespace: desired.namespace,
      labels: this.labels,
      annotations: this.annotations,
      namespaceLabels,
      nodeName,
      serviceAccount: desired.spec.serviceAccountName ?? 'default',
      ips: this.ips,
      netns: this.netns,
      cgroup: this.#hasCgroup ? this.cgroup : cgroup2Root(),
      hostNetwork: this.hostNetwork,
      phase: this.phase,
      ready: this.ready,
      terminating: this.terminating,
      hasSidecar: this.hasSidecar,
      ...(this.isGateway ? { isGateway: true } : {}),
      containers: this.containerRecords(),
    };
  }

  /** @param options.now no time for programs to end by themselves: the whole lab ends */
  async stop(options: { now?: boolean } = {}): Promise<void> {
    this.terminating = true;
    const { desired, network } = this.#options;
    const graceMs = Math.min(STOP_GRACE_MS, (desired.spec.terminationGracePeriodSeconds ?? 30) * 1000);
    for (const { readiness } of this.#containers) readiness?.close();
    if (!options.now) await Promise.all(this.#containers.map(({ process: program }) => program?.stop(graceMs)));
    for (const { process: program } of this.#containers) program?.close();
    this.#proxy?.close();
    await removeCgroup(this.cgroup);
    if (!this.#hasCgroup && this.#netnsName) endProcessesIn([this.#netnsName]);
    this.gone = true;
    this.#options.onChange();
    // Rules that are being written go into a namespace that is still there.
    await this.#serviceProxy?.settled();
    if (!options.now) await sleep(SANDBOX_END_MS);
    if (this.#netnsName) await network.removePod(this.nodeName, this.#netnsName);
    rmSync(this.dir, { recursive: true, force: true });
  }
}
