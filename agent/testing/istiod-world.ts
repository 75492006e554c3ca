/** Pods of a recorded scenario in namespaces of their own, a NodeProxy with a real Envoy, and a server that answers as the recorded istiod. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CaIdentitySource } from '../../common/identity/ca-client.js';
import { logger } from '../../common/log.js';
import { envoyBinary } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { NodeProxy, type NodeProxyOptions, type ProxyPod } from '../proxy/node-proxy.js';
import type { ControlPlaneSecurity } from './control-plane.js';
import { RecordedIstiod } from './istiod.js';
import type { IstiodSecurity } from './istiod-security.js';
import { TestNetns } from './netns.js';
import { Recording, type RecordedSession } from './recording.js';

export interface IstiodWorldOptions {
  /** Of the recorded clients these play pods; default: all in delta mode that are sidecars. */
  pods?: readonly string[];
  security?: ControlPlaneSecurity;
  /** Pods of the node that were not recorded: they get what the recorded one of their namespace gets, as outbound sides are equal across a node's pods. */
  beside?: readonly { name: string; namespace: string; serviceAccount: string; ip: string }[];
}

export class IstiodWorld {
  readonly folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  readonly recording: Recording;
  readonly istiod: RecordedIstiod;
  readonly pods: ProxyPod[] = [];
  readonly #sessions: readonly RecordedSession[];
  readonly #beside: NonNullable<IstiodWorldOptions['beside']>;
  readonly #namespaces = new Map<string, TestNetns>();
  #proxy: NodeProxy | undefined;

  constructor(readonly scenario: string, { pods, security, beside = [] }: IstiodWorldOptions = {}) {
    this.#beside = beside;
    const recording = Recording.open(scenario);
    if (!recording) throw new Error(`no recording of ${scenario}`);
    this.recording = recording;
    this.#sessions = recording.sidecars.filter(({ name }) => pods?.includes(name) ?? true);
    const node = recording.sessions.find(({ mode, node: id }) => mode === 'delta' && id.startsWith('ztunnel~'));
    this.istiod = new RecordedIstiod(security ? '127.0.0.1:0' : `unix:${join(this.folder, 'xds.sock')}`, recording, [...this.#sessions, ...(node ? [node] : [])], security);
  }

  get proxy(): NodeProxy {
    if (!this.#proxy) throw new Error('the proxy was not started');
    return this.#proxy;
  }

  /** A wire between the namespaces of two pods, with their addresses at its ends. */
  async connect(one: string, other: string): Promise<void> {
    const [a, b] = [this.netns(one), this.netns(other)];
    await run('ip', ['link', 'add', 'wire', 'netns', a.name, 'type', 'veth', 'peer', 'name', 'wire', 'netns', b.name]);
    for (const [from, to] of [[one, other], [other, one]] as const) {
      const ip = (key: string): string => this.pods.find(({ uid }) => uid === key.slice(0, 20))!.ips[0]!;
      await this.netns(from).ip('link', 'set', 'wire', 'up');
      await this.netns(from).ip('route', 'add', `${ip(to)}/32`, 'dev', 'wire', 'src', ip(from));
    }
  }

  /** The namespace of the pod that a recorded client plays; default the first. */
  netns(session = this.#sessions[0]!.name): TestNetns {
    return this.#namespaces.get(session)!;
  }

  /**
   * As on port 15012: what an agent needs to prove itself and its pods, whom istiod trusts.
   * @param security that this was made with
   */
  static async trusted(security: IstiodSecurity, sessions: readonly RecordedSession[]): Promise<(address: string) => Partial<NodeProxyOptions>> {
    const account = { namespace: 'underpass-system', serviceAccount: 'underpass-agent' };
    const own = { ...account, name: 'underpass-agent-x', nodeName: 'node-1' };
    security.pods = [own, ...sessions.map(({ metadata }) => ({ namespace: metadata.NAMESPACE, name: metadata.NAME, serviceAccount: metadata.SERVICE_ACCOUNT, nodeName: 'node-1' }))];
    security.trustedNodeAccounts = ['underpass-system/underpass-agent'];
    const token = await security.token({ ...account, pod: { name: own.name } });
    return (address) => ({
      discoveryTls: { roots: () => security.ca.rootPem, token: () => Promise.resolve(token), account },
      ca: (onError) => Object.assign(new CaIdentitySource({ address, rootPem: () => security.ca.rootPem, token: () => token, onError }), { description: address }),
    });
  }

  async start(options: Partial<NodeProxyOptions> | ((address: string) => Partial<NodeProxyOptions>) = {}): Promise<void> {
    await this.istiod.start();
    await this.istiod.goTo(0);
    const recorded = this.#sessions.map(({ name, node, metadata }) => ({ key: name, ip: node.split('~')[1]!, name: metadata.NAME, namespace: metadata.NAMESPACE, labels: metadata.LABELS, serviceAccount: metadata.SERVICE_ACCOUNT }));
    for (const { key, ip, ...pod } of [...recorded, ...this.#beside.map((pod) => ({ key: pod.name, labels: {}, ...pod }))]) {
      const netns = await TestNetns.create();
      this.#namespaces.set(key, netns);
      await netns.ip('addr', 'add', `${ip}/32`, 'dev', 'lo');
      this.pods.push({ ...pod, uid: key.slice(0, 20), annotations: {}, ips: [ip], netnsPath: netns.path, iptables: true, inboundPortFree: true, hbonePortFree: true });
    }
    const own = typeof options === 'function' ? options(this.istiod.address) : options;
    this.#proxy = new NodeProxy({ nodeName: 'node-1', runDir: join(this.folder, 'run'), discoveryAddress: this.istiod.address, envoyPath: envoyBinary(), concurrency: 1, logger: logger('test'), ...own });
    await this.#proxy.start();
    this.#proxy.setPods(this.pods);
  }

  async ready(): Promise<void> {
    for (const { uid } of this.pods) await this.proxy.whenReady(uid, AbortSignal.timeout(60_000));
    await this.settled();
  }

  async settled(): Promise<void> {
    await waitFor('the configuration to reach Envoy', () => this.proxy.settled && this.proxy.status().settled, { everyMs: 5 });
  }

  /** Plays a step, and waits until Envoy has what follows from it. */
  async goTo(step: number): Promise<void> {
    await this.istiod.goTo(step);
    await this.settled();
  }

  /** What was refused: by the agent, in folding, by Envoy. */
  async refusals(): Promise<string[]> {
    const rejected = await this.proxy.envoy.admin.stats('update_rejected$');
    return [
      ...this.istiod.streams.flatMap(({ nacks }) => nacks.map(({ type, message }) => `the agent: ${type}: ${message}`)),
      ...this.proxy.status().nacks.map(({ type, name, message }) => `${type} ${name}: ${message}`),
      ...[...rejected].flatMap(([name, value]) => (value > 0 ? `${name}: ${value}` : [])),
    ];
  }

  async close(): Promise<void> {
    await this.#proxy?.stop({ keepEnvoy: false });
    this.istiod.stop();
    for (const netns of this.#namespaces.values()) await netns.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
