/**
 * `make bench-kube-client`: a list of 50,000 Pods, read by our reflector, which keeps of each what a mesh asks for, and, where
 * LIBRARY names a folder that `@kubernetes/client-node` was installed in, by that package's informer. Each in a process of its
 * own, from one server; docs/dependencies.md has what came of it.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { KubeClient, resourceOf } from '../../../common/kube/client.js';
import { reflect } from '../../../common/kube/reflector.js';
import type { KubeObject, Pod } from '../../../common/kube/types.js';
import { logger } from '../../../common/log.js';
import { sleep } from '../../../common/retry.js';

const PODS = 50_000;
const TICK_MS = 5;
const SETTLE_MS = 5_000;

/** 3.8 kB as JSON, as a Deployment's Pod with one container and ten settings is, with who wrote which field. */
function pod(index: number): Pod {
  const address = `10.${128 + (index >> 16)}.${(index >> 8) & 255}.${index & 255}`;
  const at = '2026-01-01T00:00:00Z';
  const settings = Array.from({ length: 10 }, (_, i) => `SETTING_${i}`);
  return {
    metadata: {
      name: `app-${index}`, namespace: `team-${index % 100}`, uid: `00000000-0000-4000-8000-${String(index).padStart(12, '0')}`, resourceVersion: String(index), creationTimestamp: at,
      labels: { app: `service-${index % 5_000}`, version: 'v1', 'pod-template-hash': '6d4b75cb6d' },
      annotations: { 'prometheus.io/scrape': 'true' },
      managedFields: [{
        manager: 'kube-controller-manager', operation: 'Update', apiVersion: 'v1', time: at, fieldsType: 'FieldsV1',
        fieldsV1: { 'f:metadata': { 'f:labels': { '.': {}, 'f:app': {}, 'f:version': {} } }, 'f:spec': { 'f:containers': { 'k:{"name":"app"}': { '.': {}, 'f:env': Object.fromEntries(settings.map((name) => [`k:{"name":"${name}"}`, { '.': {}, 'f:name': {}, 'f:value': {} }])), 'f:image': {}, 'f:ports': {}, 'f:readinessProbe': {}, 'f:resources': {}, 'f:volumeMounts': {} } } } },
      }],
    },
    spec: {
      nodeName: `elsewhere-${index % 500}`, serviceAccountName: 'default', restartPolicy: 'Always', dnsPolicy: 'ClusterFirst', schedulerName: 'default-scheduler',
      containers: [{
        name: 'app', image: 'registry.example/team/app:1.2.3', imagePullPolicy: 'IfNotPresent', terminationMessagePath: '/dev/termination-log', terminationMessagePolicy: 'File',
        ports: [{ name: 'http', containerPort: 8080, protocol: 'TCP' }], env: settings.map((name) => ({ name, value: `value of ${name}` })), resources: { requests: { cpu: '100m', memory: '128Mi' } },
        readinessProbe: { httpGet: { path: '/ready', port: 8080, scheme: 'HTTP' }, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3 },
        volumeMounts: [{ name: 'token', mountPath: '/var/run/secrets/kubernetes.io/serviceaccount', readOnly: true }],
      }],
      volumes: [{ name: 'token', projected: { sources: [{ serviceAccountToken: { path: 'token', expirationSeconds: 3607 } }, { configMap: { name: 'kube-root-ca.crt' } }], defaultMode: 420 } }],
      tolerations: ['not-ready', 'unreachable'].map((condition) => ({ key: `node.kubernetes.io/${condition}`, operator: 'Exists', effect: 'NoExecute', tolerationSeconds: 300 })),
    },
    status: {
      phase: 'Running', hostIP: '10.0.0.1', podIP: address, podIPs: [{ ip: address }], startTime: at, qosClass: 'Burstable',
      conditions: ['PodScheduled', 'Initialized', 'ContainersReady', 'Ready'].map((type) => ({ type, status: 'True', lastTransitionTime: at })),
      containerStatuses: [{ name: 'app', ready: true, started: true, restartCount: 0, image: 'registry.example/team/app:1.2.3', imageID: `registry.example/team/app@sha256:${'0'.repeat(64)}`, containerID: `containerd://${'0'.repeat(64)}`, state: { running: { startedAt: at } } }],
    },
  } as unknown as Pod;
}

