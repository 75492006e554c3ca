/**
 * The node agent: pods from a source, what their labels ask for, the kernel's hooks, the shared Envoy and its
 * configuration, put together. A stop leaves kernel and Envoy at work, and the next start takes them over.
 */
import { mkdirSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import type { SocketAddress } from '../common/arguments.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import type { PodMetadataPatch } from '../common/lab-api.js';
import { ClosableStore } from '../common/lifecycle.js';
import { OUTBOUND_PORT } from '../common/istio-iptables.js';
import { logger as defaultLogger, type Logger } from '../common/log.js';
import { VERSION } from '../common/version.js';
import { InstanceLock, instanceWaiters } from './admin/lock.js';
import { envoyRoutes } from './admin/envoy-routes.js';
import { MetricsListener } from './admin/metrics-listener.js';
import { requirePrivileges } from './admin/privileges.js';
import { AdminServer, refusal, type AdminAnswer, type AdminRoutes } from './admin/server.js';
import type { AgentStatus } from './admin/status.js';
import { AgentAuditors } from './consistency/agent-auditor.js';
import type { Check } from './consistency/drift.js';
import { KnownPods } from './consistency/known-pods.js';
import { Dataplane, type DataplaneOptions } from './dataplane/dataplane.js';
import { eventDrivenListeners } from './dataplane/event-driven.js';
import { PinnedNamespaces } from './dataplane/namespaces.js';
import { PolicyEnforcer } from './dataplane/policy-enforcer.js';
import { podProbation } from './dataplane/probation.js';
import { SpareMemory } from './dataplane/spare-memory.js';
import { AgentFastPath } from './http/agent-fast-path.js';
import type { NodeCaFactory } from './identity/certificates.js';
import { instanceCgroup, instancePaths } from './instance.js';
import { admitPod } from './kubernetes/admission.js';
import { CniServer } from './kubernetes/cni-server.js';
import { EnvoyAdmin } from './proxy/envoy-admin.js';
import { NO_WAYPOINTS } from './proxy/waypoint-table.js';
import type { AgentKernel, AgentParts, AgentProxy, ProxyStatus, SelfTestVerdict } from './parts.js';
import { knownWorkloads } from './telemetry/flow-labels.js';
import { FlowTelemetry } from './telemetry/flow-telemetry.js';
import { PodNames } from './telemetry/pod-names.js';
import { LiveRoutes } from './telemetry/live-routes.js';
import { SidecarTraffic } from './telemetry/sidecar-traffic.js';
import { Traffic } from './telemetry/traffic.js';
import { explain, type LiveMaps } from './resolve/explain.js';
import { ServiceResolver } from './resolve/service-resolver.js';
import { metricsText, type Counters } from './telemetry/metrics.js';
import { EventLoopWatch } from './telemetry/process-metrics.js';
import type { PrometheusText } from './telemetry/prometheus.js';
import { enrolmentOf, type EnrolmentDefaults } from './workloads/enrolment.js';
import type { PodRecord, WorkloadSource } from './workloads/source.js';
import type { DiscoveryTls } from './xds/tls-channels.js';

export interface AgentOptions {
  nodeName: string;
  workloads: WorkloadSource;
  /** host:port, or unix:PATH. */
  discoveryAddress: string;
  /** Default: plaintext. */
  discoveryTls?: DiscoveryTls;
  /** Makes the logger of a component; default: the process's. */
  logger?: (component: string) => Logger;
  runDir?: string;
  bpffsDir?: string;
  instance?: string;
  defaults?: Partial<EnrolmentDefaults>;
  /** Worker threads of the shared Envoy. */
  concurrency?: number;
  /** Where the shared Envoy runs and which DNS servers it asks, if not as this process does. */
  netnsPath?: string;
  dnsServers?: readonly string[];
  /** Socket of `underpass-launcher`, which starts Envoy in a container of its own; by default this process does. */
  envoyLauncher?: string;
  /** What the node's proxies name as the cluster that they are in; default `Kubernetes`. */
  clusterId?: string;
  /** Signs certificates for the service accounts of the node's pods; none by default, and then there is no mutual TLS. */
  ca?: NodeCaFactory;
  /** Default: what the control plane says of each workload. */
  trustDomain?: string;
  /** For the lock: which command this is. */
  purpose?: string;
  /** Log a line for each connection that ends; default false. */
  flowLog?: boolean;
  /** Lines of access logs that Envoy writes in a second at most. */
  accessLogRate?: number;
  /** Where `/metrics` is served over TCP too, to whoever reaches it; default: nowhere. */
  metricsAddress?: SocketAddress;
  /** Whether the HTTP fast path is on from the start, for pods whose acceleration is l7; default true. */
  httpFastPath?: boolean;
  /** Shown in the status, e.g. the embedded control plane's own. */
  controlPlaneStatus?: () => unknown;
  /** What else on the node is compared with what is wanted there. */
  checks?: readonly Check[];
  /** What the admin API answers beside the agent's own. */
  routes?: AdminRoutes;
}

const ENVOY_ADMIN_SOCKET = 'envoy-admin.sock';
/** A dump of thousands of clusters takes Envoy seconds. */
const ENVOY_ANSWER_MS = 60_000;

/** How often it is asked which servers' probation is over. */
const VERDICTS_EVERY_MS = 1_000;

export class Agent {
  readonly folder: string;
  readonly #options: AgentOptions;
  readonly #logger: Logger;
  readonly #component: (name: string) => Logger;
  readonly #parts: AgentParts;
  readonly #paths: ReturnType<typeof instancePaths>;
  readonly #defaults: EnrolmentDefaults;
  readonly #abort = new AbortController();
  readonly #store = new ClosableStore();
  #lock: InstanceLock | undefined;
  #metrics: MetricsListener | undefined;
  #kernel: AgentKernel | undefined;
  #kernelProblem: string | undefined;
  #verdict: SelfTestVerdict | undefined;
  #selfTestProblem: string | undefined;
  #resolver: ServiceResolver | undefined;
  #proxy: AgentProxy | undefined;
  #proxyProblem: string | undefined = 'not started yet';
  #dataplane: Dataplane | undefined;
  #policies: PolicyEnforcer | undefined;
  #fastPath: AgentFastPath | undefined;
  #records: readonly PodRecord[] | undefined;
  #running: Promise<void> | undefined;
  #flows: FlowTelemetry | undefined;
  #auditors: AgentAuditors | undefined;
  readonly #names = new PodNames({ records: () => this.#records ?? [], kernel: () => this.#kernel?.pods() });
  readonly #live: LiveRoutes;
  #verdictTimer: NodeJS.Timeout | undefined;
  #verdictProblem: string | undefined;
  #stopped: Promise<void> | undefined;
  #fail: (error: unknown) => void = () => undefined;
  /** Rejects when the agent can't go on, e.g. without Envoy; what is in place stays. Then `stop` it. */
  readonly failed: Promise<never>;

  constructor(options: AgentOptions, parts: AgentParts) {
    this.#options = options;
    this.#component = options.logger ?? defaultLogger;
    this.#logger = this.#component('agent');
    this.#parts = parts;
    this.#paths = instancePaths(options);
    this.folder = this.#paths.folder;
    this.#defaults = { acceleration: 'l4', redirection: 'auto', ...options.defaults };
    this.#live = new LiveRoutes({ flows: () => this.#flows?.stream, names: this.#names, watch: () => this.#kernel?.watch, logger: this.#component('agent.capture') });
    this.failed = new Promise<never>((_, reject) => (this.#fail = reject));
    this.failed.catch(() => undefined);
  }

  /**
   * Takes the instance and its folder.
   * @throws UnderpassError `UNDERPASS_AGENT_HELD` when another agent has it, `UNDERPASS_MISSING_CAPABILITY`
   */
  prepare(): void {
    if (this.#lock) return;
    requirePrivileges();
    this.#lock = this.#store.add(InstanceLock.acquire(this.folder, this.#paths.instance, this.#options.purpose ?? 'underpass agent'));
  }

  /** As `prepare`, but waits until another agent that has it has ended. @throws AbortError when `signal` aborts */
  async waitForInstance(signal: AbortSignal): Promise<void> {
    requirePrivileges();
    this.#lock = this.#store.add(await InstanceLock.wait(this.folder, this.#paths.instance, this.#options.purpose ?? 'underpass agent', { signal, logger: this.#logger }));
  }

  /** Resolves when the admin API answers; pods are enrolled as soon as everything they need is there. */
  async start(): Promise<void> {
    const { nodeName } = this.#options;
    const logger = this.#logger;
    const { metricsAddress } = this.#options;
    const loop = this.#store.add(new EventLoopWatch());
    const metrics = (): Promise<PrometheusText> => metricsText(this.status(), this.counters(), this.#flows, loop, { ...(this.#proxy?.reports ? { envoy: this.#proxy.reports } : {}), captures: this.#live.captures });
    this.prepare();
    const envoy = envoyRoutes(new EnvoyAdmin(join(this.folder, ENVOY_ADMIN_SOCKET), ENVOY_ANSWER_MS));
    this.#store.add(
      await AdminServer.listen(this.#paths.adminSocket, {
        '/healthz': () => ({ contentType: 'text/plain', body: 'ok\n' }),
        '/readyz': () => {
          const missing = this.#notReady();
          return { status: missing.length === 0 ? 200 : 503, body: { ready: missing.length === 0, missing } };
        },
        '/v1/status': () => ({ body: this.status() }),
        '/v1/explain': (query) => this.#explain(query),
        '/v1/objects': (query) => ({ body: { node: nodeName, objects: this.#auditors?.objects(query.get('object') ?? undefined) ?? [] } }),
        '/v1/counters': () => ({ body: this.counters() ?? { message: this.#kernelProblem } }),
        ...this.#live.routes,
        ...new Traffic({ node: nodeName, telemetry: () => this.#flows, sidecars: new SidecarTraffic(() => this.#records ?? []) }).routes,
        '/v1/http-fast-path': () => this.#switchFastPath(new URLSearchParams()),
        '/metrics': async () => ({ contentType: 'text/plain; version=0.0.4', pieces: (await metrics()).pieces() }),
        ...envoy.routes,
        ...this.#options.routes,
      }, { ...envoy.changes, '/v1/http-fast-path': (query) => this.#switchFastPath(query) }),
    );
    if (metricsAddress) this.#metrics = this.#store.add(new MetricsListener(metricsAddress, metrics, this.#component('agent.metrics')));
    logger.info({ instance: this.#paths.instance, node: nodeName, folder: this.folder, pods: this.#options.workloads.description, discovery: this.#options.discoveryAddress }, 'agent starts');

    const proxyCgroup = await this.#openKernel();
    const hostMatch = await this.#exemptNode(proxyCgroup);
    const namespaces = new PinnedNamespaces(this.#paths.netnsFolder, hostMatch === undefined ? {} : { hostMatch });
    const stale = namespaces.removeStale();
    if (stale > 0) logger.info({ pins: stale }, 'what an earlier boot of this node left of its pods\' network namespaces was removed');
    this.#fastPath = this.#openFastPath(namespaces);
    const kernel = this.#openResolver();
    const proxy = this.#parts.createProxy({
      nodeName,
      runDir: this.folder,
      discoveryAddress: this.#options.discoveryAddress,
      ...(this.#options.discoveryTls ? { discoveryTls: this.#options.discoveryTls } : {}),
      logger: this.#component('agent.proxy'),
      isOpen: async (uid) => (await namespaces.takenPorts(namespaces.path(uid), [{ port: OUTBOUND_PORT }])).has(OUTBOUND_PORT),
      onListenerPorts: (ports, proxied) => this.#kernel?.setListenerPorts(ports, proxied),
      onInbound: (pods) => this.#dataplane?.setInbound(pods),
      onNarrowing: (uid, side) => this.#policies?.proxyNarrows(uid, side) ?? Promise.resolve(),
      onNarrowed: (uid, http) => this.#policies?.proxyNarrowed(uid, http),
      onInboundNeeds: (needs) => this.#policies?.setInboundNeeds(needs),
      onPlainPorts: (ports, behind) => this.#resolver?.portsChanged(ports, behind),
      onWorkloads: (view, change) => {
        this.#policies?.setWorkloads(view, change);
        this.#resolver?.workloadsChanged(view.addresses, change, view.synced);
      },
      ...(proxyCgroup === undefined ? {} : { cgroupPath: proxyCgroup }),
      showsCallers: this.#kernel !== undefined,
      ...(this.#options.concurrency === undefined ? {} : { concurrency: this.#options.concurrency }),
      ...(this.#options.netnsPath === undefined ? {} : { netnsPath: this.#options.netnsPath }),
      ...(this.#options.envoyLauncher === undefined ? {} : { launcherSocket: this.#options.envoyLauncher }),
      ...(this.#options.dnsServers === undefined ? {} : { dnsServers: this.#options.dnsServers }),
      ...(this.#options.accessLogRate === undefined ? {} : { accessLogRate: this.#options.accessLogRate }),
      ...(this.#options.clusterId === undefined ? {} : { clusterId: this.#options.clusterId }),
      ...(this.#options.ca === undefined ? {} : { ca: this.#options.ca }),
      ...(this.#options.trustDomain === undefined ? {} : { trustDomain: this.#options.trustDomain }),
      ...(this.#fastPath ? { fastPath: this.#fastPath } : {}),
      handover: {
        // Envoy drains connections by their answers, and sees none of the fast ones; what it has counted goes with it.
        begin: async () => void (await Promise.allSettled([this.#fastPath?.repeater.hold(), this.#flows?.refresh()])),
        over: () => this.#fastPath?.repeater.unhold(),
      },
    });
    this.#proxy = proxy;
    // Before its first word to Envoy: what a former agent told is told again, and Envoy has it.
    this.#tellVerdicts(this.#kernel, proxy);
    if (this.#kernel) this.#verdictTimer = setInterval(() => this.#tellVerdicts(this.#kernel, proxy), VERDICTS_EVERY_MS);
    this.#flows = await this.#flowTelemetry(this.#kernel, proxy).open();
    this.#policies = this.#kernel && this.#store.add(new PolicyEnforcer({
      kernel: this.#kernel,
      proxySettled: () => proxy.settled,
      onJudged: () => this.#resolver?.judgedChanged(),
      logger: this.#component('agent.policy'),
      ...(proxyCgroup === undefined ? {} : { proxyCgroupPath: proxyCgroup }),
      ...(this.#options.clusterId === undefined ? {} : { clusterId: this.#options.clusterId }),
      ...(this.#options.trustDomain === undefined ? {} : { trustDomain: this.#options.trustDomain }),
    }));
    const { workloads } = this.#options;
    const setMetadata = workloads.setPodMetadata && ((pod: PodRecord, patch: PodMetadataPatch) => workloads.setPodMetadata!(pod, patch));
    this.#dataplane = new Dataplane({ kernel, namespaces, proxy, defaults: this.#defaults, logger: this.#component('agent.dataplane'), setBehindProxy: (uid, isBehind, isPassable) => this.#policies?.setBehindProxy(uid, isBehind, isPassable), ...(this.#kernel?.steering ? { steering: this.#kernel.steering } : {}), isFastPathLoading: () => this.#kernel?.httpPrograms?.isLoading ?? false, ...(this.#policies ? { policiesKnown: (uid: string, signal: AbortSignal) => this.#policies!.whenKnown(uid, signal) } : {}), ...(setMetadata ? { setMetadata } : {}) });
    this.#auditors = new AgentAuditors({ kernel: this.#kernel, proxy, records: () => this.#records ?? [], resolver: this.#resolver, policies: this.#policies, node: [...this.#dataplane.checks(), ...(this.#options.checks ?? [])], known: new KnownPods(join(this.folder, 'pods.json')), logger: this.#component('agent.consistency') }).start();
    this.#store.add(new SpareMemory());
    await this.#listenForStarting(this.#dataplane);
    this.#running = this.#run(this.#dataplane, proxy);
  }

  async #listenForStarting(dataplane: Dataplane): Promise<void> {
    const { admit } = this.#options.workloads;
    if (!admit) return;
    const workloads = { admit: admit.bind(this.#options.workloads) };
    const options = { workloads, defaults: this.#defaults, whenEnrolled: (uid: string, signal: AbortSignal) => dataplane.whenEnrolled(uid, signal) };
    this.#store.add(await CniServer.listen(this.#paths.cniSocket, async (pod, signal) => void (await admitPod(pod, signal, options)), this.#component('agent.cni')));
  }

  /** Ends the agent. By default everything that serves pods goes on: kernel hooks, rules, Envoy. */
  stop(options: { keepEnvoy?: boolean } = {}): Promise<void> {
    this.#stopped ??= this.#stop(options.keepEnvoy ?? true);
    return this.#stopped;
  }

  async #stop(keepEnvoy: boolean): Promise<void> {
    this.#abort.abort();
    clearInterval(this.#verdictTimer);
    await this.#auditors?.close();
    this.#policies?.close();
    this.#live.close();
    await this.#running?.catch(() => undefined);
    await this.#dataplane?.stop();
    // Envoy does not see what the kernel has under way on its connections.
    if (!keepEnvoy) await this.#fastPath?.repeater.drain();
    await this.#fastPath?.close();
    // While Envoy still says what it has counted.
    await this.#flows?.close();
    await this.#proxy?.stop({ keepEnvoy });
    await this.#kernel?.close();
    await this.#store.close();
    this.#logger.info({ instance: this.#paths.instance }, 'agent stopped');
  }

  status(): AgentStatus {
    const { workloads, controlPlaneStatus } = this.#options;
    const notReady = this.#notReady();
    const bpfProblem = this.#bpfProblem();
    const accelerationReason = this.#accelerationProblem();
    return {
      version: VERSION,
      kernel: release(),
      instance: this.#paths.instance,
      node: this.#options.nodeName,
      pid: process.pid,
      since: this.#lock?.holder.since ?? '',
      waiting: instanceWaiters(this.folder).map(({ pid, since }) => ({ pid, since })),
      ready: notReady.length === 0,
      notReady,
      workloads: { source: workloads.description, pods: this.#records?.length ?? 0, ...(workloads.problem === undefined ? {} : { problem: workloads.problem }) },
      redirection: { default: this.#defaults.redirection, ...(bpfProblem === undefined ? {} : { bpfProblem }) },
      acceleration: { default: this.#defaults.acceleration, on: accelerationReason === undefined, ...(accelerationReason === undefined ? {} : { reason: accelerationReason }) },
      selfTest: this.#verdict ?? { pending: true },
      proxy: {
        ...(this.#proxy?.status() ?? NO_PROXY),
        ...(this.#proxyProblem === undefined ? {} : { problem: this.#proxyProblem }),
      },
      pods: this.#dataplane?.status() ?? [],
      probation: this.#probation(),
      ...(this.#policies ? { policies: this.#policies.status() } : {}),
      ...(this.#resolver ? { services: this.#resolver.status } : {}),
      ...(this.#fastPath ? { httpFastPath: this.#fastPath.status } : {}),
      ...(this.#metrics ? { metrics: this.#metrics.status } : {}),
      ...(this.#auditors ? { consistency: this.#auditors.status } : {}),
      ...(controlPlaneStatus ? { controlPlane: controlPlaneStatus() } : {}),
    };
  }

  #explain(query: URLSearchParams): AdminAnswer {
    const [wanted, host, port] = [query.get('pod') ?? '', query.get('host') ?? '', Number(query.get('port'))];
    const pods = this.#dataplane?.status() ?? [];
    // By its name, or by its workload's: the first of it then.
    const pod = pods.find(({ namespace, name }) => `${namespace}/${name}` === wanted) ?? pods.find(({ namespace, name }) => `${namespace}/${name}`.startsWith(`${wanted}-`));
    if (!pod) return { status: 404, body: { message: `pod ${wanted}: not on this node, or not enrolled; \`underpass ps\` has those that are` } };
    const kernel = this.#kernel;
    const maps: LiveMaps = {
      pods: () => kernel?.pods() ?? [], netnsOf: (address) => kernel?.netnsOf?.(address), isPlain: (address, port) => kernel?.isPlain?.(address, port) ?? false,
      waypoints: this.#proxy?.waypoints ?? NO_WAYPOINTS,
      judge: (...query) => kernel?.policies?.judge(...query),
      isJudged: (uid, at) => this.#policies?.isJudged(uid, at) ?? false,
      policyOf: (uid, term) => this.#policies?.policyOf(uid, term),
      nameOf: (uid) => this.#records?.find((record) => record.uid === uid),
      probation: () => this.#probation(),
    };
    try {
      const explained = explain(pod, host, port, maps, this.#resolver);
      if (!this.#fastPath || !explained.addresses.some(({ way }) => way === 'envoy')) return { body: explained };
      const addresses = explained.addresses.map(({ address }) => address);
      const hostnames = addresses.flatMap((address) => this.#resolver?.decisions(address, port, pod.namespace).services.map(({ hostname }) => hostname) ?? []);
      return { body: { ...explained, http: this.#fastPath.explain(pod.uid, addresses, port, hostnames) } };
    } catch (error) {
      if (!(error instanceof UnderpassError)) throw error;
      return refusal(404, error);
    }
  }

  /** `?on=true` and `?on=false` switch it. */
  #switchFastPath(query: URLSearchParams): AdminAnswer {
    if (!this.#fastPath) return { status: 404, body: { message: `there is no HTTP fast path: ${this.#kernelProblem ?? 'the kernel side is not open yet'}` } };
    const on = query.get('on');
    if (on !== null && on !== 'true' && on !== 'false') return { status: 400, body: { message: `on=${on}: expected true or false` } };
    if (on !== null) this.#fastPath.repeater.setOn(on === 'true');
    return { body: this.#fastPath.status };
  }

  #probation(): AgentStatus['probation'] {
    if (!this.#kernel) return [];
    const records = new Map((this.#records ?? []).map((record) => [record.uid, record]));
    return podProbation(this.#kernel.probation(), this.#kernel.pods(), (uid) => records.get(uid));
  }

  counters(): Counters | undefined {
    if (!this.#kernel) return undefined;
    const records = new Map((this.#records ?? []).map((record) => [record.uid, record]));
    const pods: Counters['pods'] = [];
    for (const [uid, values] of this.#kernel.podCounters()) {
      const record = records.get(uid);
      if (record) pods.push({ ...values, uid, pod: record.name, namespace: record.namespace } as Counters['pods'][number]);
    }
    return { node: this.#kernel.counters(), pods };
  }

  #flowTelemetry(kernel: AgentKernel | undefined, proxy: AgentProxy): FlowTelemetry {
    const { flowLog, trustDomain } = this.#options;
    const names = this.#names;
    return new FlowTelemetry({
      ...(kernel ? { kernel } : {}),
      workloads: knownWorkloads(proxy.workloads, this.#resolver),
      ...(kernel?.http ? { requests: kernel.http.totals } : {}),
      ...(proxy.requests ? { envoy: { view: proxy.requests, folder: this.folder } } : {}),
      podOf: (netnsCookie) => names.ofNetns(netnsCookie),
      names,
      ...(proxy.flowLogs ? { flowLogs: proxy.flowLogs } : {}),
      logger: this.#component('agent.flows'),
      ...(flowLog ? { log: this.#component('agent.flow-log') } : {}),
      ...(trustDomain === undefined ? {} : { trustDomain }),
    });
  }

  /** Returns the cgroup for Envoy, if this machine has cgroup v2. */
  async #openKernel(): Promise<string | undefined> {
    const logger = this.#logger;
    let proxyCgroup: string | undefined;
    try {
      const folder = join(instanceCgroup(this.#paths.instance), 'proxy');
      mkdirSync(folder, { recursive: true });
      proxyCgroup = folder;
      const kernel = await this.#parts.openKernel({ bpffsDir: this.#paths.bpffsDir, instance: this.#paths.instance, logger: this.#component('agent.kernel') });
      this.#kernel = kernel;
      kernel.attachProxy(folder);
    } catch (error) {
      await this.#kernel?.close();
      this.#kernel = undefined;
      // Libbpf's and the verifier's own lines are for the log.
      this.#kernelProblem = `the kernel's BPF side is not usable: ${errorMessage(error).split('\n')[0]}`;
      logger.warn({ reason: errorMessage(error) }, 'no BPF: pods are redirected by iptables, nothing is short-circuited, and programs see their own pod\'s address of what the proxy passes on');
      await this.#detachKernel();
    }
    return proxyCgroup;
  }

  /** The kubelet's probes get to the pods whatever their policy says. Returns the program by which iptables know them. */
  async #exemptNode(proxyCgroup: string | undefined): Promise<string | undefined> {
    const host = this.#kernel?.host;
    if (!host) return undefined;
    try {
      return await host.attach(this.#options.netnsPath ?? '/proc/self/ns/net', proxyCgroup);
    } catch (error) {
      this.#logger.warn({ reason: errorMessage(error) }, 'what the node itself opens to its pods, kubelet probes too, is not exempt from their policy');
      host.detach();
      return undefined;
    }
  }

  #openFastPath(namespaces: PinnedNamespaces): AgentFastPath | undefined {
    const kernel = this.#kernel;
    return kernel?.http && new AgentFastPath({
      kernel: kernel.http, pods: () => kernel.pods(), netnsPath: (uid) => namespaces.path(uid), proxyPid: () => this.#proxy?.status().envoy.pid,
      problem: () => this.#fastPathProblem(), requestIds: (uid) => this.#records?.some((record) => record.uid === uid && enrolmentOf(record, this.#defaults).requestIds) ?? false, on: this.#options.httpFastPath ?? true, logger: this.#component('agent.http'),
    });
  }

  /** The kernel as the pods' controllers see it: what they change, services that lead to the pods follow, and the fast path. */
  #openResolver(): DataplaneOptions['kernel'] {
    const kernel = this.#kernel;
    if (!kernel?.services) return kernel;
    const resolver = this.#store.add(new ServiceResolver({ nodeName: this.#options.nodeName, table: kernel.services, pods: () => kernel.pods(), judge: { isRedirected: (uid) => this.#policies?.isBehindProxy(uid) ?? false, isJudged: (uid, port) => this.#policies?.isJudged(uid, port) ?? false, whyProxy: (uid, port) => this.#policies?.whyProxy(uid, port) }, logger: this.#component('agent.resolve') }));
    this.#resolver = resolver;
    return {
      putPod: (pod) => {
        kernel.putPod(pod);
        resolver.podsChanged();
        this.#fastPath?.repeater.podsChanged();
      },
      removePod: (uid) => {
        kernel.removePod(uid);
        resolver.podsChanged();
        this.#fastPath?.repeater.podsChanged();
      },
      liveConnections: (uid) => kernel.liveConnections(uid),
      keepFormer: (uids) => kernel.keepFormer?.(uids),
      pods: () => kernel.pods(),
    };
  }

  /** Hooks of a former agent that this one can't drive would outlive the listeners that they lead to. */
  async #detachKernel(): Promise<void> {
    const { bpffsDir, instance } = this.#paths;
    try {
      const count = await this.#parts.detachKernel({ bpffsDir, instance });
      if (count === 0) return;
      this.#kernelProblem += '; what a former agent had attached was detached';
      this.#logger.warn({ attached: count }, 'the hooks of a former agent are detached: new connections take their plain way until iptables redirect them');
    } catch (error) {
      this.#kernelProblem += `; what a former agent attached could not be detached: ${errorMessage(error)}`;
      this.#logger.error({ reason: errorMessage(error) }, 'the hooks of a former agent could not be detached');
    }
  }

  async #run(dataplane: Dataplane, proxy: AgentProxy): Promise<void> {
    const { workloads } = this.#options;
    const logger = this.#logger;
    const { signal } = this.#abort;
    const selfTest = this.#selfTest();
    let started: Promise<void> | undefined;
    try {
      for await (const records of workloads.watch(signal)) {
        if (signal.aborted) break;
        this.#records = records;
        this.#policies?.setPods(records);
        if (started) {
          dataplane.setPods(records);
          this.#fastPath?.repeater.podsChanged();
          continue;
        }
        // What a former agent left has to be in the proxy's first word to Envoy, so the pods come before the proxy.
        await dataplane.adopt(records);
        started = this.#startProxy(proxy);
        await selfTest;
        if (signal.aborted) break;
        const bpfProblem = this.#bpfProblem();
        if (bpfProblem !== undefined && this.#kernel) logger.warn({ reason: bpfProblem }, 'pods are redirected by iptables');
        dataplane.start({ bpfProblem });
      }
    } catch (error) {
      if (!signal.aborted) this.#fail(error);
    }
    await started?.catch(() => undefined);
  }

  async #startProxy(proxy: AgentProxy): Promise<void> {
    try {
      await proxy.start(this.#abort.signal);
      this.#proxyProblem = undefined;
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      this.#proxyProblem = errorMessage(error);
      this.#fail(error);
    }
  }

  async #selfTest(): Promise<void> {
    if (!this.#kernel) return;
    const logger = this.#logger;
    try {
      const verdict = await this.#parts.selfTest(this.#component('agent.self-test'));
      this.#verdict = verdict;
      this.#kernel.setGlobalAcceleration(verdict.acceleration.ok);
      const failed = verdict.checks.filter((check) => !check.ok);
      logger[verdict.acceleration.ok ? 'info' : 'warn'](
        { acceleration: verdict.acceleration, capture: verdict.capture, failed: failed.map(({ name, detail }) => `${name}: ${detail}`), restrictions: verdict.restrictions, tookMs: verdict.tookMs },
        verdict.acceleration.ok ? 'self-test passed: acceleration is on' : 'self-test: acceleration is off',
      );
      if (verdict.acceleration.ok && !verdict.fastPath.ok) logger.warn({ reason: verdict.fastPath.reason }, 'self-test: the HTTP fast path is off, all requests go through Envoy');
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      // A test that could not be run says nothing good about the kernel.
      this.#selfTestProblem = `the self-test could not be run: ${errorMessage(error)}`;
      this.#kernel.setGlobalAcceleration(false);
      logger.warn({ reason: errorMessage(error) }, 'the self-test could not be run: acceleration is off and pods are redirected by iptables');
    }
  }

  /** Envoy renews its pools towards a server whose probation is over. */
  #tellVerdicts(kernel: AgentKernel | undefined, proxy: AgentProxy): void {
    if (!kernel) return;
    try {
      proxy.setEventDriven(eventDrivenListeners(kernel.probation(), kernel.pods()));
      this.#verdictProblem = undefined;
    } catch (error) {
      const problem = errorMessage(error);
      if (problem !== this.#verdictProblem) this.#logger.warn({ reason: problem }, 'the verdicts could not be read: connections that Envoy pooled during probation stay plain TCP');
      this.#verdictProblem = problem;
    }
  }

  #bpfProblem(): string | undefined {
    if (!this.#kernel) return this.#kernelProblem ?? 'the kernel side is not open yet';
    if (this.#selfTestProblem !== undefined) return this.#selfTestProblem;
    if (!this.#verdict) return 'the self-test has not finished yet';
    return this.#verdict.capture.ok ? undefined : `the self-test's capture check failed: ${this.#verdict.capture.reason}`;
  }

  #accelerationProblem(): string | undefined {
    if (!this.#kernel) return this.#kernelProblem ?? 'the kernel side is not open yet';
    if (this.#selfTestProblem !== undefined) return this.#selfTestProblem;
    if (!this.#verdict) return 'the self-test has not finished yet';
    return this.#verdict.acceleration.ok ? undefined : `the self-test failed: ${this.#verdict.acceleration.reason}`;
  }

  #fastPathProblem(): string | undefined {
    return this.#accelerationProblem() ?? (this.#kernel?.httpPrograms?.isLoading ? 'its programs are being loaded' : undefined) ?? (this.#verdict?.fastPath.ok ? undefined : `the self-test failed: ${this.#verdict?.fastPath.reason ?? ''}`);
  }

  get isReady(): boolean {
    return this.#notReady().length === 0;
  }

  #notReady(): string[] {
    const missing: string[] = [];
    if (this.#records === undefined) missing.push(`the pods of this node are not known yet (${this.#options.workloads.description}: ${this.#options.workloads.problem ?? 'waiting'})`);
    if (this.#proxyProblem !== undefined) missing.push(`the shared Envoy: ${this.#proxyProblem}`);
    if (this.#kernel && !this.#verdict && this.#selfTestProblem === undefined) missing.push('the self-test has not finished yet');
    const certificates = this.#proxy?.status().certificates;
    for (const { id, notAfter, problem } of certificates?.identities ?? []) {
      if (notAfter === undefined) missing.push(`no certificate for ${id}: ${problem ?? certificates?.problem ?? 'waiting for the CA'}`);
    }
    return missing;
  }
}

const NO_PROXY: ProxyStatus = {
  envoy: { pid: undefined, version: undefined, adopted: false, restarts: 0, connected: false },
  controlPlane: { address: '', connected: false, streams: 0, lastError: undefined },
  classes: [],
  workloads: { addresses: 0, authorizations: 0, synced: false },
  nacks: [],
  settled: false,
};
