// What is not plain HTTP through gateways, Istio's and the Gateway API's, to servers in both modes: gRPC, WebSocket, TLS by name, TCP.
import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import type { EchoResponse } from '../lab/images/grpc-echo.js';
import { MODES } from './mesh/world.js';
import { ALL, GatewayWorld, hostOf, istioGateway, istioGatewayYaml, kubeGateway, kubeGatewayYaml, routeYaml, server, tlsServers, type GatewayPod } from './gateway-world.js';

const ISTIO = istioGateway('ingress', '{name: http2, port: 80, targetPort: 8080}');
const KUBE = kubeGateway('front', '{name: http, port: 80}, {name: tls, port: 443}, {name: tcp, port: 31400}');

/** Two versions, each behind a Service of its own. */
const grpcServers = (namespace: string): string =>
  ['v1', 'v2'].map((version) => `apiVersion: v1
kind: Pod
metadata: {name: grpc-${version}, namespace: ${namespace}, labels: {app: grpc, version: ${version}}}
spec: {serviceAccountName: grpc, containers: [{name: grpc, image: grpc-echo, ports: [{name: grpc, containerPort: 7070}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: grpc-${version}, namespace: ${namespace}}
spec: {selector: {app: grpc, version: ${version}}, ports: [{name: grpc, port: 7070}]}
`).join('---\n');

const world = new GatewayWorld('gwproto', [ISTIO, KUBE], { yaml: (namespace) => `${tlsServers(namespace)}---\n${grpcServers(namespace)}` });
const { mesh } = world;

const HTTP = kubeGatewayYaml('front', `{name: http, port: 80, protocol: HTTP, ${ALL}}`);
const PARENT = 'parentRefs: [{name: front, namespace: edge}]';
type Echo = Pick<EchoResponse, 'version' | 'message' | 'metadata'>;

async function grpc(...args: string[]): Promise<Echo[]> {
  const { code, stdout, stderr } = await mesh.lab.exec('outside/client', ['grpc-client', ...args], { timeoutMs: 60_000 });
  assert.equal(code, 0, stderr);
  return stdout.trim().split('\n').map((line) => JSON.parse(line) as Echo);
}
const TARGET = `${hostOf(KUBE)}:80`;
const versions = async (...args: string[]): Promise<string[]> => (await grpc(...args)).map(({ version }) => version);
const to = (version: string, more = ''): string => `{name: grpc-${version}, port: 7070${more}}`;

for (const mode of MODES) {
  test(`GRPCRoute: services, methods and headers choose the backend, of calls and of streams (servers in mode ${mode})`, async () => {
    await mesh.apply('mesh', HTTP + routeYaml('grpc', mode, `${PARENT}
rules:
  - {matches: [{method: {service: underpass.lab.Echo, method: ServerStream}}, {method: {method: BidiStream}}], backendRefs: [${to('v2')}]}
  - {matches: [{method: {type: RegularExpression, service: 'underpass\\..+', method: "Client.+"}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-way, value: client-stream}]}}], backendRefs: [${to('v2')}]}
  - {matches: [{method: {service: underpass.lab.Echo}, headers: [{name: user, value: jesse}]}], backendRefs: [${to('v2')}]}
  - {matches: [{headers: [{name: user, type: RegularExpression, value: "j.+"}]}], backendRefs: [${to('v1')}]}
  - {matches: [{method: {service: other.Service}}], backendRefs: [${to('v2')}]}
  - {backendRefs: [${to('v1')}]}`, 'GRPCRoute'));
    await world.noNacks();
    assert.deepEqual(await versions(TARGET, 'Unary'), ['v1']);
    assert.deepEqual(await versions('-H', 'user=jesse', TARGET, 'Unary'), ['v2']);
    assert.deepEqual(await versions('-H', 'user=jane', TARGET, 'Unary'), ['v1']);
    assert.deepEqual(await versions(TARGET, 'ServerStream', '{"count":3}'), ['v2', 'v2', 'v2']);
    assert.deepEqual((await grpc(TARGET, 'BidiStream', '{"message":"a"}', '{"message":"b"}')).map(({ version, message }) => [version, message]), [['v2', 'a'], ['v2', 'b']]);
    const [sum] = await grpc(TARGET, 'ClientStream', '{"message":"a"}', '{"message":"b"}');
    assert.deepEqual([sum!.version, sum!.message, sum!.metadata['x-way']], ['v2', 'a b', 'client-stream']);
  });
}