/** Lists in pages if asked for pages, and watches in which nothing happens. */
async function serve(): Promise<void> {
  const server = createServer((request, response) => {
    const { searchParams } = new URL(request.url ?? '/', 'http://api');
    response.setHeader('content-type', 'application/json');
    if (searchParams.has('watch')) {
      response.flushHeaders();
      return;
    }
    const from = Number(searchParams.get('continue') ?? 0);
    const to = Math.min(PODS, from + (Number(searchParams.get('limit')) || PODS));
    void (async () => {
      response.write(`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"${PODS}"${to < PODS ? `,"continue":"${to}"` : ''}},"items":[`);
      for (let i = from; i < to; i++) {
        if (!response.write(`${i > from ? ',' : ''}${JSON.stringify(pod(i))}`)) await once(response, 'drain');
      }
      response.end(']}');
    })();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  process.send!((server.address() as AddressInfo).port);
}

async function ours(url: string): Promise<number> {
  const kept = new Map<string, object>();
  const keep = (object: KubeObject): void => {
    const { metadata: { name, namespace, uid, labels }, spec, status } = object as Pod;
    kept.set(`${namespace}/${name}`, { metadata: { name, namespace, uid, labels }, spec: { nodeName: spec.nodeName, serviceAccountName: spec.serviceAccountName }, status: { phase: status?.phase, podIPs: status?.podIPs } });
  };
  const client = new KubeClient({ url: new URL(url), credentials: () => Promise.resolve({ headers: {}, rejectUnauthorized: false }) });
  await new Promise<void>((resolve) => {
    const following = { begin: () => ({ listed: keep, complete: resolve }), changed: keep, deleted: () => undefined };
    void reflect({ client, resources: [resourceOf('v1', 'Pod')], following, logger: logger('bench'), signal: new AbortController().signal });
  });
  return kept.size;
}

/** As much of the package as is used here. */
interface ClientNode {
  KubeConfig: new () => { loadFromOptions(options: object): void; makeApiClient(api: unknown): { listPodForAllNamespaces(): unknown } };
  CoreV1Api: unknown;
  makeInformer(config: object, path: string, list: () => unknown): { list(): unknown[]; start(): Promise<void> };
}

async function library(url: string, folder: string): Promise<number> {
  const path = createRequire(`${folder}/`).resolve('@kubernetes/client-node');
  const { KubeConfig, CoreV1Api, makeInformer } = await import(pathToFileURL(path).href) as ClientNode;
  const config = new KubeConfig();
  config.loadFromOptions({ clusters: [{ name: 'c', server: url, skipTLSVerify: true }], users: [{ name: 'u' }], contexts: [{ name: 'x', cluster: 'c', user: 'u' }], currentContext: 'x' });
  const api = config.makeApiClient(CoreV1Api);
  const informer = makeInformer(config, '/api/v1/pods', () => api.listPodForAllNamespaces());
  await informer.start();
  return informer.list().length;
}

async function measure(name: string, read: () => Promise<number>): Promise<void> {
  let longest = 0;
  let last = performance.now();
  setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last - TICK_MS);
    last = now;
  }, TICK_MS);
  const since = performance.now();
  const count = await read();
  const seconds = (performance.now() - since) / 1_000;
  await sleep(TICK_MS * 2);
  const mebibytes = (bytes: number): string => (bytes / (1 << 20)).toFixed(0);
  const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage();
  await sleep(SETTLE_MS);
  globalThis.gc?.();
  await sleep(SETTLE_MS / 5);
  console.log(`${name}: ${count} Pods in ${seconds.toFixed(1)} s, CPU ${((userCPUTime + systemCPUTime) / 1e6).toFixed(1)} s, event loop held for up to ${longest.toFixed(0)} ms, RSS at most ${mebibytes(maxRSS * 1024)} MiB, after a collection ${mebibytes(process.memoryUsage().rss)} MiB`);
  process.exit(count === PODS ? 0 : 1);
}

const children: ChildProcess[] = [];
const child = (...args: string[]): ChildProcess => {
  const started = fork(fileURLToPath(import.meta.url), args, { execArgv: ['--expose-gc'] });
  children.push(started);
  return started;
};

async function main(): Promise<void> {
  const server = child('serve');
  const [port] = await once(server, 'message') as [number];
  const url = `http://127.0.0.1:${port}`;
  const { LIBRARY: folder } = process.env;
  for (const args of [['ours', url], ...(folder ? [['library', url, folder]] : [])]) {
    const [code] = await once(child(...args), 'exit') as [number | null];
    if (code !== 0) process.exitCode = 1;
  }
}

const [role, url = '', folder = ''] = process.argv.slice(2);
if (role === 'serve') await serve();
else if (role === 'ours') await measure('this project', () => ours(url));
else if (role === 'library') await measure('@kubernetes/client-node', () => library(url, folder));
else await main().finally(() => children.forEach((each) => each.kill()));
