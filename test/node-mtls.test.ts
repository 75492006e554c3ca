/**
 * Mutual TLS of pods that share their node's Envoy, with real traffic: towards sidecars, from sidecars and gateways, and
 * between nodes, each pod as its own service account.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { waitFor } from '../common/retry.js';
import { gatewayPodYaml, istioGateway } from './gateway-world.js';
import { MeshWorld } from './mesh/world.js';

const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]';
const echo = (name: string, node: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: node, labels: {app: ${name}}}
spec: {nodeName: ${node}, serviceAccountName: ${name}, containers: [{${ECHO}}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: node}
spec: {selector: {app: ${name}}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
---
`;
const client = (name: string, node: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: node, labels: {app: ${name}}}
spec: {nodeName: ${node}, serviceAccountName: ${name}, containers: [{name: curl, image: curl}]}
---
`;
const INGRESS = gatewayPodYaml(istioGateway('ingress', '{name: http2, port: 80, targetPort: 8080}'));

const world = new MeshWorld('mtls', {
  nodes: 2,
  outside: `${INGRESS}---${echo('near', 'node-1')}${echo('far', 'node-2')}${client('alice', 'node-1')}${client('bob', 'node-1')}${client('carol', 'node-2')}
apiVersion: v1
kind: Pod
metadata: {name: dave, namespace: sidecar, labels: {app: dave}}
spec: {nodeName: node-1, serviceAccountName: dave, containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: sidecar, labels: {app: far}}
spec: {nodeName: node-2, serviceAccountName: far, containers: [{${ECHO}}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: sidecar}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]}
`,
});
before(() => world.up());
after(() => world.down());

const principal = (pod: string): string => {
  const [namespace, name] = pod.split('/');
  return `cluster.local/ns/${namespace}/sa/${name}`;
};
type Probe = () => Promise<string>;

/** Who the server was told is calling: a principal; `nobody`, a status that is not 200, or `refused`. */
const caller = (from: string, host: string): Probe => async () => {
  const { code, stdout } = await world.lab.exec(from, ['curl', '-s', '-w', '\n%{http_code}', '--max-time', '10', `http://${host}/`]);
  if (code !== 0) return 'refused';
  if (!stdout.endsWith('\n200')) return stdout.slice(-3);
  return /URI=spiffe:\/\/([^;"\\]*)/.exec(stdout.replace(/^.*By=spiffe[^;]*;/s, ''))?.[1] ?? 'nobody';
};

/** Whether a line comes back from the TCP port. */
const line = (from: string, host: string): Probe => async () => {
  const { stdout } = await world.lab.exec(from, ['bash', '-c', `exec 3<>/dev/tcp/${host}/9000 && echo ping >&3 && timeout 10 head -1 <&3`]);
  return stdout === 'ping\n' ? 'echoed' : 'refused';
};

/** Waits until all probes say what is expected, since listeners drain and callers hear later than servers. */
async function becomes(expected: Record<string, [Probe, string]>): Promise<void> {
  const wanted = Object.fromEntries(Object.entries(expected).map(([name, [, answer]]) => [name, answer]));
  let found: Record<string, string> = {};
  const look = async (): Promise<boolean> => {
    found = Object.fromEntries(await Promise.all(Object.entries(expected).map(async ([name, [probe]]) => [name, await probe()] as const)));
    return isDeepStrictEqual(found, wanted);
  };
  await waitFor('the policies to be in force', look, { timeoutMs: 60_000, everyMs: 100 }).catch(() => assert.deepEqual(found, wanted));
}

const policy = (kind: string, namespace: string, name: string, spec: string): string => `apiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n`;
const strict = (namespace: string): string => policy('PeerAuthentication', namespace, 'default', '{mtls: {mode: STRICT}}');
const allow = (namespace: string, app: string, ...principals: string[]): string => policy('AuthorizationPolicy', namespace, `allow-${app}`, `{selector: {matchLabels: {app: ${app}}}, rules: [{from: [{source: {principals: [${principals.map((item) => `"${item}"`).join()}]}}]}]}`);
const deny = (namespace: string, app: string, pod: string): string => policy('AuthorizationPolicy', namespace, `deny-${app}`, `{selector: {matchLabels: {app: ${app}}}, action: DENY, rules: [{from: [{source: {principals: ["${principal(pod)}"]}}]}]}`);
const [ALICE, BOB, CAROL, DAVE] = ['node/alice', 'node/bob', 'node/carol', 'sidecar/dave'] as const;

test('a sidecar that asks for mutual TLS takes the node\'s pods, each as its own account; ALLOW and DENY by principal hold', async () => {
  await world.apply('mesh', strict('sidecar'));
  await becomes({ alice: [caller(ALICE, 'web.sidecar'), principal(ALICE)], bob: [caller(BOB, 'web.sidecar'), principal(BOB)], 'from the other node': [caller(CAROL, 'web.sidecar'), principal(CAROL)], tcp: [line(ALICE, 'web.sidecar'), 'echoed'], outside: [caller('outside/client', 'web.sidecar'), 'refused'] });
  await world.apply('mesh', [strict('sidecar'), allow('sidecar', 'web', principal(ALICE))].join('---\n'));
  await becomes({ alice: [caller(ALICE, 'web.sidecar'), principal(ALICE)], bob: [caller(BOB, 'web.sidecar'), '403'], 'alice tcp': [line(ALICE, 'web.sidecar'), 'echoed'], 'bob tcp': [line(BOB, 'web.sidecar'), 'refused'] });
  await world.apply('mesh', [strict('sidecar'), deny('sidecar', 'web', ALICE)].join('---\n'));
  await becomes({ alice: [caller(ALICE, 'web.sidecar'), '403'], bob: [caller(BOB, 'web.sidecar'), principal(BOB)] });
  assert.deepEqual(await world.nacks(), []);
});

test('two accounts on one node never share a connection: every request of a kept connection comes as its own, over clusters with one certificate each', async () => {
  await world.apply('mesh', strict('sidecar'));
  await becomes({ alice: [caller(ALICE, 'far.sidecar'), principal(ALICE)], bob: [caller(BOB, 'far.sidecar'), principal(BOB)] });
  const script = `
const http = require('node:http');
const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });
const one = () => new Promise((resolve) => http.get('http://far.sidecar/', { agent }, (response) => {
  let text = '';
  response.on('data', (chunk) => (text += chunk)).on('end', () => resolve(/URI=([^;"]*)/.exec(text)?.[1] ?? String(response.statusCode)));
}).on('error', (error) => resolve(error.message)));
(async () => {
  const seen = {};
  for (let round = 0; round < 100; round++) for (const who of await Promise.all([one(), one()])) seen[who] = (seen[who] ?? 0) + 1;
  agent.destroy();
  console.log(JSON.stringify(seen));
})();`;
  const run = async (from: string): Promise<unknown> => JSON.parse((await world.lab.exec(from, [process.execPath, '-e', script], { timeoutMs: 60_000 })).stdout);
  assert.deepEqual(await Promise.all([ALICE, BOB].map(run)), [{ [`spiffe://${principal(ALICE)}`]: 200 }, { [`spiffe://${principal(BOB)}`]: 200 }]);

  const dump = JSON.parse(await world.nodeProxyAdmin('/config_dump?resource=dynamic_active_clusters', 'node-1')) as { configs: { cluster: { name: string } }[] };
  const far = dump.configs.map(({ cluster }) => cluster).filter(({ name }) => name.startsWith('outbound|80||far.sidecar.'));
  const certificates = far.map((cluster) => [...new Set([...JSON.stringify(cluster).matchAll(/"tls_certificate_sds_secret_configs":\[\{"name":"([^"]*)"/g)].map(([, name]) => name))]);
  assert.ok(certificates.every(({ length }) => length === 1) && new Set(certificates.flat()).size === far.length && far.length > 1, JSON.stringify(certificates));
});

/** How many packets with the beginnings of HTTP requests and answers in plaintext pass the network interface of a pod. */
class Wire {
  constructor(readonly pod: string) {}

  async start(): Promise<void> {
    await this.#nft('add table ip wire', 'add chain ip wire in { type filter hook prerouting priority -350; }', 'add chain ip wire out { type filter hook postrouting priority 350; }', 'add rule ip wire in iifname != "lo" meta l4proto tcp @ih,0,32 0x47455420 counter', 'add rule ip wire out oifname != "lo" meta l4proto tcp @ih,0,32 0x48545450 counter');
  }

  async plaintext(): Promise<number> {
    const listed = await this.#nft('list table ip wire');
    return [...listed.matchAll(/counter packets (\d+)/g)].reduce((sum, [, count]) => sum + Number(count), 0);
  }

  async stop(): Promise<void> {
    await this.#nft('delete table ip wire');
  }

  async #nft(...commands: string[]): Promise<string> {
    const { code, stdout, stderr } = await world.lab.exec(this.pod, ['nft', '-f', '-'], { input: `${commands.join('\n')}\n` });
    assert.equal(code, 0, stderr);
    return stdout;
  }
}

test('the node\'s pods under STRICT take sidecars, gateways and other nodes\' pods by mutual TLS, each as its own account, and nobody in plaintext', async () => {
  const ingress = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: ingress, namespace: edge}
spec: {selector: {istio: ingress}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ingress, namespace: edge}
spec: {hosts: ["*"], gateways: [ingress], http: [{route: [{destination: {host: near.node.svc.cluster.local, port: {number: 80}}}]}]}
`;
  await world.apply('mesh', [strict('node'), strict('sidecar'), ingress].join('---\n'));
  // Nobody else before that: a connection that a proxy pooled before the policy came would stay.
  await becomes({ 'outside': [caller('outside/client', 'near.node'), 'refused'], 'outside, other node': [caller('outside/client', 'far.node'), 'refused'], 'outside tcp': [line('outside/client', 'near.node'), 'refused'] });
  await becomes({
    'sidecar to the pod beside it': [caller(DAVE, 'near.node'), principal(DAVE)], 'sidecar to another node': [caller(DAVE, 'far.node'), principal(DAVE)], 'sidecar tcp': [line(DAVE, 'near.node'), 'echoed'],
    'gateway': [caller('outside/client', 'ingress.edge'), principal('edge/ingress')],
    'same node': [caller(ALICE, 'near.node'), principal(ALICE)], 'same node tcp': [line(ALICE, 'near.node'), 'echoed'],
    'other node': [caller(ALICE, 'far.node'), principal(ALICE)], 'other node tcp': [line(ALICE, 'far.node'), 'echoed'], 'and back': [caller(CAROL, 'near.node'), principal(CAROL)],
  });
  assert.deepEqual(await world.nacks(), []);

  const wire = new Wire('node/far');
  await wire.start();
  for (const from of [ALICE, DAVE]) assert.equal(await caller(from, 'far.node')(), principal(from));
  assert.equal(await wire.plaintext(), 0, 'nothing is to be read on the way between nodes');
  await caller('outside/client', 'far.node')();
  assert.ok((await wire.plaintext()) > 0, 'what is in plaintext is seen here');
  await wire.stop();

  await world.apply('mesh', [strict('node'), ingress, allow('node', 'near', principal(DAVE), principal('edge/ingress'), principal(CAROL)), allow('node', 'far', principal(ALICE)), deny('node', 'near', CAROL)].join('---\n'));
  await becomes({
    dave: [caller(DAVE, 'near.node'), principal(DAVE)], 'dave elsewhere': [caller(DAVE, 'far.node'), '403'], 'dave tcp': [line(DAVE, 'near.node'), 'echoed'], 'dave tcp elsewhere': [line(DAVE, 'far.node'), 'refused'],
    gateway: [caller('outside/client', 'ingress.edge'), principal('edge/ingress')],
    alice: [caller(ALICE, 'far.node'), principal(ALICE)], bob: [caller(BOB, 'far.node'), '403'], 'alice on her node': [caller(ALICE, 'near.node'), '403'], carol: [caller(CAROL, 'near.node'), '403'],
  });
});
