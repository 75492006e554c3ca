/** A control plane with one HTTP service, and a NodeProxy that listens to it: the stage for tests with a real Envoy. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { logger } from '../../common/log.js';
import { buildDir, envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { NodeProxy, type NodeProxyOptions, type ProxyPod } from '../proxy/node-proxy.js';
import { TableControlPlane } from './control-plane.js';
import { TestNetns } from './netns.js';
import { assignment, blackHoleCluster, edsCluster, httpListener, passthroughCluster, routes } from './resources.js';

export const SERVICE_VIP = '10.96.0.10';
export const SERVICE_CLUSTER = 'outbound|80||web.shop.svc.cluster.local';
/** The endpoint's address exists in each pod's namespace, with a server of that namespace behind it. */
export const ENDPOINT = '10.0.0.5';

export class ProxyWorld {
  readonly folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  readonly controlPlane = new TableControlPlane(`unix:${join(this.folder, 'xds.sock')}`);
  readonly namespaces: TestNetns[] = [];
  proxy: NodeProxy | undefined;

  get running(): NodeProxy {
    if (!this.proxy) throw new Error('the proxy was not started');
    return this.proxy;
  }

  async start(options: Partial<NodeProxyOptions> = {}): Promise<void> {
    const table = this.controlPlane;
    table.set(edsCluster(SERVICE_CLUSTER), SERVICE_CLUSTER);
    table.set(passthroughCluster(), 'PassthroughCluster');
    table.set(blackHoleCluster(), 'BlackHoleCluster');
    table.set(assignment(SERVICE_CLUSTER, [`${ENDPOINT}:80`]), SERVICE_CLUSTER);
    table.set(httpListener(80), '0.0.0.0_80');
    table.set(routes(80, { web: SERVICE_CLUSTER }), '80');
    await table.start();
    await this.startProxy(options);
  }

  /** A NodeProxy over the same run directory: another one adopts what the former left. */
  async startProxy(options: Partial<NodeProxyOptions> = {}): Promise<NodeProxy> {
    const proxy = this.newProxy(options);
    await proxy.start();
    return proxy;
  }

  /** The same, to be started. */
  newProxy(options: Partial<NodeProxyOptions> = {}): NodeProxy {
    this.proxy = new NodeProxy({
      nodeName: 'node-1', runDir: join(this.folder, 'run'), discoveryAddress: this.controlPlane.address, envoyPath: envoyBinary(),
      // One worker: connections that may share a pool do.
      concurrency: 1,
      logger: logger('test'), ...options,
    });
    return this.proxy;
  }

  /** A launcher for an Envoy whose drain time is short, to see what a drain ends. */
  drainingAfter(seconds: number): string {
    const path = join(this.folder, 'launcher');
    const shorten = 'seen=; for a; do shift; [ "$seen" = --drain-time-s ] && set -- "$@" SECONDS || set -- "$@" "$a"; seen=$a; done';
    writeFileSync(path, `#!/bin/sh\n${shorten.replace('SECONDS', String(seconds))}\nexec "${join(buildDir, 'underpass-exec')}" "$@"\n`, { mode: 0o755 });
    return path;
  }

  /** A namespace whose connections to 10.96.0.0/16 arrive at its listener, and that has the endpoint's address. */
  async pod(uid: string, change: Partial<ProxyPod> = {}): Promise<{ pod: ProxyPod; netns: TestNetns }> {
    const netns = await TestNetns.create();
    this.namespaces.push(netns);
    await netns.ip('addr', 'add', `${ENDPOINT}/32`, 'dev', 'lo');
    await netns.redirect('10.96.0.0/16');
    const pod: ProxyPod = {
      uid, name: uid, namespace: 'shop', labels: { app: 'client' }, annotations: {}, serviceAccount: 'default', ips: ['10.0.1.1'],
      netnsPath: netns.path, iptables: true, ...change,
    };
    return { pod, netns };
  }

  async ready(...pods: ProxyPod[]): Promise<void> {
    for (const pod of pods) await this.running.whenReady(pod.uid, AbortSignal.timeout(60_000));
  }

  async settled(): Promise<void> {
    await waitFor('the configuration to reach Envoy', () => this.running.settled, { everyMs: 5 });
  }

  async close(): Promise<void> {
    await this.proxy?.stop({ keepEnvoy: false });
    this.controlPlane.stop();
    for (const netns of this.namespaces) await netns.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
