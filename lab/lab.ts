/** The lab: nodes and pods on this machine, kept as the user's YAML says, for as long as this object is up. */
import { existsSync, mkdirSync } from 'node:fs';
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { CertificateAuthority, type CaMaterial } from '../common/identity/ca.js';
import { DEFAULT_LAB_NAME, type ExecPlan, type LabInfo, type LabelPatch, type NodeRecord, type PodRecord } from '../common/lab-api.js';
import { ClosableStore } from '../common/lifecycle.js';
import { defaultRunDir } from '../common/paths.js';
import type { RunResult } from '../common/process.js';
import { sleep, waitFor } from '../common/retry.js';
import { IP_ANNOTATION, PodAddresses, type DualAddress, type NodeAddresses } from './addresses.js';
import { LabApi, type LabBackend } from './api.js';
import { writeCommands } from './builtin-images.js';
import { removeLeftovers } from './clean.js';
import { coalesce } from './coalesce.js';
import { applyWritten, Cluster, patchLabels } from './cluster.js';
import { DnsServer } from './dns.js';
import { LEFT_OUT_KINDS, leftOut } from './environment.js';
import { ImageTable } from './images.js';
import { admit, labInjection } from './injection.js';
import { keyOf, type DesiredPod, type KubeObject } from './kube.js';
import { LabLock } from './lock.js';
import { DEFAULT_DISCOVERY, LabNames, netnsPath } from './names.js';
import { LabNetwork } from './network.js';
import { BOTH_FAMILIES, type Family } from './families.js';
import { ObjectsDir } from './objects.js';
import type { ExecOptions, LabOptions, PodReference } from './options.js';
import { placePod } from './placement.js';
import { Pod } from './pod.js';
import { preflight } from './preflight.js';
import { parseAddress, Relay } from './relay.js';
import { nodeRules, ServiceProxy, serviceRules } from './service-proxy.js';
import { parseObjects, Sources } from './sources.js';

/** Istio's default for a sidecar. */
const DEFAULT_SIDECAR_CONCURRENCY = 2;
const DEFAULT_CLUSTER_ID = 'Kubernetes';
/** Pods that start at the same time. */
const START_PARALLEL = 4;
const PUBLISH_DELAY_MS = 10;
const WRITE_RETRY_MS = 1_000;
/** For the last answer to watchers to leave this process. */
const FAREWELL_MS = 10;
/** How long the pods of a workload's former version stay when the new ones do not become ready. */
const ROLLOUT_TIMEOUT_MS = 30_000;

interface LabNode {
  name: string;
  addresses: NodeAddresses;
  pods: PodAddresses;
  dns: DnsServer;
  /** Rules that send load balancers' addresses to pods, for other clusters. */
  balancers: ServiceProxy;
}

export class Lab implements LabBackend {
  readonly names: LabNames;
  readonly images = new ImageTable();
  readonly cluster: Cluster;
  readonly #options: LabOptions;
  readonly #sources: Sources;
  readonly #ipv6: boolean;
  readonly #closables = new ClosableStore();
  readonly #nodes = new Map<string, LabNode>();
  readonly #pods = new Map<string, Pod>();
  readonly #replaced = new Set<Pod>();
  readonly #pending = new Set<Promise<void>>();
  readonly #listeners = new Set<() => void>();
  readonly #said = new Set<string>();
  readonly #applied = new Map<string, KubeObject>();
  #lock!: LabLock;
  readonly #network: LabNetwork;
  #ca!: CertificateAuthority;
  #objects!: ObjectsDir;
  #publishTimer: NodeJS.Timeout | undefined;
  #balances = false;
  #writeProblem = '';
  #closing: Promise<void> | undefined;

