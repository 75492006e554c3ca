/**
 * A real Kubernetes API server for tests: etcd and kube-apiserver as processes of their own, with client certificates, RBAC,
 * service account tokens, and the CRDs of Istio and the Gateway API. On loopback there are no controllers and no nodes: what a
 * controller would make (default service accounts, EndpointSlices), a test makes by the API. On a machine of its own it is the
 * control plane of a real node (real-node.ts). `make test-kube` brings the parts.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { createWriteStream, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseAllDocuments, stringify } from 'yaml';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import { isRefusal, KubeClient, resourceOf, resourcePath, type ObjectPlace, type Resource } from '../../common/kube/client.js';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import type { Condition, KubeObject } from '../../common/kube/types.js';
import { ClosableStore, type Closable } from '../../common/lifecycle.js';
import { buildDir } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { Relay } from './relay.js';

const PARTS = join(buildDir, 'kube');
const START_MS = 60_000;

/** A request as the API server's audit log has it, when it was answered. */
export interface AuditedRequest {
  user: string;
  verb: string;
  group: string;
  resource: string;
  subresource?: string | undefined;
  namespace?: string | undefined;
  name?: string | undefined;
  code: number;
  uri: string;
}

interface AuditEvent {
  stage: string;
  verb: string;
  requestURI: string;
  user: { username: string };
  objectRef?: { apiGroup?: string; resource?: string; subresource?: string; namespace?: string; name?: string };
  responseStatus?: { code?: number };
}

type WrittenObject = KubeObject & Record<string, unknown>;

export interface ClusterOptions {
  /** Whether Istio's and the Gateway API's kinds are there; default true. */
  crds?: boolean;
  /** Where the servers run; default: here, on loopback. */
  machine?: ClusterMachine;
}

export interface ClusterMachine {
  /** For the cluster's files. */
  folder: string;
  /** What the API server listens on, and is known by in the cluster. */
  address: string;
  /** The command by which a program runs there. */
  command(command: string, ...args: string[]): string[];
  /** A connection to this address there. */
  connect(port: number): Promise<Socket>;
}

/** The Service `kubernetes`. */
const SERVICE_IP = '10.96.0.1';

export class KubeCluster implements Closable {
  readonly #store = new ClosableStore();
  readonly #resources = new Map<string, { resource: Resource; namespaced: boolean }>();
  #api: ChildProcess | undefined;

  private constructor(
    readonly folder: string,
    readonly ca: CertificateAuthority,
    readonly ports: { api: number; etcd: number; peer: number },
    /** With every right. */
    readonly client: KubeClient,
    /** As this process reaches it. */
    readonly url: string,
    /** The same as a kubeconfig. */
    readonly adminKubeconfig: string,
    readonly machine: ClusterMachine | undefined,
  ) {}