test('GRPCRoute: weights share the calls between servers of both modes; a backend that may not be led to answers its share with UNAVAILABLE', async () => {
  const shared = (weights: readonly string[]): string => `${PARENT}\nrules: [{backendRefs: [${weights.join(', ')}]}]`;
  const grant = 'apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: grpc, namespace: node}\nspec: {from: [{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: sidecar}], to: [{group: "", kind: Service}]}\n---\n';
  await mesh.apply('mesh', HTTP + grant + routeYaml('shared', 'sidecar', shared([to('v1', ', weight: 3'), to('v2', ', namespace: node, weight: 1')]), 'GRPCRoute'));
  const found: Record<string, number> = {};
  for (const { version } of await grpc('-n', '200', TARGET, 'Unary')) found[version] = (found[version] ?? 0) + 1;
  // 5.5 standard deviations around 150 of 200.
  assert.ok(Math.abs(found['v1']! - 150) < 34, JSON.stringify(found));
  assert.equal(found['v1']! + found['v2']!, 200);
  await mesh.apply('mesh', HTTP + routeYaml('shared', 'sidecar', shared([to('v2', ', namespace: node')]), 'GRPCRoute'));
  const outcome = async (): Promise<string> => {
    const { code, stderr } = await mesh.lab.exec('outside/client', ['grpc-client', TARGET, 'Unary']);
    return code === 0 ? 'answered' : /^code \d+/.exec(stderr)![0];
  };
  assert.equal(await outcome(), 'code 14', 'the grant is gone');
  await mesh.apply('mesh', HTTP + routeYaml('shared', 'sidecar', shared([to('v1', ', weight: 1'), to('v2', ', namespace: node, weight: 1')]), 'GRPCRoute'));
  const outcomes = await Promise.all(Array.from({ length: 24 }, outcome));
  assert.deepEqual([...new Set(outcomes)].sort(), ['answered', 'code 14']);
});

/** A WebSocket through the gateway that is open until `close`. */
function webSocket(pod: GatewayPod): { say: (text: string) => Promise<string>; close: () => Promise<number | null> } {
  const child = mesh.lab.spawnIn('outside/client', ['ws-client', `http://${hostOf(pod)}/chat`]);
  const answers = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  return {
    say: async (text) => {
      child.stdin!.write(`${text}\n`);
      const { value, done } = await answers.next();
      assert.ok(!done, 'the connection has ended');
      return value as string;
    },
    close: () => {
      child.stdin!.end();
      return ended;
    },
  };
}

const istioRoute = (name: string, host: string, mode: string): string => `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ${name}, namespace: ${mode}}
spec: {hosts: ["${host}"], gateways: [edge/all], http: [{route: [{destination: {host: web.${mode}.svc.cluster.local, port: {number: 80}}}]}]}
---
`;
const WAYS: readonly { api: string; pod: GatewayPod; yaml: (mode: string, others: readonly string[]) => string }[] = [
  { api: "Istio's Gateway", pod: ISTIO, yaml: (mode, others) => istioGatewayYaml(ISTIO, 'all', server('"*"')) + ['*', ...others].map((host, index) => istioRoute(`r${index}`, host, mode)).join('') },
  { api: 'a Gateway of the Gateway API', pod: KUBE, yaml: (mode, others) => HTTP + ['', ...others].map((host, index) => routeYaml(`r${index}`, mode, `${PARENT}\n${host && `hostnames: [${host}]\n`}rules: [{backendRefs: [{name: web, port: 80}]}]`)).join('') },
];
for (const { api, pod, yaml } of WAYS) {
  for (const mode of MODES) {
    test(`WebSocket through ${api}: frames go both ways, also after hosts and services came and went (server in mode ${mode})`, async () => {
      await mesh.apply('mesh', yaml(mode, []));
      const socket = webSocket(pod);
      assert.match(await socket.say('one'), /^web-v[12]: one$/);
      await mesh.apply('mesh', `${yaml(mode, ['a.example.com', 'b.example.com'])}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: new, namespace: ${mode}}\nspec: {hosts: [new.example], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}\n`);
      assert.match(await socket.say('two'), /: two$/);
      await mesh.apply('mesh', yaml(mode, ['b.example.com']));
      assert.match(await socket.say('x'.repeat(40_000)), /: x{40000}$/);
      assert.equal(await socket.close(), 0);
      await world.noNacks();
    });
  }
}

