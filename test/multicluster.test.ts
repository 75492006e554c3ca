// Three labs as clusters of one mesh, one pilot reading all of them: east and west on one network, far on its own behind an east-west gateway. The pods have sidecars, or one agent a cluster.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { logger } from '../common/log.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { labTraces, NO_TRACES } from '../lab/traces.js';
import { Pilot } from '../pilot/index.js';
import { NodeUnderTest } from './agent-harness.js';
import { MODES, type Mode } from './mesh/world.js';

const CLUSTERS = ['east', 'west', 'far'] as const;
type Name = (typeof CLUSTERS)[number];
const NETWORKS: Record<Name, string> = { east: 'near', west: 'near', far: 'away' };
const SNI = 'outbound_.80_._.web.shop.svc.cluster.local';

const web = (cluster: Name, replicas: number): string => `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: ${replicas}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: ${cluster}}}
    spec: {serviceAccountName: server, containers: [{name: echo, image: echo, ports: [{name: http, containerPort: 8080}]}]}
`;
/** West has no gateway: its network is entered by east's. */
const world = (cluster: Name, mode: Mode): string => `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {underpass.io/mode: ${mode}}}
---${web(cluster, 1)}---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
${cluster === 'west' ? '' : `apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {serviceAccountName: caller, containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: eastwest, namespace: istio-system, labels: {istio: eastwestgateway}}
spec: {containers: [{name: istio-proxy, image: auto, args: [proxy, router]}]}
---
apiVersion: v1
kind: Service
metadata: {name: eastwest, namespace: istio-system, labels: {topology.istio.io/network: ${NETWORKS[cluster]}}}
spec: {type: LoadBalancer, selector: {istio: eastwestgateway}, ports: [{name: tls, port: 15443}]}
`}`;
const CONFIGURATION = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network, namespace: istio-system}
spec: {selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ["*.local"]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
# A request that a pod dies over is nobody's answer: without this it would not be sent again. In mode node nobody ends the
# connection, since the pod's proxy lives on while its network goes.
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{route: [{destination: {host: web}}], retries: {attempts: 3, perTryTimeout: 3s, retryOn: "connect-failure,reset,503"}}]}
`;

for (const mode of MODES) describe(mode, () => {
  let directory: string;
  let pilot: Pilot;
  const labs = new Map<Name, Lab>();
  const lab = (cluster: Name): Lab => labs.get(cluster)!;
  const nameOf = (cluster: Name): string => `up-mc-${cluster}-${mode[0]}-${process.pid}`;
  /** Of mode node: one a cluster, each of which has one node. */
  const agents = new Map<Name, NodeUnderTest>();

  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'underpass-multicluster-'));
    const discovery = `unix:${join(directory, 'xds.sock')}`;
    const configuration = join(directory, 'configuration.yaml');
    writeFileSync(configuration, CONFIGURATION);
    for (const cluster of CLUSTERS) {
      const file = join(directory, `${cluster}-world.yaml`);
      writeFileSync(file, world(cluster, mode));
      labs.set(cluster, await Lab.up({ name: nameOf(cluster), sources: [file], nodes: 1, discovery, clusterId: cluster, peers: [...labs.values()], isolated: cluster === 'far', sidecarConcurrency: 1, watch: false }));
    }
    const sources = CLUSTERS.map((cluster) => `cluster=${cluster},network=${NETWORKS[cluster]}:${lab(cluster).objectsDir}`);
    pilot = new Pilot({ sources: [...sources, configuration], listen: [discovery], logger: logger('pilot') });
    await pilot.start();
    for (const cluster of mode === 'node' ? CLUSTERS : []) {
      const agent = new NodeUnderTest(nameOf(cluster));
      agent.lab = lab(cluster);
      agents.set(cluster, agent);
      agent.start('agent', '--discovery', discovery);
    }
    for (const each of labs.values()) await each.whenReady({ sidecars: true, timeoutMs: 60_000 });
    for (const agent of agents.values()) await agent.podsAre('shop', 'the pods to be enrolled', ({ state, settled }) => state === 'enrolled' && settled);
  });

  after(async () => {
    for (const agent of agents.values()) await agent.endAgent('SIGTERM');
    await pilot?.stop();
    for (const cluster of [...CLUSTERS].reverse()) await (agents.get(cluster) ?? labs.get(cluster))?.down();
    rmSync(directory, { recursive: true, force: true });
    for (const cluster of CLUSTERS) assert.deepEqual(labTraces(nameOf(cluster)), NO_TRACES);
  });

  interface Answer {
    status: number;
    version: string;
    caller: string;
  }

  /** One process, many requests. */
  async function ask(from: Name, requests = 30): Promise<Answer[]> {
    const { stdout, stderr } = await lab(from).exec('shop/client', ['curl', '-sS', '--max-time', '20', '-w', '\\n#%{http_code}\\n', `http://web/?[1-${requests}]`]);
    const parts = stdout.split(/\n#(\d+)\n/);
    assert.equal(parts.length, 2 * requests + 1, `${stdout.slice(0, 300)} ${stderr}`);
    return Array.from({ length: requests }, (_, index) => {
      const [body, status] = [parts[2 * index]!, Number(parts[2 * index + 1])];
      if (status !== 200) return { status, version: body, caller: '' };
      const { version, headers } = JSON.parse(body) as { version: string; headers: Record<string, string> };
      return { status, version, caller: /URI=([^;,]+)/.exec(headers['x-forwarded-client-cert'] ?? '')?.[1] ?? '' };
    });
  }
  const versions = (answers: readonly Answer[]): string[] => [...new Set(answers.map(({ version }) => version))].sort();

  async function until(from: Name, expected: string[]): Promise<void> {
    let answers: Answer[] = [];
    await waitFor(`answers of ${expected.join(', ')} for ${from}`, async () => versions((answers = await ask(from))).join() === expected.join(), { timeoutMs: 60_000 }).catch((error: unknown) => {
      throw new Error(`${String(error)}: last ${JSON.stringify(versions(answers))}`);
    });
  }

  /** Addresses that the client's Envoy balances between. */
  async function upstreams(from: Name): Promise<string[]> {
    const text = await (agents.get(from)?.proxyAdmin('/clusters') ?? lab(from).proxyAdmin('shop/client', '/clusters'));
    const found = [...text.matchAll(/^outbound\|80\|\|web\.shop\.svc\.cluster\.local(?:~[^:]*)?::(?:envoy:\/\/.*\/)?([^:]+:\d+)::cx_active/gm)].map((match) => match[1]!);
    // The shared Envoy has a cluster for each account that calls.
    return [...new Set(found)].sort();
  }

  const podAddress = (cluster: Name): string => `${lab(cluster).pods().find(({ name }) => name.startsWith('web'))!.ips[0]}:8080`;
  const gatewayAddress = (cluster: Name): string => `${lab(cluster).externalIp('istio-system', 'eastwest')}:15443`;
  const passed = async (cluster: Name): Promise<number> => Number(/upstream_cx_total: (\d+)/.exec(await lab(cluster).proxyAdmin('istio-system/eastwest', `/stats?filter=cluster.${SNI}.*upstream_cx_total`))?.[1] ?? 0);

  test('clients have the other cluster of their network by address, another network by its gateway alone', async () => {
    await until('east', ['east', 'far', 'west']);
    assert.deepEqual(await upstreams('east'), [podAddress('east'), podAddress('west'), gatewayAddress('far')].sort());
    assert.deepEqual(await upstreams('far'), [podAddress('far'), gatewayAddress('east')].sort());
  });

  test('through the gateways mutual TLS is the workloads\' own: the server sees the caller, in both directions', async () => {
    for (const [from, through] of [['east', 'far'], ['far', 'east']] as const) {
      const answers = await ask(from);
      // A gateway chooses an endpoint for a connection, not for a request.
      assert.ok(answers.some(({ version }) => NETWORKS[version as Name] === NETWORKS[through]), JSON.stringify(versions(answers)));
      for (const { status, caller } of answers) assert.deepEqual([status, caller], [200, 'spiffe://cluster.local/ns/shop/sa/caller']);
      assert.ok((await passed(through)) > 0, 'the gateway passed connections on');
    }
    for (const cluster of ['east', 'far'] as const) assert.doesNotMatch(await lab(cluster).proxyAdmin('istio-system/eastwest', '/stats?filter=listener.*15443.*ssl'), /ssl\.handshake: [1-9]/, 'no TLS ends at a gateway');
  });

  test('an east-west gateway leads nobody to the clusters that it has for itself, whose connections bear its own identity', async () => {
    const own = 'outbound|80||web.shop.svc.cluster.local';
    const stat = async (name: string): Promise<string | undefined> => /: (\d+)/.exec(await lab('far').proxyAdmin('istio-system/eastwest', `/stats?filter=${name}$`))?.[1];
    const script = `const s = require('node:tls').connect({ host: '${lab('far').externalIp('istio-system', 'eastwest')}', port: 15443, servername: '${own}', ALPNProtocols: ['istio'], rejectUnauthorized: false }); s.on('error', () => {}).on('close', () => console.log('closed')).on('secureConnect', () => console.log('open')); setTimeout(() => process.exit(1), 8000).unref();`;
    const { stdout } = await lab('far').exec('shop/client', [process.execPath, '-e', script]);
    assert.equal(stdout.trim(), 'closed');
    assert.deepEqual([await stat('tcp.rbac.denied'), await stat('cluster.outbound.80..web.shop.svc.cluster.local;?.upstream_cx_tx_bytes_total')], ['1', '0'], 'nothing that the client said has gone on');
  });

  test('a service keeps answering when one cluster\'s endpoints vanish, and again when two have', async () => {
    for (const [gone, left] of [['east', ['far', 'west']], ['west', ['far']]] as const) {
      const during: Promise<Answer[]>[] = [];
      const vanishing = lab(gone).apply(web(gone, 0));
      for (let round = 0; round < 3; round++) {
        during.push(ask('east', 40));
        await during.at(-1);
      }
      await vanishing;
      const answers = (await Promise.all(during)).flat();
      assert.deepEqual(answers.filter(({ status }) => status !== 200), [], `while ${gone} vanishes`);
      await until('east', [...left]);
    }
    // A shared Envoy keeps a cluster of before for as long as connections may drain by it.
    await waitFor('the endpoints that are gone to leave', async () => isDeepStrictEqual(await upstreams('east'), [gatewayAddress('far')]), { timeoutMs: 60_000, everyMs: 200 });
  });
});