  static async start({ crds = true, machine }: ClusterOptions = {}): Promise<KubeCluster> {
    const folder = mkdtempSync(join(machine?.folder ?? tmpdir(), 'up-kube-'));
    const ca = await CertificateAuthority.create();
    const [api, etcd, peer] = await freePorts(3);
    const server = await issueServerCertificate(ca, { dnsNames: ['kubernetes', 'kubernetes.default.svc'], ips: ['127.0.0.1', ...(machine ? [machine.address, SERVICE_IP] : [])] });
    const files = { 'ca.crt': ca.rootPem, 'api.crt': server.certificatePem, 'api.key': server.privateKeyPem, 'accounts.key': generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'pem', type: 'sec1' }) };
    for (const [name, text] of Object.entries({ ...files, 'audit.yaml': stringify({ apiVersion: 'audit.k8s.io/v1', kind: 'Policy', omitStages: ['RequestReceived'], rules: [{ level: 'Metadata' }] }) })) writeFileSync(join(folder, name), text, { mode: 0o600 });
    const admin = await issueServerCertificate(ca, { dnsNames: ['admin'], organization: 'system:masters' });
    // By which the API server proves itself to the kubelet.
    for (const [name, text] of Object.entries({ 'admin.crt': admin.certificatePem, 'admin.key': admin.privateKeyPem })) writeFileSync(join(folder, name), text, { mode: 0o600 });
    const user = { 'client-certificate-data': base64(admin.certificatePem), 'client-key-data': base64(admin.privateKeyPem) };
    const relay = machine && new Relay((port) => machine.connect(port));
    const url = `https://127.0.0.1:${relay ? await relay.listen(api!) : api}`;
    const kubeconfig = kubeconfigText(url, ca.rootPem, user);
    const client = new KubeClient(parseKubeconfig(kubeconfig, { place: 'of the test' }), 'test');
    const cluster = new KubeCluster(folder, ca, { api: api!, etcd: etcd!, peer: peer! }, client, url, kubeconfig, machine);
    if (relay) cluster.#store.add(relay);
    try {
      cluster.#startEtcd();
      await cluster.startApi();
      if (crds) await cluster.installCrds();
    } catch (error) {
      await cluster.close();
      throw new Error(`starting the API server: ${(error as Error).message}\n${tail(join(folder, 'etcd.log'))}\n${tail(join(folder, 'api.log'))}`, { cause: error });
    }
    return cluster;
  }

  /** As the machine's own programs reach it. */
  get innerUrl(): string {
    return this.machine ? `https://${this.machine.address}:${this.ports.api}` : this.url;
  }

  /** A kubeconfig of one of Kubernetes' own parts, by client certificate. */
  async componentKubeconfig(user: string, group?: string): Promise<string> {
    const { certificatePem, privateKeyPem } = await issueServerCertificate(this.ca, { dnsNames: [user], ...(group === undefined ? {} : { organization: group }) });
    return kubeconfigText(this.innerUrl, this.ca.rootPem, { 'client-certificate-data': base64(certificatePem), 'client-key-data': base64(privateKeyPem) });
  }

  #startEtcd(): void {
    const { etcd, peer } = this.ports;
    const [client, peers] = [`http://127.0.0.1:${etcd}`, `http://127.0.0.1:${peer}`];
    this.startPart('etcd', '/usr/bin/etcd', ['--data-dir', join(this.folder, 'etcd'), '--listen-client-urls', client, '--advertise-client-urls', client, '--listen-peer-urls', peers, '--initial-advertise-peer-urls', peers, '--initial-cluster', `default=${peers}`, '--unsafe-no-fsync']);
  }

  /** Returns when it answers; again after stopApi(). */
  async startApi(): Promise<void> {
    const file = (name: string): string => join(this.folder, name);
    this.#api = this.#spawn('api', join(PARTS, 'kube-apiserver'), [
      `--etcd-servers=http://127.0.0.1:${this.ports.etcd}`,
      `--bind-address=${this.machine?.address ?? '127.0.0.1'}`,
      `--secure-port=${this.ports.api}`,
      `--tls-cert-file=${file('api.crt')}`,
      `--tls-private-key-file=${file('api.key')}`,
      `--client-ca-file=${file('ca.crt')}`,
      '--service-account-issuer=https://kubernetes.default.svc.cluster.local',
      `--service-account-key-file=${file('accounts.key')}`,
      `--service-account-signing-key-file=${file('accounts.key')}`,
      '--authorization-mode=Node,RBAC',
      '--allow-privileged=true',
      '--enable-admission-plugins=NodeRestriction',
      '--service-cluster-ip-range=10.96.0.0/16',
      // A loopback address can't be an endpoint of the Service kubernetes.
      ...(this.machine ? ['--allow-privileged=true', '--kubelet-preferred-address-types=InternalIP', `--kubelet-client-certificate=${file('admin.crt')}`, `--kubelet-client-key=${file('admin.key')}`] : ['--endpoint-reconciler-type=none']),
      `--audit-policy-file=${file('audit.yaml')}`,
      `--audit-log-path=${file('audit.log')}`,
      '--etcd-compaction-interval=0',
      '--shutdown-delay-duration=0',
      '--v=1',
    ]);
    await waitFor('the API server', () => this.client.request('GET', '/readyz?verbose', {}).then(() => true, (error: unknown) => error instanceof SyntaxError), { timeoutMs: START_MS, everyMs: 100 });
  }

  async stopApi(): Promise<void> {
    const child = this.#api;
    this.#api = undefined;
    if (child) await stop(child);
  }

  /** Forgets all versions but the newest: who watches from an older one is told 410. */
  async compact(): Promise<void> {
    const ask = async (path: string, body: object): Promise<{ header?: { revision?: string } }> => (await fetch(`http://127.0.0.1:${this.ports.etcd}${path}`, { method: 'POST', body: JSON.stringify(body) })).json() as Promise<{ header?: { revision?: string } }>;
    const { header } = await ask('/v3/kv/range', { key: base64('/') });
    await ask('/v3/kv/compaction', { revision: header?.revision, physical: true });
  }

  /** All that were answered (watches: begun) since the start, oldest first. */
  requests(): AuditedRequest[] {
    return readFileSync(join(this.folder, 'audit.log'), 'utf8')
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as AuditEvent)
      .filter(({ stage, verb }) => stage === (verb === 'watch' ? 'ResponseStarted' : 'ResponseComplete') || stage === 'Panic')
      .map(({ verb, requestURI, user, objectRef, responseStatus }) => ({ user: user.username, verb, group: objectRef?.apiGroup ?? '', resource: objectRef?.resource ?? '', subresource: objectRef?.subresource, namespace: objectRef?.namespace, name: objectRef?.name, code: responseStatus?.code ?? 0, uri: requestURI }));
  }

  /** What `kubectl apply --server-side -f` does. @returns the objects as they are stored */
  async apply(yaml: string): Promise<KubeObject[]> {
    const applied: KubeObject[] = [];
    for (const document of parseAllDocuments(yaml)) {
      const object = document.toJS() as WrittenObject | null;
      if (!object) continue;
      const { resource, namespaced } = await this.#resourceOf(object);
      if (namespaced) object.metadata.namespace ??= 'default';
      applied.push(await this.client.apply(resource, object));
    }
    return applied;
  }

  async merge(apiVersion: string, kind: string, place: ObjectPlace, patch: object): Promise<void> {
    const { resource } = await this.#resourceOf({ apiVersion, kind });
    await this.client.merge(resource, place, patch);
  }

  /** Its `status`, which is a resource of its own. */
  setStatus(apiVersion: string, kind: string, place: ObjectPlace, status: object): Promise<void> {
    return this.merge(apiVersion, kind, { ...place, subresource: 'status' }, { status });
  }

  async get<T extends KubeObject>(apiVersion: string, kind: string, place: ObjectPlace): Promise<T | undefined> {
    const { resource } = await this.#resourceOf({ apiVersion, kind });
    return this.client.get<T>(resource, place).catch((error: unknown) => {
      if (isRefusal(error, 404)) return undefined;
      throw error;
    });
  }

  async delete(apiVersion: string, kind: string, place: ObjectPlace): Promise<void> {
    const { resource } = await this.#resourceOf({ apiVersion, kind });
    await this.client.delete(resource, place);
  }

  /** With the service account that each Pod has if it names none. */
  async namespace(name: string, labels: Record<string, string> = {}): Promise<void> {
    await this.apply([{ apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } }, { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: 'default', namespace: name } }].map((object) => stringify(object)).join('---\n'));
  }

  /** TokenRequest, as kubelet makes it for a projected volume. @param seconds at least 600 */
  async token(namespace: string, name: string, { audience, seconds = 3600, pod }: { audience?: string; seconds?: number; pod?: KubeObject } = {}): Promise<string> {
    const spec = { ...(audience === undefined ? {} : { audiences: [audience] }), expirationSeconds: seconds, ...(pod ? { boundObjectRef: { apiVersion: 'v1', kind: 'Pod', name: pod.metadata.name, uid: pod.metadata.uid } } : {}) };
    const path = resourcePath(resourceOf('v1', 'ServiceAccount'), { namespace, name, subresource: 'token' });
    const { status } = await this.client.request<{ status: { token: string } }>('POST', path, { body: { apiVersion: 'authentication.k8s.io/v1', kind: 'TokenRequest', spec } });
    return status.token;
  }

  /** A kubeconfig with a token of this service account. */
  async kubeconfigOf(namespace: string, account: string): Promise<string> {
    return kubeconfigText(this.url, this.ca.rootPem, { token: await this.token(namespace, account) });
  }

  async #resourceOf({ apiVersion, kind }: { apiVersion: string; kind: string }): Promise<{ resource: Resource; namespaced: boolean }> {
    const key = `${apiVersion}/${kind}`;
    const known = this.#resources.get(key);
    if (known) return known;
    const { resources } = await this.client.request<{ resources: { name: string; kind: string; namespaced: boolean }[] }>('GET', `/${apiVersion.includes('/') ? 'apis' : 'api'}/${apiVersion}`);
    const found = resources.find((candidate) => candidate.kind === kind && !candidate.name.includes('/'));
    if (!found) throw new Error(`the API server knows no ${key}`);
    const entry = { resource: { apiVersion, kind, plural: found.name }, namespaced: found.namespaced };
    this.#resources.set(key, entry);
    return entry;
  }

  async installCrds(): Promise<void> {
    const folder = join(PARTS, 'crds');
    const all = (await Promise.all(readdirSync(folder).map((name) => this.apply(readFileSync(join(folder, name), 'utf8'))))).flat();
    const resource = resourceOf('apiextensions.k8s.io/v1', 'CustomResourceDefinition');
    await waitFor('the CRDs', async () => {
      const { items } = await this.client.request<{ items: { status?: { conditions?: Condition[] } }[] }>('GET', resourcePath(resource));
      return items.filter(({ status }) => status?.conditions?.some(({ type, status: is }) => type === 'Established' && is === 'True')).length === all.length;
    }, { timeoutMs: START_MS, everyMs: 100 });
  }

  /** A program of the cluster's: ends with this process however that ends. */
  startPart(name: string, command: string, args: readonly string[]): void {
    const child = this.#spawn(name, command, args);
    this.#store.defer(() => stop(child));
  }

  #spawn(name: string, command: string, args: readonly string[]): ChildProcess {
    const whole = this.machine?.command(command, ...args) ?? [command, ...args];
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...whole], { stdio: ['ignore', 'pipe', 'pipe'] });
    const log = createWriteStream(join(this.folder, `${name}.log`), { flags: 'a' });
    child.stdout.pipe(log);
    child.stderr.pipe(log);
    return child;
  }

  async close(): Promise<void> {
    this.client.close();
    await this.stopApi();
    await this.#store.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export function kubeconfigText(server: string, caPem: string, user: object): string {
  return stringify({ clusters: [{ name: 'c', cluster: { server, 'certificate-authority-data': base64(caPem) } }], users: [{ name: 'u', user }], contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }], 'current-context': 'x' });
}

export const base64 = (text: string): string => Buffer.from(text).toString('base64');

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), 10_000);
  await ended;
  clearTimeout(timer);
}

/** All held at once, so that they differ. */
export async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

function tail(file: string): string {
  try {
    return readFileSync(file, 'utf8').split('\n').slice(-15).join('\n');
  } catch {
    return '';
  }
}