  private constructor(options: LabOptions) {
    this.#options = options;
    this.names = new LabNames(options.name ?? DEFAULT_LAB_NAME, options.runDir ?? defaultRunDir);
    this.#ipv6 = options.ipv6 ?? existsSync('/proc/sys/net/ipv6');
    const peers = (options.peers ?? []).map((peer) => peer.#network);
    this.#network = new LabNetwork(this.names, this.#ipv6, (netns) => this.#lock.recordNetns(netns), { peers, isolated: options.isolated === true });
    this.cluster = new Cluster(this.#ipv6, this.#network.index);
    this.#sources = new Sources(options.sources);
  }

  /**
   * Starts the lab; resolves when every pod was started (see `whenReady` for their readiness).
   * @throws UnderpassError for bad YAML (`file:line:column`), before anything was made, and `UNDERPASS_LAB_HELD` naming the holder
   */
  static async up(options: LabOptions): Promise<Lab> {
    const lab = new Lab(options);
    preflight(`starting lab ${lab.names.lab}`);
    const { errors } = lab.#sources.refresh();
    if (errors.length > 0) throw new UnderpassError('UNDERPASS_LAB_YAML', `reading the lab's YAML:\n${errors.join('\n')}`);
    lab.#lock = await LabLock.acquire(lab.names, options.purpose ?? 'lab up', async () => {
      lab.#progress('removing what an earlier lab of this name left behind');
      await removeLeftovers(lab.names, { keepHolder: true });
    });
    try {
      await lab.#start();
    } catch (error) {
      await lab.down();
      throw error;
    }
    return lab;
  }

  async #start(): Promise<void> {
    const { names } = this;
    mkdirSync(names.cgroup, { recursive: true });
    writeCommands(names.binDir);
    this.#objects = new ObjectsDir(names.objectsDir);
    const [first] = this.#options.peers ?? [];
    this.#ca = this.#options.ca ?? (first ? first.#ca : await CertificateAuthority.create());
    this.#closables.add(await Relay.listen(names.discoverySocket, parseAddress(this.#options.discovery ?? DEFAULT_DISCOVERY)));
    await this.#network.start();
    this.#loadObjects();
    await this.#addNodes();
    this.#closables.add(await LabApi.listen(this, names.socket));
    this.#closables.add(this.#sources);
    if (this.#options.watch !== false) this.#sources.watch(() => this.#sourcesChanged());
    await this.reconcile();
    this.#progress(`${this.#pods.size} pods on ${this.#nodes.size} ${this.#nodes.size === 1 ? 'node' : 'nodes'} started`);
  }