for (const mode of MODES) {
  test(`TLSRoute: TLS passes through to the server of the name that is asked for, other names get no handshake (servers in mode ${mode})`, async () => {
    const listener = `{name: tls, port: 443, protocol: TLS, hostname: "*.example.com", tls: {mode: Passthrough}, ${ALL}}`;
    const route = (name: string): string => routeYaml(name, mode, `${PARENT}\nhostnames: [${name}.example.com, ${name}.elsewhere.com]\nrules: [{backendRefs: [{name: tls-${name}, port: 443}]}]`, 'TLSRoute');
    await mesh.apply('mesh', kubeGatewayYaml('front', listener) + route('a') + route('b'));
    await world.noNacks();
    const asked = ['a.example.com', 'b.example.com', 'c.example.com', 'a.elsewhere.com'];
    assert.deepEqual(await Promise.all(asked.map((name) => world.subject(KUBE, 443, name))), ['a.example.com', 'b.example.com', 'refused', 'refused']);
  });

  test(`TCPRoute: connections go to the backends of the first rule, by weight; what leads nowhere is refused (servers in mode ${mode})`, async () => {
    const listener = kubeGatewayYaml('front', `{name: tcp, port: 31400, protocol: TCP, ${ALL}}`);
    const route = (...rules: string[]): string => listener + routeYaml('tcp', mode, `${PARENT}\nrules: [${rules.map((backends) => `{backendRefs: [${backends}]}`).join(', ')}]`, 'TCPRoute');
    const WEB = '{name: web, port: 9000}';
    await mesh.apply('mesh', route(WEB, '{name: nobody, port: 1}'));
    assert.match(await world.line(KUBE, 31400), /hello/);
    await mesh.apply('mesh', route('{name: web, port: 9000, weight: 0}', WEB));
    assert.equal(await world.line(KUBE, 31400), 'refused', 'the first rule has no backend with a weight');
    await mesh.apply('mesh', route('{name: web, port: 9000, weight: 1}, {name: nobody, port: 1, weight: 1}'));
    const found = await Promise.all(Array.from({ length: 40 }, () => world.line(KUBE, 31400)));
    assert.deepEqual([...new Set(found.map((line) => line === 'refused'))].sort(), [false, true], 'a share of the connections is refused');
  });

  test(`TCPRoute on a Service: its clients in the mesh obey (clients in mode ${mode})`, async () => {
    const echoed = async (): Promise<string> => (await mesh.lab.exec(`${mode}/client`, ['bash', '-c', 'exec 3<>/dev/tcp/web/9000 && echo hello >&3 && timeout 10 head -1 <&3'])).stdout.trim();
    await mesh.apply(mode, routeYaml('tcp', mode, 'parentRefs: [{group: "", kind: Service, name: web, port: 9000}]\nrules: [{backendRefs: [{name: nobody, port: 1}]}]', 'TCPRoute'));
    assert.equal(await echoed(), '');
    await mesh.apply(mode, routeYaml('tcp', mode, 'parentRefs: [{group: "", kind: Service, name: web, port: 9000}]\nrules: [{backendRefs: [{name: other, port: 9000}]}]', 'TCPRoute'));
    assert.match(await echoed(), /hello/);
    await mesh.clear(mode);
  });
}
