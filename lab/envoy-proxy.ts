/**
 * A pod's own Envoy, sidecar or gateway, as Istio's injector and agent set it up: user 1337, delta ADS, certificates by SDS
 * over a Unix socket. A sidecar's pod gets the rules of its init container as well; a gateway's traffic comes to its ports.
 */
import { chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import type { CertificateAuthority } from '../common/identity/ca.js';
import { UnderpassError } from '../common/errors.js';
import { fileSecret } from '../common/identity/file-secrets.js';
import { SdsServer } from '../common/identity/sds-server.js';
import { PROXY_UID, type CaptureSettings } from '../common/istio-iptables.js';
import type { ContainerRecord } from '../common/lab-api.js';
import type { Closable } from '../common/lifecycle.js';
import { envoyBinary } from '../common/paths.js';
import { ContainerProcess } from './container.js';
import { bootstrap, HEALTH_PORT, PROMETHEUS_PORT, type ProxyPod, type ProxyRole } from './envoy-bootstrap.js';
import { execHelper } from './names.js';
import { runProbe } from './readiness.js';
import { writeSidecarRules } from './sidecar-rules.js';

const READY = { httpGet: { path: '/healthz/ready', port: HEALTH_PORT } };
/** unix(7): 108, with the zero at the end. */
const MAX_SOCKET_PATH_BYTES = 107;
const READY_POLL_MS = 200;
const READY_AGAIN_POLL_MS = 5_000;
export const ISTIO_PROXY = 'istio-proxy';

export interface EnvoyProxyOptions {
  role: ProxyRole;
  pod: ProxyPod;
  /** Its container, as injected or as the pod's YAML has it. */
  container: { name: string; image?: string; ports?: ContainerRecord['ports'] };
  env: Record<string, string>;
  /** What of the pod's traffic comes to it by iptables rules; nothing when absent. */
  capture?: CaptureSettings;
  clusterId: string;
  /** The pod's own directory, the cgroup leaf for Envoy, and underpass-exec's options for the pod's own files. */
  dir: string;
  cgroup: string;
  mounts: readonly string[];
  /** A file in one of its container's volumes. */
  readFile: (path: string) => string | undefined;
  /** Default: the one that the product found or installed. */
  envoy?: string;
  concurrency: number;
  /** The socket at which the lab hands streams on to the control plane. */
  discoverySocket: string;
  ca: CertificateAuthority;
  onChange: () => void;
  onError: (error: unknown) => void;
}

/** A variable of the proxy's container: Envoy is without these, as an older one, or one that was built smaller, would be. */
const DISABLED_EXTENSIONS = 'ENVOY_DISABLED_EXTENSIONS';

export class EnvoyProxy implements Closable {
  readonly #options: EnvoyProxyOptions;
  readonly #dir: string;
  readonly name: string;
  readonly adminSocket: string;
  readonly #log: string;
  #sds: SdsServer | undefined;
  #envoy: ContainerProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #ready = false;
  #closed = false;

  constructor(options: EnvoyProxyOptions) {
    this.#options = options;
    this.name = options.container.name;
    this.#dir = join(options.dir, ISTIO_PROXY);
    this.adminSocket = join(this.#dir, 'admin.sock');
    if (Buffer.byteLength(this.adminSocket) > MAX_SOCKET_PATH_BYTES) {
      throw new UnderpassError('UNDERPASS_LAB_NAME', `placing the socket ${this.adminSocket}: a socket's path has ${MAX_SOCKET_PATH_BYTES} bytes at most; give the lab a shorter name`);
    }
    this.#log = join(options.dir, 'logs', `${this.name}.log`);
  }

  get role(): ProxyRole {
    return this.#options.role;
  }

  get ready(): boolean {
    return this.#ready;
  }

  get started(): boolean {
    return this.#envoy !== undefined;
  }

  get running(): boolean {
    return this.#envoy?.pid !== undefined;
  }

  get sds(): SdsServer | undefined {
    return this.#sds;
  }

  /** For `lab ps`: what it lacks. */
  get waitingFor(): string {
    return this.running
      ? 'no listeners yet: is a control plane running?'
      : `Envoy ended (${this.#envoy?.lastExit ?? 'not started'})`;
  }

  async start(): Promise<void> {
    const { role, pod, ca, clusterId, env, capture, discoverySocket } = this.#options;
    mkdirSync(this.#dir, { recursive: true });
    chownSync(this.#dir, PROXY_UID, PROXY_UID); // Envoy makes its admin socket there
    const sdsSocket = join(this.#dir, 'sds.sock');
    const identity = { namespace: pod.desired.namespace, serviceAccount: pod.desired.spec.serviceAccountName ?? 'default' };
    this.#sds = await SdsServer.listen({
      socketPath: sdsSocket,
      source: { rootPem: ca.rootPem, issue: () => ca.issue(identity) },
      more: (name) => fileSecret(name, this.#options.readFile),
      onError: this.#options.onError,
    });
    chownSync(sdsSocket, PROXY_UID, PROXY_UID);
    const config = join(this.#dir, 'envoy.json');
    const content = bootstrap({ role, pod, clusterId, env, discoverySocket, sdsSocket, adminSocket: this.adminSocket });
    writeFileSync(config, JSON.stringify(content, null, 1));
    if (capture) await writeSidecarRules(pod.netns, pod.ips.length > 1, capture);
    this.#envoy = new ContainerProcess({
      name: this.name,
      plan: { file: execHelper, args: this.#helperArguments(), env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin' } },
      argv: this.#command(config),
      logPath: this.#log,
      restartPolicy: 'Always',
      onChange: () => {
        if (!this.running) this.#ready = false;
        this.#options.onChange();
      },
    });
    this.#poll();
  }

  /** The pod's own resolv.conf and hosts count for Envoy too: DNS clusters ask the cluster's DNS. */
  #helperArguments(): string[] {
    const { cgroup, pod, mounts } = this.#options;
    const user = ['--uid', String(PROXY_UID), '--gid', String(PROXY_UID)];
    return ['--cgroup', cgroup, '--netns', pod.netns, ...mounts, ...user, '--die-with-parent', '--setsid', '--'];
  }

  #command(config: string): string[] {
    const { envoy = envoyBinary(), concurrency, env } = this.#options;
    const logging = ['--log-level', 'warning', '--component-log-level', 'misc:error'];
    // As Istio's: with the first answer that follows a change a connection is asked to end.
    const times = ['--drain-time-s', '1', '--drain-strategy', 'immediate', '--parent-shutdown-time-s', '2'];
    const without = env[DISABLED_EXTENSIONS] ? ['--disable-extensions', env[DISABLED_EXTENSIONS]] : [];
    return [envoy, '-c', config, '--concurrency', String(concurrency), '--disable-hot-restart', ...logging, ...times, ...without];
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
      this.#ready ? READY_AGAIN_POLL_MS : READY_POLL_MS,
    );
  }

  /** As Istio's agent judges, initialized, and both clusters and listeners came from the control plane; asked as kubelet does, so that one whose listeners were drained is not ready. */
  async #isReady(): Promise<boolean> {
    const { pod } = this.#options;
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
        value('server.state') === 0 &&
        (await runProbe({ container: { name: this.name }, netns: pod.netns, address: pod.ips[0]!, exec: () => Promise.resolve(false) }, READY))
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

  record(): ContainerRecord {
    const { container } = this.#options;
    const ports = [
      ...(container.ports ?? []).filter(({ containerPort }) => containerPort !== PROMETHEUS_PORT),
      { name: 'http-envoy-prom', containerPort: PROMETHEUS_PORT, protocol: 'TCP' },
    ];
    return {
      name: this.name,
      image: container.image ?? 'envoy',
      ports,
      ...(this.#envoy?.pid === undefined ? {} : { pid: this.#envoy.pid }),
      ready: this.#ready,
      restarts: this.#envoy?.restarts ?? 0,
      log: this.#log,
    };
  }

  /** Secrets in files may have changed. */
  filesChanged(): void {
    this.#sds?.refresh();
  }

  async stop(graceMs: number): Promise<void> {
    await this.#envoy?.stop(graceMs);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#envoy?.close();
    this.#sds?.close();
  }
}
