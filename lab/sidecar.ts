/**
 * A pod's Envoy sidecar as Istio's injector and agent set it up: user 1337, the same static resources and ports, everything
 * else by delta ADS, certificates by SDS over a Unix socket, traffic by Istio's iptables rules.
 */
import { chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import type { CertificateAuthority } from '../common/identity/ca.js';
import { SdsServer } from '../common/identity/sds-server.js';
import { INBOUND_PASSTHROUGH_SOURCE, istioRestoreInput, PROXY_UID } from '../common/istio-iptables.js';
import type { ContainerRecord } from '../common/lab-api.js';
import type { Closable } from '../common/lifecycle.js';
import { run } from '../common/process.js';
import { ContainerProcess } from './container.js';
import { execHelper } from './names.js';

const READY_POLL_MS = 200;
/** Of Istio's ports: merged statistics, and health for the kubelet. */
const PROMETHEUS_PORT = 15090;
const HEALTH_PORT = 15021;
export const ISTIO_PROXY = 'istio-proxy';

export interface SidecarPod {
  readonly desired: {
    name: string;
    namespace: string;
    owner: string;
    spec: { serviceAccountName?: string; containers: { name: string }[] };
  };
  readonly labels: Record<string, string>;
  readonly annotations: Record<string, string>;
  readonly ips: string[];
  readonly nodeName: string;
  readonly netns: string;
}

export interface SidecarOptions {
  pod: SidecarPod;
  /** The pod's own directory and the cgroup leaf for Envoy. */
  dir: string;
  cgroup: string;
  envoy: string;
  concurrency: number;
  /** The socket at which the lab hands streams on to the control plane. */
  discoverySocket: string;
  ca: CertificateAuthority;
  onChange: () => void;
  onError: (error: unknown) => void;
}

export class Sidecar implements Closable {
  readonly #options: SidecarOptions;
  readonly #dir: string;
  readonly adminSocket: string;
  readonly #log: string;
  #sds: SdsServer | undefined;
  #envoy: ContainerProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #ready = false;
  #closed = false;

  constructor(options: SidecarOptions) {
    this.#options = options;
    this.#dir = join(options.dir, ISTIO_PROXY);
    this.adminSocket = join(this.#dir, 'admin.sock');
    this.#log = join(options.dir, 'logs', `${ISTIO_PROXY}.log`);
  }

  get ready(): boolean {
    return this.#ready;
  }

  get sds(): SdsServer | undefined {
    return this.#sds;
  }

  /** For `lab ps`: what it lacks. */
  get waitingFor(): string {
    return this.#envoy?.pid === undefined
      ? `Envoy ended (${this.#envoy?.lastExit ?? 'not started'})`
      : 'no listeners yet: is a control plane running?';
  }

  async start(): Promise<void> {
    const { pod, ca, cgroup, envoy, concurrency } = this.#options;
    mkdirSync(this.#dir, { recursive: true });
    chownSync(this.#dir, PROXY_UID, PROXY_UID); // Envoy makes its admin socket there
    const socketPath = join(this.#dir, 'sds.sock');
    const identity = { namespace: pod.desired.namespace, serviceAccount: pod.desired.spec.serviceAccountName ?? 'default' };
    this.#sds = await SdsServer.listen({
      socketPath,
      source: { rootPem: ca.rootPem, issue: () => ca.issue(identity) },
      onError: this.#options.onError,
    });
    chownSync(socketPath, PROXY_UID, PROXY_UID);
    const bootstrap = join(this.#dir, 'envoy.json');
    writeFileSync(bootstrap, JSON.stringify(this.#bootstrap(socketPath), null, 1));
    await this.#writeRules();
    this.#envoy = new ContainerProcess({
      name: ISTIO_PROXY,
      plan: {
        file: execHelper,
        args: [
          '--cgroup',
          cgroup,
          '--netns',
          pod.netns,
          '--uid',
          String(PROXY_UID),
          '--gid',
          String(PROXY_UID),
          '--die-with-parent',
          '--setsid',
          '--',
        ],
        env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin' },
      },
      argv: [
        envoy,
        ...[
          '-c',
          bootstrap,
          '--concurrency',
          String(concurrency),
          '--disable-hot-restart',
          '--log-level',
          'warning',
          '--component-log-level',
          'misc:error',
        ],
        ...['--drain-time-s', '1', '--parent-shutdown-time-s', '2'],
      ],
      logPath: this.#log,
      restartPolicy: 'Always',
      onChange: () => {
        if (this.#envoy?.pid === undefined) this.#ready = false;
        this.#options.onChange();
      },
    });
    this.#poll();
  }

  async #writeRules(): Promise<void> {
    const { pod } = this.#options;
    const restore = (family: 'ipv4' | 'ipv6', command: string): Promise<unknown> =>
      run(execHelper, ['--netns', pod.netns, '--', command, '--noflush'], {
        input: istioRestoreInput({ family }),
        timeoutMs: 10_000,
      });
    await restore('ipv4', 'iptables-restore');
    if (pod.ips.length < 2) return;
    await restore('ipv6', 'ip6tables-restore');
    // 127.0.0.6 belongs to every lo; its IPv6 counterpart has to be added, as istio-iptables does.
    await run(execHelper, [
      '--netns',
      pod.netns,
      '--',
      'ip',
      '-6',
      'addr',
      'add',
      INBOUND_PASSTHROUGH_SOURCE.ipv6,
      'dev',
      'lo',
      'nodad',
    ]);
  }

  #poll(): void {
    this.#timer = setTimeout(
      () => {
        void this.#isReady().then((ready) => {
          if (this.#closed) return;
          if (ready !== this.#ready) {
            this.#ready = ready;
            this.#options.onChange();
          }
          this.#poll();
        });
      },
      this.#ready ? 5_000 : READY_POLL_MS,
    );
  }

  /** As Istio's agent judges: initialized, and both clusters and listeners came from the control plane. */
  async #isReady(): Promise<boolean> {
    try {
      const stats = await this.admin(
        '/stats?usedonly&filter=^(cluster_manager.cds.update_success|listener_manager.lds.update_success|listener_manager.workers_started|server.state)$',
      );
      const value = (name: string): number =>
        Number(new RegExp(`^${name.replaceAll('.', '\\.')}: (\\d+)$`, 'm').exec(stats)?.[1] ?? 0);
      return (
        value('cluster_manager.cds.update_success') > 0 &&
        value('listener_manager.lds.update_success') > 0 &&
        value('listener_manager.workers_started') === 1 &&
        value('server.state') === 0
      );
    } catch {
      return false;
    }
  }

  /** What Envoy's admin interface answers, e.g. to `/config_dump`. */
  async admin(path: string, options: { method?: string; timeoutMs?: number } = {}): Promise<string> {
    return new Promise((resolve, reject) => {
      const outgoing = request(
        {
          socketPath: this.adminSocket,
          path,
          method: options.method ?? 'GET',
          timeout: options.timeoutMs ?? 2_000,
          agent: false,
        },
        (response) => {
          const chunks: Buffer[] = [];
          response.on('data', (chunk: Buffer) => chunks.push(chunk));
          response.once('error', reject);
          response.once('end', () => {
            const body = Buffer.concat(chunks).toString('utf8');
            if (response.statusCode === 200) resolve(body);
            else reject(new Error(`asking Envoy's admin for ${path}: ${response.statusCode} ${body.slice(0, 200)}`));
          });
        },
      );
      outgoing.once('timeout', () => outgoing.destroy(new Error('timeout')));
      outgoing.once('error', reject);
      outgoing.end();
    });
  }

  #bootstrap(sdsSocket: string): unknown {
    const { pod, discoverySocket } = this.#options;
    const { name, namespace, owner, spec } = pod.desired;
    const workload = owner.slice(owner.lastIndexOf('/') + 1);
    const canonical =
      pod.labels['service.istio.io/canonical-name'] ?? pod.labels['app.kubernetes.io/name'] ?? pod.labels['app'] ?? workload;
    const pipe = (path: string): unknown => ({ endpoint: { address: { pipe: { path } } } });
    const cluster = (clusterName: string, path: string, http2: boolean): unknown => ({
      name: clusterName,
      type: 'STATIC',
      connect_timeout: '1s',
      load_assignment: { cluster_name: clusterName, endpoints: [{ lb_endpoints: [pipe(path)] }] },
      ...(http2
        ? {
            typed_extension_protocol_options: {
              'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
                '@type': 'type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions',
                explicit_http_config: { http2_protocol_options: {} },
              },
            },
          }
        : {}),
    });
    const adminListener = (port: number, prefix: string, rewrite: string): unknown => ({
      name: `static_${port}`,
      address: {
        socket_address:
          pod.ips.length < 2 ? { address: '0.0.0.0', port_value: port } : { address: '::', port_value: port, ipv4_compat: true },
      },
      filter_chains: [
        {
          filters: [
            {
              name: 'envoy.filters.network.http_connection_manager',
              typed_config: {
                '@type': 'type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager',
                stat_prefix: `static_${port}`,
                route_config: {
                  virtual_hosts: [
                    {
                      name: 'backend',
                      domains: ['*'],
                      routes: [{ match: { prefix }, route: { cluster: 'admin', prefix_rewrite: rewrite } }],
                    },
                  ],
                },
                http_filters: [
                  {
                    name: 'envoy.filters.http.router',
                    typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' },
                  },
                ],
              },
            },
          ],
        },
      ],
    });
    return {
      node: {
        id: `sidecar~${pod.ips[0]}~${name}.${namespace}~${namespace}.svc.cluster.local`,
        cluster: `${canonical}.${namespace}`,
        metadata: {
          NAME: name,
          NAMESPACE: namespace,
          LABELS: pod.labels,
          ANNOTATIONS: pod.annotations,
          SERVICE_ACCOUNT: spec.serviceAccountName ?? 'default',
          WORKLOAD_NAME: workload,
          NODE_NAME: pod.nodeName,
          INSTANCE_IPS: pod.ips.join(','),
          APP_CONTAINERS: spec.containers.map((container) => container.name).join(','),
          INTERCEPTION_MODE: 'REDIRECT',
          CLUSTER_ID: 'Kubernetes',
          MESH_ID: 'cluster.local',
          ISTIO_VERSION: '1.27.0',
          PROXY_CONFIG: {},
        },
      },
      admin: { address: { pipe: { path: this.adminSocket } } },
      dynamic_resources: {
        ads_config: {
          api_type: 'DELTA_GRPC',
          transport_api_version: 'V3',
          set_node_on_first_message_only: true,
          grpc_services: [{ envoy_grpc: { cluster_name: 'xds-grpc' } }],
        },
        cds_config: { ads: {}, initial_fetch_timeout: '0s', resource_api_version: 'V3' },
        lds_config: { ads: {}, initial_fetch_timeout: '0s', resource_api_version: 'V3' },
      },
      static_resources: {
        clusters: [
          cluster('xds-grpc', discoverySocket, true),
          cluster('sds-grpc', sdsSocket, true),
          cluster('admin', this.adminSocket, false),
        ],
        listeners: [
          adminListener(PROMETHEUS_PORT, '/stats/prometheus', '/stats/prometheus'),
          adminListener(HEALTH_PORT, '/healthz/ready', '/ready'),
        ],
      },
    };
  }

  record(): ContainerRecord {
    const ports = [{ name: 'http-envoy-prom', containerPort: PROMETHEUS_PORT, protocol: 'TCP' }];
    return {
      name: ISTIO_PROXY,
      image: 'envoy',
      ports,
      ...(this.#envoy?.pid === undefined ? {} : { pid: this.#envoy.pid }),
      ready: this.#ready,
      restarts: this.#envoy?.restarts ?? 0,
      log: this.#log,
    };
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#envoy?.close();
    this.#sds?.close();
  }
}
