/**
 * A real node: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, containerd and kubelet on a machine of
 * their own in this one (node-machine.ts), and pods of images that were made here. `make test-kube` brings the parts.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import type { Condition, KubeObject, Pod } from '../../common/kube/types.js';
import { ClosableStore, type Closable } from '../../common/lifecycle.js';
import { buildDir } from '../../common/paths.js';
import { run, type RunResult } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { ClusterDns } from './cluster-dns.js';
import { KubeCluster } from './cluster.js';
import { imagesProblem, PAUSE, pauseArchive, programsArchive } from './node-images.js';
import { NodeMachine } from './node-machine.js';

const PARTS = join(buildDir, 'kube');
const SERVICE_RANGE = '10.96.0.0/16';
const POD_RANGE = '10.244.0.0/24';
const CNI_PLUGINS = '/usr/lib/cni';
const CONTAINERD_SOCKET = '/run/containerd/containerd.sock';
/** A machine of two CPUs that others use too is slow to start all of it. */
const START_MS = 180_000;
const POD_MS = 120_000;
const BINARIES = ['kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kube-proxy', 'kubelet'];
const PROGRAMS = ['/usr/bin/etcd', '/usr/bin/containerd', '/usr/bin/containerd-shim-runc-v2', '/usr/bin/ctr', '/usr/sbin/runc', '/usr/sbin/nft', ...['ptp', 'host-local', 'loopback', 'portmap'].map((name) => join(CNI_PLUGINS, name))];

/** The network as an installer of a cluster writes it; one that is nobody's that Underpass knows. */
export const CNI_CONFIGURATION = { cniVersion: '0.4.0', name: 'pods', plugins: [{ type: 'ptp', ipMasq: false, ipam: { type: 'host-local', subnet: POD_RANGE, dataDir: '/run/cni/addresses', routes: [{ dst: '0.0.0.0/0' }] } }, { type: 'portmap', capabilities: { portMappings: true } }] };
export const CNI_FILE = '/etc/cni/net.d/10-pods.conflist';

/** Why a real node can't be had on this machine; undefined: it can. */
export async function nodeProblem(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'it takes root';
  const missing = [...BINARIES.map((name) => join(PARTS, name)), ...PROGRAMS].filter((file) => !existsSync(file));
  if (missing.length > 0) return `${missing.join(', ')}: not there, \`make test-kube\` brings it`;
  if (!/\boverlay$/m.test(readFileSync('/proc/filesystems', 'utf8'))) return 'the kernel has no overlayfs, which images are unpacked to';
  const { code, stderr } = await run('unshare', ['--mount', '--net', '--pid', '--cgroup', '--fork', '--mount-proc', '--', 'sh', '-c', 'ip link add node0 type bridge && ip link add link0 type veth peer name link1 && nft add table inet t'], { okCodes: [0, 1, 2], timeoutMs: 20_000 });
  if (code !== 0) return `namespaces with a network of their own can't be made: ${stderr.trim()}`;
  return imagesProblem();
}

export interface PodContainer {
  id: string;
  ready: boolean;
  restarts: number;
}

/** As kubelet reports it. */
export interface RunningPod extends Pod {
  status: Omit<NonNullable<Pod['status']>, 'containerStatuses'> & { containerStatuses?: { name: string; containerID?: string; ready: boolean; restartCount: number }[] };
}

export class RealNode implements Closable {
  readonly name = 'real';
  readonly #store = new ClosableStore();

  private constructor(readonly machine: NodeMachine, readonly cluster: KubeCluster) {}

  /** Returns when the node is Ready, and can run pods of the images. */
  static async start(): Promise<RealNode> {
    const problem = await nodeProblem();
    if (problem !== undefined) throw new Error(`no real node: ${problem}`);
    const machine = await NodeMachine.start({ serviceRange: SERVICE_RANGE });
    let node: RealNode | undefined;
    try {
      const cluster = await KubeCluster.start({ machine });
      node = new RealNode(machine, cluster);
      await node.#start();
      return node;
    } catch (error) {
      const logs = ['containerd', 'kubelet', 'kube-proxy'].map((name) => `${name}:\n${machine.log(name)}`).join('\n');
      await (node ?? machine).close();
      throw new Error(`starting a real node: ${(error as Error).message}\n${logs}`, { cause: error });
    }
  }

