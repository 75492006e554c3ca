/** `underpass pilot` as its Deployment runs it: a process of its own, as nobody, with no capability, on a root file system that can't be written to, and with nothing but the account that Kubernetes mounts. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { freePorts, type KubeCluster } from './cluster.js';

/** In a mount namespace of its own: the account where kubelet mounts it, all else read-only; then as nobody. */
const AS_A_POD = `
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
cp -r "$0" /run/secrets/kubernetes.io/serviceaccount
chmod -R a+rX /run/secrets
findmnt -rno TARGET | while read -r place; do
  case $place in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;; esac
done
if touch /tmp/up-kube-writable /run/up-kube-writable 2>/dev/null; then echo 'the root file system can be written to' >&2; exit 9; fi
exec setpriv --pdeathsig KILL --reuid 65532 --regid 65532 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
`;

export class Replica {
  readonly #folder = mkdtempSync(join(tmpdir(), 'up-kube-replica-'));
  #child: ChildProcess | undefined;
  log = '';

  private constructor(readonly cluster: KubeCluster, readonly ports: { plain: number; secure: number; webhooks: number; monitoring: number }) {}

  /** @param args more than the Deployment's @param token of another account than pilot's */
  static async start(cluster: KubeCluster, { args = [], token }: { args?: readonly string[]; token?: string } = {}): Promise<Replica> {
    const [plain, secure, webhooks, monitoring] = (await freePorts(4)) as [number, number, number, number];
    const replica = new Replica(cluster, { plain, secure, webhooks, monitoring });
    const account = join(replica.#folder, 'account');
    mkdirSync(account);
    writeFileSync(join(account, 'ca.crt'), cluster.ca.rootPem);
    writeFileSync(join(account, 'token'), token ?? (await cluster.token('istio-system', 'istiod')));
    const at = (port: number): string => `127.0.0.1:${port}`;
    const pilot = [join(projectRoot, 'bin', 'underpass'), 'pilot', '--listen', at(plain), '--secure-listen', at(secure), '--secure-host', '127.0.0.1', '--webhook-listen', at(webhooks), '--monitoring-listen', at(monitoring), ...args];
    const env = { PATH: process.env['PATH'], KUBERNETES_SERVICE_HOST: '127.0.0.1', KUBERNETES_SERVICE_PORT: String(cluster.ports.api) };
    const child = spawn('unshare', ['-m', 'sh', '-ec', AS_A_POD, account, ...pilot], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (replica.log += text));
    replica.#child = child;
    return replica;
  }

  async ready(): Promise<this> {
    await waitFor('the replica', async () => (await this.get('/ready')).code === 200, { timeoutMs: 60_000, everyMs: 50 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${this.log.slice(-3_000)}`);
    });
    return this;
  }

  /** Of its monitoring port; 0: nobody answers. */
  async get(path: string): Promise<{ code: number; text: string }> {
    try {
      const response = await fetch(`http://127.0.0.1:${this.ports.monitoring}${path}`);
      return { code: response.status, text: await response.text() };
    } catch {
      return { code: 0, text: '' };
    }
  }

  async isWriter(): Promise<boolean> {
    const { code, text } = await this.get('/debug/status');
    return code === 200 && (JSON.parse(text) as { isWriter: boolean }).isWriter;
  }

  /** Returns when it has ended. */
  async end(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<number | null> {
    const child = this.#child;
    this.#child = undefined;
    if (child && child.exitCode === null && child.signalCode === null) {
      const ended = once(child, 'exit');
      child.kill(signal);
      await ended;
    }
    rmSync(this.#folder, { recursive: true, force: true });
    return child?.exitCode ?? null;
  }
}
