/** A node's agent, told of a real API server by a line that can be cut, with a client and a server in its labelled namespace `shop`, and requests that go on all the time. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { projectRoot } from '../../common/paths.js';
import { sleep } from '../../common/retry.js';
import { base64, KubeCluster } from './cluster.js';
import { KubeNode } from './node.js';
import { pilotKubeconfig, startPilot, type KubePilot } from './pilot.js';
import { Relay } from './relay.js';

export const AGENT_RBAC = join(projectRoot, 'deploy', 'agent-rbac.yaml');

const pod = (name: string, namespace: string, container: string): string => stringify({ apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace, labels: { app: name } }, spec: { containers: [{ name: container, image: container, ...(container === 'echo' ? { ports: [{ name: 'http', containerPort: 8080 }] } : {}) }] } });

export class AgentWorld {
  readonly relay = new Relay();
  readonly folder = mkdtempSync(join(tmpdir(), 'up-kube-world-'));
  cluster!: KubeCluster;
  node!: KubeNode;
  kube!: KubePilot;
  #traffic: Promise<void> | undefined;
  #ended = false;
  answered = 0;
  readonly failures: string[] = [];

  get tokenFile(): string {
    return join(this.folder, 'token');
  }

  async up(name: string): Promise<void> {
    this.cluster = await KubeCluster.start();
    const { cluster } = this;
    const pilotConfig = await pilotKubeconfig(cluster);
    await cluster.apply(readFileSync(AGENT_RBAC, 'utf8'));
    for (const namespace of ['shop', 'plain']) await cluster.namespace(namespace, namespace === 'shop' ? { 'underpass.io/mode': 'node' } : {});
    this.node = new KubeNode(cluster, name);
    await this.node.up();
    await this.node.run([pod('web', 'shop', 'echo'), pod('client', 'shop', 'curl'), pod('client', 'plain', 'curl')].join('---\n'));
    await cluster.apply([
      { apiVersion: 'v1', kind: 'Service', metadata: { name: 'web', namespace: 'shop' }, spec: { clusterIP: '10.96.7.7', selector: { app: 'web' }, ports: [{ name: 'http', port: 80, targetPort: 8080 }] } },
      { apiVersion: 'discovery.k8s.io/v1', kind: 'EndpointSlice', metadata: { name: 'web-1', namespace: 'shop', labels: { 'kubernetes.io/service-name': 'web' } }, addressType: 'IPv4', endpoints: [{ addresses: [this.node.pod('shop', 'web').ips[0]], nodeName: this.node.name, conditions: { ready: true }, targetRef: { kind: 'Pod', name: 'web', namespace: 'shop' } }], ports: [{ name: 'http', port: 8080, protocol: 'TCP' }] },
    ].map((object) => stringify(object)).join('---\n'));
    this.kube = await startPilot(pilotConfig, { listen: ['127.0.0.1:0'] });
    writeFileSync(this.tokenFile, await cluster.token('underpass-system', 'underpass-agent'), { mode: 0o600 });
    const server = `https://127.0.0.1:${await this.relay.listen(cluster.ports.api)}`;
    writeFileSync(join(this.folder, 'agent.kubeconfig'), stringify({ clusters: [{ name: 'c', cluster: { server, 'certificate-authority-data': base64(cluster.ca.rootPem) } }], users: [{ name: 'u', user: { tokenFile: this.tokenFile } }], contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }], 'current-context': 'x' }), { mode: 0o600 });
    this.startAgent();
    await this.node.settles('shop', 'client', 'node');
  }

  startAgent(): void {
    this.node.startAgent(['--kubeconfig', join(this.folder, 'agent.kubeconfig'), '--discovery', this.kube.pilot.addresses[0]!]);
  }

  /** A request after the other until down(), each of which has to be answered. */
  startTraffic(): void {
    this.#traffic = (async () => {
      while (!this.#ended) {
        const { status, body } = await this.node.curl('shop/client', 'http://10.96.7.7/', '-H', 'host: web').catch((error: unknown) => ({ status: -1, body: String(error) }));
        if (status === 200) this.answered++;
        else if (!this.#ended) this.failures.push(`${new Date().toISOString()} ${status} ${body.slice(0, 200)}`);
        await sleep(20);
      }
    })();
  }

  /** Requests were answered since then, and none failed. */
  flows(since: number): void {
    assert.deepEqual(this.failures, []);
    assert.ok(this.answered > since, 'requests went on');
  }

  label(kind: 'Namespace' | 'Pod', name: string, value: string | null, namespace?: string): Promise<void> {
    return this.cluster.merge('v1', kind, { name, ...(namespace === undefined ? {} : { namespace }) }, { metadata: { labels: { 'underpass.io/mode': value } } });
  }

  async problem(): Promise<string> {
    return (await this.node.status()).workloads.problem ?? '';
  }

  async down(): Promise<void> {
    this.#ended = true;
    await this.#traffic;
    await this.node?.down();
    await this.kube?.pilot.stop();
    this.relay.close();
    await this.cluster?.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