  async #start(): Promise<void> {
    const { cluster, machine } = this;
    this.#store.add(await ClusterDns.start(cluster, machine.netns, machine.address));
    await this.#startControllers();
    await this.#startContainerd();
    for (const archive of [await pauseArchive(machine.folder), await programsArchive(machine.folder)]) await this.load(archive);
    await this.#startKubelet();
    await waitFor('the node to be ready', async () => {
      const node = await cluster.get<KubeObject & { status?: { conditions?: Condition[] } }>('v1', 'Node', { name: this.name });
      return node?.status?.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True');
    }, { timeoutMs: START_MS, everyMs: 200 });
    await waitFor('the default service account', () => cluster.get('v1', 'ServiceAccount', { namespace: 'default', name: 'default' }), { timeoutMs: START_MS, everyMs: 200 });
  }

  async #startControllers(): Promise<void> {
    const { cluster } = this;
    const file = (name: string): string => join(cluster.folder, name);
    const kubeconfig = async (name: string): Promise<string> => this.#write(`${name}.kubeconfig`, await cluster.componentKubeconfig(`system:${name}`));
    cluster.startPart('controller-manager', join(PARTS, 'kube-controller-manager'), [`--kubeconfig=${await kubeconfig('kube-controller-manager')}`, `--service-account-private-key-file=${file('accounts.key')}`, `--root-ca-file=${file('ca.crt')}`, '--use-service-account-credentials', '--leader-elect=false', '--secure-port=0', '--node-monitor-grace-period=300s', '--v=1']);
    cluster.startPart('scheduler', join(PARTS, 'kube-scheduler'), [`--kubeconfig=${await kubeconfig('kube-scheduler')}`, '--leader-elect=false', '--secure-port=0', '--v=1']);
    const proxy = { apiVersion: 'kubeproxy.config.k8s.io/v1alpha1', kind: 'KubeProxyConfiguration', mode: 'nftables', clientConnection: { kubeconfig: await kubeconfig('kube-proxy') }, clusterCIDR: POD_RANGE, hostnameOverride: this.name, bindAddress: this.machine.address, healthzBindAddress: '', metricsBindAddress: '', conntrack: { maxPerCore: 0, tcpEstablishedTimeout: '0s', tcpCloseWaitTimeout: '0s' }, nftables: { minSyncPeriod: '0s' } };
    this.machine.start('kube-proxy', join(PARTS, 'kube-proxy'), [`--config=${this.#write('kube-proxy.yaml', stringify(proxy))}`, '--v=1']);
  }

  async #startContainerd(): Promise<void> {
    const { machine } = this;
    mkdirSync(machine.path('/etc/cni/net.d'), { recursive: true });
    mkdirSync(machine.path('/opt/cni/bin'), { recursive: true });
    for (const name of readdirSync(CNI_PLUGINS)) copyFileSync(join(CNI_PLUGINS, name), machine.path('/opt/cni/bin', name));
    writeFileSync(machine.path(CNI_FILE), JSON.stringify(CNI_CONFIGURATION, undefined, 2));
    const config = `version = 2
root = "${join(machine.folder, 'containerd')}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "${CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${PAUSE}"
  # Without CAP_SYS_RESOURCE nobody may ask to be spared.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`;
    machine.start('containerd', '/usr/bin/containerd', ['--config', this.#write('containerd.toml', config), '--log-level', 'warn']);
    await waitFor('containerd', async () => (await this.#ctr(['version'], { okCodes: [0, 1] })).code === 0, { timeoutMs: START_MS, everyMs: 200 });
  }

  async #startKubelet(): Promise<void> {
    const { cluster, machine } = this;
    const server = await issueServerCertificate(cluster.ca, { dnsNames: [this.name], ips: [machine.address] });
    const config = {
      apiVersion: 'kubelet.config.k8s.io/v1beta1', kind: 'KubeletConfiguration',
      address: machine.address, readOnlyPort: 0, healthzPort: 0,
      tlsCertFile: this.#write('kubelet.crt', server.certificatePem), tlsPrivateKeyFile: this.#write('kubelet.key', server.privateKeyPem),
      authentication: { anonymous: { enabled: false }, webhook: { enabled: true }, x509: { clientCAFile: join(cluster.folder, 'ca.crt') } },
      authorization: { mode: 'Webhook' },
      clusterDomain: 'cluster.local', clusterDNS: [machine.address], resolvConf: this.#write('resolv.conf', `nameserver ${machine.address}\n`),
      containerRuntimeEndpoint: `unix://${CONTAINERD_SOCKET}`,
      cgroupDriver: 'cgroupfs', failCgroupV1: false, failSwapOn: false, makeIPTablesUtilChains: false, enforceNodeAllocatable: ['none'],
      // Where images come from archives, one that is thrown away is gone.
      imageGCHighThresholdPercent: 100, imageGCLowThresholdPercent: 99, evictionHard: { 'imagefs.available': '0%', 'nodefs.available': '0%', 'nodefs.inodesFree': '0%', 'imagefs.inodesFree': '0%', 'memory.available': '0%' },
      maxPods: 110, podCIDR: POD_RANGE, syncFrequency: '5s',
    };
    const kubeconfig = this.#write('kubelet.kubeconfig', await cluster.componentKubeconfig(`system:node:${this.name}`, 'system:nodes'));
    machine.start('kubelet', join(PARTS, 'kubelet'), [`--config=${this.#write('kubelet.yaml', stringify(config))}`, `--kubeconfig=${kubeconfig}`, `--hostname-override=${this.name}`, `--node-ip=${machine.address}`, '--v=1']);
  }

  #write(name: string, text: string): string {
    const file = join(this.cluster.folder, name);
    writeFileSync(file, text, { mode: 0o600 });
    return file;
  }

  #ctr(args: readonly string[], options: { okCodes?: readonly number[]; timeoutMs?: number } = {}): Promise<RunResult> {
    return this.machine.run('ctr', ['--address', CONTAINERD_SOCKET, '--namespace', 'k8s.io', ...args], options);
  }

  /** An image's docker archive. */
  async load(archive: string): Promise<void> {
    await this.#ctr(['images', 'import', archive], { timeoutMs: START_MS });
  }

  pods(namespace: string): Promise<RunningPod[]> {
    return this.cluster.client.request<{ items?: RunningPod[] }>('GET', `/api/v1/namespaces/${namespace}/pods`).then(({ items = [] }) => items);
  }

  async pod(namespace: string, name: string): Promise<RunningPod> {
    const pod = await this.cluster.get<RunningPod>('v1', 'Pod', { namespace, name });
    if (!pod) throw new Error(`pod ${namespace}/${name}: the API server has none`);
    return pod;
  }

  /** @returns the pod, when it is ready */
  async ready(namespace: string, name: string): Promise<RunningPod> {
    return this.wait(`pod ${namespace}/${name} to be ready`, namespace, async () => {
      const pod = await this.cluster.get<RunningPod>('v1', 'Pod', { namespace, name });
      return pod?.status.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') === true ? pod : undefined;
    });
  }

  /** Waits as long as pods may take here; an error has what kubelet says of those of the namespace. */
  async wait<T>(what: string, namespace: string, probe: () => Promise<T>, timeoutMs = POD_MS): Promise<NonNullable<T>> {
    return waitFor(what, probe, { timeoutMs, everyMs: 200 }).catch(async (error: unknown) => {
      const { items } = await this.cluster.client.request<{ items: { reason: string; message: string; involvedObject: { name: string } }[] }>('GET', `/api/v1/namespaces/${namespace}/events`);
      const states = (await this.pods(namespace)).map(({ metadata, status }) => `${metadata.name}: ${JSON.stringify(status.containerStatuses ?? status.phase)}`);
      throw new Error([String(error), ...states, ...items.slice(-15).map(({ reason, message, involvedObject }) => `${involvedObject.name} ${reason}: ${message}`)].join('\n'), { cause: error });
    });
  }

  async container(namespace: string, name: string, container: string): Promise<PodContainer> {
    const found = (await this.pod(namespace, name)).status.containerStatuses?.find((each) => each.name === container);
    return { id: found?.containerID?.replace('containerd://', '') ?? '', ready: found?.ready ?? false, restarts: found?.restartCount ?? 0 };
  }

  /** A command in a running container, as `kubectl exec`. */
  async exec(namespace: string, name: string, container: string, command: readonly string[], options: { okCodes?: readonly number[]; timeoutMs?: number } = {}): Promise<RunResult> {
    const { id } = await this.container(namespace, name, container);
    return this.#ctr(['tasks', 'exec', '--exec-id', execId(), id, ...command], options);
  }

  /** The same, with its input and output. */
  async spawn(namespace: string, name: string, container: string, command: readonly string[]): Promise<ChildProcess> {
    const { id } = await this.container(namespace, name, container);
    const [enter = '', ...rest] = this.machine.inside('ctr', '--address', CONTAINERD_SOCKET, '--namespace', 'k8s.io', 'tasks', 'exec', '--exec-id', execId(), id, ...command);
    return spawn(enter, rest, { stdio: ['pipe', 'pipe', 'pipe'] });
  }

  /** As the kernel would when memory is short. */
  async kill(namespace: string, name: string, container: string): Promise<void> {
    const { id } = await this.container(namespace, name, container);
    await this.#ctr(['tasks', 'kill', '--signal', 'SIGKILL', id]);
  }

  /** All that a pod's container wrote, of all its starts. */
  logs(pod: KubeObject, container: string): string {
    const { namespace, name, uid } = pod.metadata;
    const folder = this.machine.path('/var/log/pods', `${namespace}_${name}_${uid}`, container);
    if (!existsSync(folder)) return '';
    // TIME STREAM F|P LINE
    return readdirSync(folder).sort().flatMap((file) => readFileSync(join(folder, file), 'utf8').split('\n').map((line) => line.split(' ').slice(3).join(' '))).join('\n');
  }

  async close(): Promise<void> {
    await this.#store.close();
    await this.cluster.close();
    await this.machine.close();
  }
}

let execs = 0;
function execId(): string {
  return `test-${process.pid}-${++execs}`;
}