  #progress(line: string): void {
    this.#options.onProgress?.(line);
  }

  #problem(error: unknown): void {
    if (this.#options.onProblem) this.#options.onProblem(error);
    else this.#progress(`problem: ${errorMessage(error)}`);
  }

  #sayOnce(line: string): void {
    if (this.#said.has(line)) return;
    this.#said.add(line);
    this.#progress(line);
  }

  #loadObjects(): void {
    this.images.setUserImages(this.#sources.images());
    const objects = [...new Map([...this.#sources.objects(), ...this.#applied]).values()];
    this.cluster.setObjects(objects);
    for (const pod of this.#pods.values()) pod.refreshVolumes();
    for (const { kind, metadata } of objects.filter(({ kind }) => LEFT_OUT_KINDS.has(kind))) {
      this.#sayOnce(`${kind} ${keyOf(metadata)} is left out: the lab starts Pods, Deployments, StatefulSets and DaemonSets`);
    }
    for (const { owner, spec } of this.cluster.desiredPods(['any'])) {
      for (const part of leftOut(spec))
        this.#sayOnce(`${owner}: ${part} are left out: a lab's programs are this machine's`);
    }
  }

  #sourcesChanged(): void {
    const { changed, errors } = this.#sources.refresh();
    if (errors.length > 0)
      this.#problem(new UnderpassError('UNDERPASS_LAB_YAML', `${errors.join('\n')}\nwhat was good last stays in force`));
    if (!changed) return;
    this.#loadObjects();
    void this.reconcile().catch((error: unknown) => this.#problem(error));
  }

  async #addNodes(): Promise<void> {
    const wanted = new Set([...this.#nodes.keys(), ...this.cluster.namedNodes()]);
    const count = Math.max(1, this.#options.nodes ?? 1);
    for (let number = 1; wanted.size < count; number++) wanted.add(`node-${number}`);
    for (const name of wanted) {
      if (this.#nodes.has(name)) continue;
      const addresses = this.#network.nodeAddresses();
      const families = this.cluster.nodeFamilies(name);
      await this.#network.addNode(name, addresses, families);
      const dns = this.#closables.add(
        await DnsServer.listen(netnsPath(this.names.nodeNetns(name)), this.#present(addresses.bridge, families)),
      );
      const balancers = new ServiceProxy(netnsPath(this.names.nodeNetns(name)), (error) => this.#problem(error));
      this.#nodes.set(name, { name, addresses, pods: new PodAddresses(addresses), dns, balancers });
      this.#progress(`node ${name}: pods ${this.#present(addresses.podCidrs).join(', ')}`);
    }
  }

  #present({ ipv4, ipv6 }: DualAddress, families: readonly Family[] = BOTH_FAMILIES): string[] {
    return [...(families.includes('IPv4') ? [ipv4] : []), ...(families.includes('IPv6') && this.#ipv6 ? [ipv6] : [])];
  }

  /** Brings the pods to what the objects say; resolves when all that is new was started and all that is old was ended. */
  readonly reconcile = coalesce(() => this.#reconcileOnce());

  async #reconcileOnce(): Promise<void> {
    if (this.#closing) return;
    await this.#addNodes();
    const desired = new Map(this.cluster.desiredPods([...this.#nodes.keys()]).map((pod) => [keyOf(pod), pod]));
    const gone: Pod[] = [];
    for (const [key, pod] of this.#pods) {
      const wanted = desired.get(key);
      if (wanted && wanted.specHash === pod.desired.specHash && wanted.owner === pod.desired.owner) this.#update(pod, wanted);
      else if (wanted)
        await this.#end(pod); // the name is needed again
      else if (!this.#replaced.has(pod)) gone.push(pod);
    }
    const fresh = [...desired.values()].filter((pod) => !this.#pods.has(keyOf(pod)));
    await inParallel(fresh, START_PARALLEL, (pod) => this.#startPod(pod));
    const replacedOwners = new Set([...desired.values()].map(({ owner }) => owner));
    const [replaced, dropped] = [
      gone.filter((pod) => replacedOwners.has(pod.desired.owner)),
      gone.filter((pod) => !replacedOwners.has(pod.desired.owner)),
    ];
    for (const pod of replaced) this.#replace(pod);
    await Promise.all(dropped.map((pod) => this.#end(pod)));
    await this.#publish();
  }

  #update(pod: Pod, wanted: DesiredPod): void {
    const target = { written: pod.desired.labels, labels: pod.labels };
    applyWritten(target, wanted.labels);
    pod.desired.labels = { ...wanted.labels };
    for (const [key, value] of Object.entries(wanted.annotations)) pod.annotations[key] = value;
  }

  async #startPod(desired: DesiredPod): Promise<void> {
    if (this.#closing) return;
    const key = keyOf(desired);
    let pod: Pod | undefined;
    try {
      const name = placePod(desired, [...this.#nodes.keys()], [...this.#pods.values()], this.cluster);
      const node = this.#nodes.get(name) as LabNode;
      const clusterId = this.#clusterId;
      const admitted = admit(desired, this.cluster.namespaceLabels(desired.namespace), labInjection(clusterId));
      pod = new Pod({
        desired: { ...desired, labels: { ...desired.labels } },
        admitted,
        nodeName: node.name,
        node: node.addresses,
        nodeFamilies: this.cluster.nodeFamilies(name),
        address: node.pods.allocate(desired.annotations[IP_ANNOTATION]),
        names: this.names,
        network: this.#network,
        images: this.images,
        config: (kind, name) => this.cluster.config(kind, desired.namespace, name),
        proxy: {
          ...(this.#options.envoy === undefined ? {} : { envoy: this.#options.envoy }),
          concurrency: this.#options.sidecarConcurrency ?? DEFAULT_SIDECAR_CONCURRENCY,
          clusterId,
          discoverySocket: this.names.discoverySocket,
          ca: this.#ca,
          onError: (error: unknown) => this.#problem(new Error(`pod ${key}: ${errorMessage(error)}`)),
        },
        serviceRules: () => serviceRules(this.cluster.virtualAddresses(this.#sortedPods())),
        onChange: () => this.#publishSoon(),
        onError: (error) =>
          this.#problem(error instanceof UnderpassError ? error : new Error(`pod ${key}: ${errorMessage(error)}`)),
      });
      this.#pods.set(key, pod);
      await pod.start();
      this.#progress(`pod ${key} on ${node.name}: ${pod.ips.join(', ')}${admitted.proxy ? ({ router: ', a gateway', waypoint: ', a waypoint', sidecar: ', with a sidecar' }[admitted.proxy.role]) : ''}`);
    } catch (error) {
      this.#problem(error);
      if (pod) await this.#end(pod).catch((cause: unknown) => this.#problem(cause));
    }
  }

  /** Ends a pod of a workload's former version as soon as those of the new one are ready. */
  #replace(pod: Pod): void {
    this.#replaced.add(pod);
    const { owner, specHash } = pod.desired;
    const successorsReady = (): boolean => {
      const successors = [...this.#pods.values()].filter(
        ({ desired }) => desired.owner === owner && desired.specHash !== specHash,
      );
      return this.#closing !== undefined || successors.every(({ ready }) => ready);
    };
    const task = waitFor('the new version of the workload', successorsReady, { timeoutMs: ROLLOUT_TIMEOUT_MS })
      .catch(() => undefined)
      .then(() => (this.#closing ? undefined : this.#end(pod)))
      .catch((error: unknown) => this.#problem(error))
      .finally(() => this.#pending.delete(task));
    this.#pending.add(task);
  }

  async #end(pod: Pod): Promise<void> {
    pod.terminating = true;
    await this.#publish(); // no new connection goes there any more
    await pod.stop();
    this.#nodes.get(pod.nodeName)?.pods.release(pod.address.host);
    if (this.#pods.get(pod.key) === pod) this.#pods.delete(pod.key);
    this.#replaced.delete(pod);
    this.#progress(`pod ${pod.key} removed`);
    await this.#publish();
  }

  #publishSoon(): void {
    this.#publishIn(PUBLISH_DELAY_MS);
  }

  #publishIn(delayMs: number): void {
    this.#publishTimer ??= setTimeout(() => void this.#publish().catch((error: unknown) => this.#problem(error)), delayMs);
  }

  /** Tells everybody what is: the objects' directory, DNS, watchers, and the pods' service rules, which are in force when it resolves. */
  async #publish(): Promise<void> {
    clearTimeout(this.#publishTimer);
    this.#publishTimer = undefined;
    if (this.#closing) return;
    const pods = this.#sortedPods();
    this.#writeObjects(pods);
    const zone = this.cluster.zone(pods);
    for (const { dns } of this.#nodes.values()) dns.setZone(zone);
    const addresses = this.cluster.virtualAddresses(pods);
    const rules = serviceRules(addresses);
    // Nodes get a table when the first load balancer is there, and keep it.
    this.#balances ||= addresses.some(({ external }) => external);
    const balancing = this.#balances ? nodeRules(addresses) : '';
    for (const listener of this.#listeners) listener();
    await Promise.all([...pods.map((pod) => pod.setServiceRules(rules)), ...[...this.#nodes.values()].map(({ balancers }) => balancers.set(balancing))]);
  }

  /** A full disk must not end the lab, nor keep the rest from hearing of a change: it is said once, and tried again. */
  #writeObjects(pods: readonly Pod[]): void {
    try {
      this.#objects.write(this.cluster, this.#nodeStates(), pods);
      this.#writeProblem = '';
    } catch (error) {
      const message = `writing the objects to ${this.objectsDir}: ${errorMessage(error)}`;
      if (message !== this.#writeProblem) this.#problem(new UnderpassError('UNDERPASS_LAB_OBJECTS', message, { cause: error }));
      this.#writeProblem = message;
      this.#publishIn(WRITE_RETRY_MS);
    }
  }

  #sortedPods(): Pod[] {
    return [...this.#pods.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  #nodeStates(): NodeRecord[] {
    return [...this.#nodes.values()].map(({ name, addresses: { node, podCidrs, bridge } }) => ({
      name,
      ips: this.#present(node, this.cluster.nodeFamilies(name)),
      podCidrs: this.#present(podCidrs),
      dns: this.#present(bridge, this.cluster.nodeFamilies(name)),
      netns: netnsPath(this.names.nodeNetns(name)),
    }));
  }

  get objectsDir(): string {
    return this.names.objectsDir;
  }

  get socket(): string {
    return this.names.socket;
  }

  get #clusterId(): string {
    return this.#options.clusterId ?? DEFAULT_CLUSTER_ID;
  }

  info(): LabInfo {
    const { name, pid, startedAt } = this.#lock.holder;
    return {
      name,
      pid,
      startedAt,
      clusterId: this.#clusterId,
      nodes: this.#nodeStates(),
      objectsDir: this.objectsDir,
      sourceDirs: [...this.#options.sources],
    };
  }

  /** Pods whose processes run: those that are ending, too. */
  records(node?: string): PodRecord[] {
    return this.#sortedPods()
      .filter((pod) => !pod.gone && pod.phase !== 'Pending' && (node === undefined || pod.nodeName === node))
      .map((pod) => pod.record(this.cluster.namespaceLabels(pod.desired.namespace)));
  }

  /** All running pods that are to stay. */
  pods(node?: string): PodRecord[] {
    return this.records(node).filter(({ terminating }) => !terminating);
  }

  /** A pod by its name, or by the name of its workload: the first of it then. */
  pod(namespace: string, name: string): PodRecord {
    return this.#find(namespace, name).record(this.cluster.namespaceLabels(namespace));
  }

  #find(namespace: string, name: string): Pod {
    const short = name.replace(/^(pod|deploy|deployment|statefulset|daemonset)\//, '');
    const exact = this.#pods.get(`${namespace}/${short}`);
    const found =
      exact ??
      this.#sortedPods().find(({ desired, terminating }) => !terminating && desired.owner.endsWith(` ${namespace}/${short}`));
    if (found) return found;
    const known = this.#sortedPods().filter(({ desired }) => desired.namespace === namespace);
    throw new UnderpassError(
      'UNDERPASS_LAB_NOT_FOUND',
      `looking for pod ${namespace}/${short}: lab ${this.names.lab} has no such pod`,
      {
        hint: known.length
          ? `in ${namespace} there are ${known.map(({ desired }) => desired.name).join(', ')}`
          : `there is no pod in namespace ${namespace}`,
      },
    );
  }

  #resolve(reference: PodReference): Pod {
    if (typeof reference !== 'string') return this.#find(reference.namespace, reference.name);
    const slash = reference.indexOf('/');
    return slash < 0 ? this.#find('default', reference) : this.#find(reference.slice(0, slash), reference.slice(slash + 1));
  }

  /** Why pods are not ready, one line a container, prefixed by the pod. */
  problems(): string[] {
    return this.#sortedPods().flatMap((pod) => pod.problems.map((problem) => `${pod.key}: ${problem}`));
  }

  /** Runs a program in a pod to its end. A failing program is a result, not an exception. */
  exec(pod: PodReference, argv: readonly string[], options: ExecOptions = {}): Promise<RunResult> {
    return this.#resolve(pod).run(argv, options);
  }

  /** Starts a program in a pod; it ends with this process at the latest. */
  spawnIn(
    pod: PodReference,
    argv: readonly string[],
    options: { cpu?: number; container?: string; stdio?: SpawnOptions['stdio']; env?: Record<string, string> } = {},
  ): ChildProcess {
    const cpu = options.cpu === undefined ? [] : ['--cpu', String(options.cpu)];
    const plan = this.#resolve(pod).execPlan(options.container, ['--die-with-parent', ...cpu]);
    return spawn(plan.file, [...plan.args, ...argv], {
      env: { ...plan.env, ...options.env },
      stdio: options.stdio ?? 'pipe',
      ...(plan.cwd ? { cwd: plan.cwd } : {}),
    });
  }

  execPlan(namespace: string, pod: string, container?: string): ExecPlan {
    return this.#find(namespace, pod).execPlan(container);
  }

  /** What the Envoy of a pod, sidecar or gateway, answers at its admin interface: `/config_dump`, `/stats`, `/clusters`. */
  proxyAdmin(pod: PodReference, path: string, options: { method?: string; timeoutMs?: number } = {}): Promise<string> {
    const found = this.#resolve(pod);
    if (!found.proxy) throw new UnderpassError('UNDERPASS_LAB_NOT_FOUND', `asking the Envoy of ${found.key}: the pod has none`);
    return found.proxy.admin(path, options);
  }

  /** The address at which a Service of type LoadBalancer is reached from every pod. */
  externalIp(namespace: string, service: string): string {
    const external = this.cluster.services.get(`${namespace}/${service}`)?.external;
    if (!external) throw new UnderpassError('UNDERPASS_LAB_NOT_FOUND', `looking for the external address of ${namespace}/${service}: it is no Service of type LoadBalancer`);
    return external.ipv4;
  }

  async label(patch: LabelPatch): Promise<void> {
    if (patch.kind === 'Namespace') this.cluster.patchNamespace(patch);
    else {
      const pod = this.#find(patch.namespace ?? 'default', patch.name);
      patchLabels(pod.labels, patch.labels ?? {});
      patchLabels(pod.annotations, patch.annotations ?? {});
    }
    await this.#publish();
  }

  /** Objects on top of the sources', until the lab ends. @returns `Kind namespace/name` of each */
  async apply(yaml: string): Promise<string[]> {
    const { objects, errors } = parseObjects(yaml, 'apply');
    if (errors.length > 0) throw new UnderpassError('UNDERPASS_LAB_YAML', errors.join('\n'));
    for (const [key, object] of objects) this.#applied.set(key, object);
    this.#loadObjects();
    await this.reconcile();
    return [...objects.values()].map((object) => `${object.kind} ${keyOf(object.metadata).replace(/^\//, '')}`);
  }

  caMaterial(): CaMaterial {
    return this.#ca.material;
  }

  /** Tells of every change; returns what ends it. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Waits until the pods are ready; those with an Envoy of their own only as far as their other containers unless `sidecars`
   * is set, since sidecars and gateways wait for a control plane.
   */
  async whenReady(options: { timeoutMs?: number; signal?: AbortSignal; sidecars?: boolean } = {}): Promise<void> {
    const isReady = (pod: Pod): boolean => pod.phase === 'Succeeded' || (options.sidecars ? pod.ready : pod.appReady);
    try {
      await waitFor('pods', () => this.#sortedPods().every(isReady), {
        timeoutMs: options.timeoutMs ?? 30_000,
        everyMs: 20,
        ...(options.signal ? { signal: options.signal } : {}),
      });
    } catch (cause) {
      if (options.signal?.aborted) throw cause;
      const late = this.#sortedPods()
        .filter((pod) => !isReady(pod))
        .map(({ key }) => key);
      throw new UnderpassError('UNDERPASS_LAB_NOT_READY', `waiting for pods: not ready: ${late.join(', ')}`, {
        cause,
        hint: this.problems().join('; '),
      });
    }
    await this.#publish();
  }

  requestDown(): void {
    if (this.#options.onDownRequest) this.#options.onDownRequest();
    else void this.down().catch((error: unknown) => this.#problem(error));
  }

  /** Ends every pod and removes all that the lab made; a second call waits for the first. */
  down(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearTimeout(this.#publishTimer);
    await this.reconcile().catch(() => undefined); // a run under way ends, and none follows
    const failures: unknown[] = [];
    const attempt = async (step: () => Promise<unknown>): Promise<void> => {
      try {
        await step();
      } catch (error) {
        failures.push(error);
      }
    };
    await Promise.all([...this.#pods.values()].map((pod) => attempt(() => pod.stop({ now: true }))));
    // Watchers see every pod go while there is still somebody to tell them: an agent that lives on lets go of their namespaces.
    for (const listener of this.#listeners) listener();
    await sleep(FAREWELL_MS);
    this.#listeners.clear();
    await attempt(() => this.#closables.close());
    await attempt(() => Promise.all(this.#pending));
    await attempt(() => removeLeftovers(this.names, { keepHolder: true }));
    this.#lock.release();
    if (failures.length > 0)
      throw failures.length === 1
        ? failures[0]
        : new AggregateError(failures, `ending lab ${this.names.lab}: ${failures.map(errorMessage).join('; ')}`);
  }
}

async function inParallel<T>(items: readonly T[], limit: number, work: (item: T) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) await work(items[next++] as T);
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker));
}
