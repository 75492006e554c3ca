/**
 * A node of the lab whose pods a real ztunnel serves, as Istio runs it: a process in the namespace of a pod of its own
 * (`istio-system/ztunnel`), with this control plane for xDS and certificates, and the lab's pods redirected to it. ZTUNNEL_BIN
 * is the program; nothing here brings one.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import type { MeshWorld } from '../mesh/world.js';

export const ZTUNNEL_POD = 'istio-system/ztunnel';
/** Goes into the world's YAML. */
export const ztunnelYaml = (node: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ztunnel, namespace: istio-system, labels: {app: ztunnel}}
spec: {nodeName: ${node}, serviceAccountName: ztunnel, containers: [{name: istio-proxy, image: sleep}]}
---`;
/** What `localhost:15012` of ztunnel's namespace leads to; pilot is not to be reached from there otherwise. */
const RELAY = "const net = require('node:net'); net.createServer((inner) => { const outer = net.connect(process.argv[1]); for (const [a, b] of [[inner, outer], [outer, inner]]) { a.on('error', () => b.destroy()).on('close', () => b.destroy()); a.pipe(b); } }).listen(15012, '127.0.0.1', () => console.log('ready'));";
/**
 * As Istio's CNI agent writes them into a pod (https://github.com/istio/istio/blob/master/architecture/ambient/ztunnel-cni-lifecycle.md):
 * 0x539 marks ztunnel's own packets, 0x111 the connections that it opens with a caller's address, whose answers are for it.
 */
const rules = (loopback: string): string => `*mangle
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark
COMMIT
*nat
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d ${loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d ${loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
-A ISTIO_PRERT ! -d ${loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
COMMIT
`;

/** A line of ztunnel's log for a connection that ended. */
export interface Access {
  direction: 'inbound' | 'outbound';
  'src.addr'?: string;
  'src.identity'?: string;
  'dst.addr'?: string;
  'dst.hbone_addr'?: string;
  'dst.identity'?: string;
  'dst.service'?: string;
  error?: string;
}

export type ZtunnelWorld = Pick<MeshWorld, 'lab' | 'ca' | 'pilot' | 'token'>;

export class ZtunnelNode {
  readonly #folder = mkdtempSync(join(tmpdir(), 'up-ztunnel-'));
  readonly #children: ChildProcess[] = [];
  readonly #sockets = new Set<Socket>();
  #pilot: Server | undefined;
  #workloads: { child: ChildProcess; answers: AsyncIterator<string> } | undefined;
  /** All that it wrote. */
  log = '';
  readonly accesses: Access[] = [];

  /** @param network that its pods are on */
  constructor(readonly world: ZtunnelWorld, readonly node: string, readonly network = '') {}

  static binary(): string {
    const path = process.env['ZTUNNEL_BIN'] ?? '';
    assert.ok(path, 'ZTUNNEL_BIN is not set: the path of a ztunnel, built from https://github.com/istio/ztunnel');
    accessSync(path, constants.X_OK);
    return path;
  }

  async start(): Promise<void> {
    const { lab, ca, pilot } = this.world;
    const [root, token, socket, zds] = ['root.pem', 'token', 'pilot.sock', 'zds.sock'].map((name) => join(this.#folder, name)) as [string, string, string, string];
    writeFileSync(root, ca.rootPem);
    writeFileSync(token, await this.world.token({ namespace: 'istio-system', serviceAccount: 'ztunnel', pod: { name: 'ztunnel' }, nodeName: this.node }), { mode: 0o600 });
    const [host, port] = pilot.secureAddresses[0]!.split(':') as [string, string];
    this.#pilot = createServer((inner) => this.#join(inner, connect(Number(port), host))).listen(socket);
    await once(this.#pilot, 'listening');
    await this.#lines(this.#keep(lab.spawnIn(ZTUNNEL_POD, [process.execPath, '-e', RELAY, socket], { stdio: ['ignore', 'pipe', 'inherit'] }))).next();
    const workloads = this.#keep(spawn('python3', [join(projectRoot, 'test', 'ztunnel', 'workload-server.py'), zds], { stdio: ['pipe', 'pipe', 'inherit'] }));
    this.#workloads = { child: workloads, answers: this.#lines(workloads) };
    await this.#workloads.answers.next();
    const address = 'https://localhost:15012';
    const env = {
      XDS_ADDRESS: address, CA_ADDRESS: address, XDS_ROOT_CA: root, CA_ROOT_CA: root, AUTH_TOKEN: token, INPOD_UDS: zds, NODE_NAME: this.node, NETWORK: this.network, CLUSTER_ID: lab.info().clusterId,
      POD_NAME: 'ztunnel', POD_NAMESPACE: 'istio-system', SERVICE_ACCOUNT: 'ztunnel', INSTANCE_IP: lab.pod('istio-system', 'ztunnel').ips[0]!, ZTUNNEL_WORKER_THREADS: '1', LOG_FORMAT: 'json',
    };
    const ztunnel = this.#keep(lab.spawnIn(ZTUNNEL_POD, [ZtunnelNode.binary()], { env, stdio: ['ignore', 'pipe', 'pipe'] }));
    for (const stream of [ztunnel.stdout!, ztunnel.stderr!]) createInterface({ input: stream }).on('line', (line) => this.#logged(line));
    await waitFor('ztunnel to be ready', async () => {
      assert.equal(ztunnel.exitCode, null, this.log.slice(-4000));
      return (await this.admin('15021/healthz/ready')).startsWith('ready');
    }, { timeoutMs: 120_000 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${this.log.slice(-4000)}`);
    });
  }

  #keep<Child extends ChildProcess>(child: Child): Child {
    this.#children.push(child);
    return child;
  }

  #lines(child: ChildProcess): AsyncIterator<string> {
    return (createInterface({ input: child.stdout! }) as Interface)[Symbol.asyncIterator]();
  }

  #join(inner: Socket, outer: Socket): void {
    for (const [socket, other] of [[inner, outer], [outer, inner]] as const) {
      this.#sockets.add(socket);
      socket.on('error', () => other.destroy()).on('close', () => (other.destroy(), this.#sockets.delete(socket)));
      socket.pipe(other);
    }
  }

  #logged(line: string): void {
    this.log += `${line}\n`;
    if (!line.includes('"scope":"access"')) return;
    this.accesses.push(JSON.parse(line) as Access);
  }

  /** Ztunnel listens in the namespaces of these pods (`namespace/name`), and what they open and what is for them is led to it. */
  async enrol(...pods: string[]): Promise<void> {
    for (const pod of pods) {
      const [namespace = '', name = ''] = pod.split('/');
      const { uid, netns } = this.world.lab.pod(namespace, name);
      await this.#tell({ add: uid, netns, name, namespace, serviceAccount: name });
      for (const [family, restore, loopback, all] of [['-4', 'iptables-restore', '127.0.0.1/32', '0.0.0.0/0'], ['-6', 'ip6tables-restore', '::1/128', '::/0']] as const) {
        await this.#inPod(pod, [restore, '--noflush'], rules(loopback));
        await this.#inPod(pod, ['ip', family, 'rule', 'add', 'fwmark', '0x111/0xfff', 'pref', '32764', 'lookup', '100']);
        await this.#inPod(pod, ['ip', family, 'route', 'add', 'local', all, 'dev', 'lo', 'table', '100']);
      }
    }
  }

  async #inPod(pod: string, command: string[], input = ''): Promise<void> {
    const { code, stderr } = await this.world.lab.exec(pod, command, { input });
    assert.equal(code, 0, `${command.join(' ')} in ${pod}: ${stderr}`);
  }

  async #tell(command: Record<string, string>): Promise<void> {
    this.#workloads!.child.stdin!.write(`${JSON.stringify(command)}\n`);
    const { value, done } = await this.#workloads!.answers.next();
    assert.ok(!done, 'the workload server has ended');
    assert.equal(String(value).trim(), command['add'] ?? command['del'], this.log.slice(-2000));
  }

  /** @param place port and path of one of its own interfaces, e.g. `15000/config_dump` */
  async admin(place: string): Promise<string> {
    return (await this.world.lab.exec(ZTUNNEL_POD, ['curl', '-s', '--max-time', '30', `http://localhost:${place}`])).stdout;
  }

  /** What was logged of connections since then, once there are at least as many as are waited for. */
  async logged(since: number, count: number, wanted: (access: Access) => boolean): Promise<Access[]> {
    const found = (): Access[] => this.accesses.slice(since).filter(wanted);
    await waitFor(`${count} connections in ztunnel's log`, () => found().length >= count, { timeoutMs: 120_000 }).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${JSON.stringify(this.accesses.slice(since), null, 1)}`);
    });
    return found();
  }

  async stop(): Promise<void> {
    for (const child of this.#children.reverse()) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      const ended = once(child, 'exit');
      child.kill('SIGKILL');
      await ended;
    }
    this.#pilot?.close();
    for (const socket of this.#sockets) socket.destroy();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
