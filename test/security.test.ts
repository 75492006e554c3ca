/**
 * Istio's security API with real traffic through real Envoys: sidecars of the lab whose control plane is pilot, a pod outside
 * of the mesh, an external authorization server, tokens signed here.
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign, type KeyObject } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { CLI } from './agent-harness.js';
import { Load } from './load.js';
import { gatewayPodYaml, istioGateway } from './gateway-world.js';
import { MeshWorld, type Mode } from './mesh/world.js';

const PROVIDERS = [
  { name: 'by-http', envoyExtAuthzHttp: { service: 'ext.authz.svc.cluster.local', port: 8000, timeout: '5s', includeRequestHeadersInCheck: ['x-ext-authz'], headersToUpstreamOnAllow: ['x-ext-authz-result'], headersToDownstreamOnDeny: ['x-ext-authz-result'] } },
  { name: 'by-grpc', envoyExtAuthzGrpc: { service: 'ext.authz.svc.cluster.local', port: 9000, timeout: '5s' } },
];

const EXT_AUTHZ = `
apiVersion: v1
kind: Pod
metadata: {name: ext, namespace: authz, labels: {app: ext}}
spec:
  containers:
    - name: server
      command: [${process.execPath}, ${join(projectRoot, 'dist', 'test', 'ext-authz-server.js')}]
      ports: [{containerPort: 8000}, {containerPort: 9000}]
      env: [{name: PRINCIPALS, value: "spiffe://cluster.local/ns/sidecar/sa/client,spiffe://cluster.local/ns/node/sa/client"}]
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: authz}
spec: {selector: {app: ext}, ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]}
`;

/** Of the mesh, but not of the servers' namespace. */
const guest = (mode: Mode): string => `
apiVersion: v1
kind: Namespace
metadata: {name: guests-${mode}, labels: {underpass.io/mode: ${mode}}}
---
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: guests-${mode}, labels: {app: guest}}
spec: {serviceAccountName: guest, containers: [{name: curl, image: curl}]}
`;

/** What `underpass explain` says of a request to web. */
async function explained(from: string, path: string): Promise<{ verdict: string; reason: string }> {
  const { stdout } = await run(process.execPath, [CLI, 'explain', from, 'web.node:80', '--http', `GET ${path}`, '-o', 'json', '--instance', mesh.name], { timeoutMs: 120_000 });
  return (JSON.parse(stdout) as { request: { verdict: string; reason: string } }).request;
}

/** The modes in which a server's policies are enforced. */
const ENFORCING: readonly Mode[] = ['sidecar', 'node'];

const INGRESS = gatewayPodYaml(istioGateway('ingress', '{name: http2, port: 80, targetPort: 8080}'));

const mesh = new MeshWorld('security', { yaml: guest, outside: `${EXT_AUTHZ}${INGRESS}`, pilot: { meshConfig: { extensionProviders: PROVIDERS } }, sidecarsOnly: !ENFORCING.includes('node') });
before(() => mesh.up());
after(() => mesh.down());

const rsa = generateKeyPairSync('rsa', { modulusLength: 2_048 });
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const stranger = generateKeyPairSync('rsa', { modulusLength: 2_048 });
const jwks = (kid: string, alg: string, key: KeyObject): string => JSON.stringify({ keys: [{ ...key.export({ format: 'jwk' }), kid, alg, use: 'sig' }] });

function token(claims: object, { key = rsa.privateKey, alg = 'RS256', kid = 'rsa' } = {}): string {
  const now = Math.floor(Date.now() / 1_000);
  const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const head = `${part({ alg, kid, typ: 'JWT' })}.${part({ iss: 'issuer.example', sub: 'someone', iat: now, exp: now + 3_600, ...claims })}`;
  return `${head}.${sign('sha256', Buffer.from(head), alg === 'ES256' ? { key, dsaEncoding: 'ieee-p1363' } : key).toString('base64url')}`;
}

const bearer = (value: string): string[] => ['-H', `authorization: Bearer ${value}`];
const authentication = (rules: string, app = 'web', namespace = ''): string => policy('tokens', `{selector: {matchLabels: {app: ${app}}}, jwtRules: [${rules}]}`, { kind: 'RequestAuthentication', namespace });

interface PolicyOptions {
  kind?: string;
  /** Default: that of the servers. */
  namespace?: string;
}

const policy = (name: string, spec: string, { kind = 'AuthorizationPolicy', namespace = '' }: PolicyOptions = {}): string =>
  `apiVersion: security.istio.io/v1\nkind: ${kind}\nmetadata: {name: ${name}${namespace ? `, namespace: ${namespace}` : ''}}\nspec: ${spec}\n`;
/** For clients with an Envoy of their own, whose pools would keep connections on which older policies are in force. */
const oneRequestEach = 'apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: one-request-each}\nspec: {host: web, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}\n';
const peers = (spec: string, more: PolicyOptions & { name?: string } = {}): string => policy(more.name ?? 'default', spec, { kind: 'PeerAuthentication', ...more });

/** Stands for the Envoy of all pods in mode `node`. */
const NODE_PROXY = 'the node';
const admin = (pod: string, path: string): Promise<string> => (pod === NODE_PROXY ? mesh.nodeProxyAdmin(path) : mesh.lab.proxyAdmin(pod, path));

type Probe = () => Promise<string>;

/**
 * Waits until all probes say what is expected, and sees that they go on saying it.
 * @param envoys pods whose proxies enforce the policies
 */
async function becomesAt(expected: Record<string, [Probe, string]>, envoys: readonly string[]): Promise<void> {
  const wanted = Object.fromEntries(Object.entries(expected).map(([name, [, answer]]) => [name, answer]));
  let found: Record<string, string> = {};
  const look = async (): Promise<boolean> => {
    found = Object.fromEntries(await Promise.all(Object.entries(expected).map(async ([name, [probe]]) => [name, await probe()] as const)));
    return isDeepStrictEqual(found, wanted);
  };
  await drained(envoys);
  await waitFor('the policies to be in force', look, { timeoutMs: 60_000, everyMs: 50 }).catch(() => assert.deepEqual(found, wanted));
  await drained(envoys);
  await look();
  assert.deepEqual(found, wanted);
}

/** What these proxies have acknowledged is in force, and connections that were open before, under older policies, are drained. */
async function drained(envoys: readonly string[]): Promise<void> {
  const chains = async (): Promise<boolean> => {
    const pods = envoys.map((pod) => admin(pod, '/stats?filter=listener_manager.total_(filter_chains_draining|listeners_warming|listeners_draining)'));
    // The shared Envoy takes its time with what others have open; what is tried here are new connections and its own pools.
    return (await Promise.all(pods)).every((text, index) => (text.match(/: 0\n/g) ?? []).length === 3 || envoys[index] === NODE_PROXY);
  };
  await waitFor('the proxies to have drained their old connections', chains, { timeoutMs: 60_000, everyMs: 20 });
}

for (const mode of ENFORCING) policiesHold(mode);

/** Declares the tests for servers in one mode. */
function policiesHold(mode: Mode): void {
  const [alice, bob, mallory] = [`${mode}/client`, `guests-${mode}/guest`, 'outside/client'] as const;
  const ALICE = `spiffe://cluster.local/ns/${mode}/sa/client`;
  const BOB = `spiffe://cluster.local/ns/guests-${mode}/sa/guest`;

  const envoys = mode === 'sidecar' ? ['sidecar/web-v1', 'sidecar/web-v2'] : [NODE_PROXY];
  const becomes = (expected: Parameters<typeof becomesAt>[0]): Promise<void> => becomesAt(expected, envoys);

  /** Replaces all policies there are. */
  const policies = (...objects: string[]): Promise<void> => mesh.apply(mode, objects.join('---\n'));

  /** A request's status, or `refused` when no HTTP answer came. */
  const http = (from: string, path = '/', ...args: string[]): Probe => async () => {
    const { code, stdout } = await mesh.lab.exec(from, ['curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', '--max-time', '10', ...args, `http://web.${mode}${path}`]);
    return code === 0 ? stdout : 'refused';
  };

  /** Whether a line comes back from the TCP port. */
  const tcp = (from: string): Probe => async () => {
    const { stdout } = await mesh.lab.exec(from, ['bash', '-c', `exec 3<>/dev/tcp/web.${mode}/9000 && echo ping >&3 && timeout 10 head -1 <&3`]);
    return stdout === 'ping\n' ? 'echoed' : 'refused';
  };

  /** The identity that the server was told of. */
  const identity = (from: string): Probe => async () => {
    const { stdout } = await mesh.lab.exec(from, ['curl', '-s', '--max-time', '10', `http://web.${mode}/`]);
    return /URI=(spiffe:[^;"\\]*)/.exec(stdout)?.[1] ?? (stdout.includes('"version"') ? 'nobody' : 'refused');
  };

  test(`PeerAuthentication: PERMISSIVE takes plaintext and mutual TLS, STRICT refuses plaintext, DISABLE is spoken to without (${mode})`, async () => {
    await policies();
    // Without a certificate to show, the node's servers hear of their caller only once some policy has asked who it is.
    await becomes({ mesh: mode === 'node' ? [http(alice), '200'] : [identity(alice), ALICE], outside: [identity(mallory), 'nobody'], tcp: [tcp(alice), 'echoed'], 'tcp outside': [tcp(mallory), 'echoed'] });
    await policies(peers('{mtls: {mode: STRICT}}'));
    await becomes({ mesh: [identity(alice), ALICE], outside: [identity(mallory), 'refused'], tcp: [tcp(alice), 'echoed'], 'tcp outside': [tcp(mallory), 'refused'] });
    await policies(peers('{mtls: {mode: DISABLE}}'));
    await becomes({ mesh: [identity(alice), 'nobody'], outside: [identity(mallory), 'nobody'], tcp: [tcp(bob), 'echoed'], 'tcp outside': [tcp(mallory), 'echoed'] });
  });

  test(`PeerAuthentication: the mesh, a namespace, a workload and a port, the narrower over the wider (${mode})`, async () => {
    const mesh = peers('{mtls: {mode: STRICT}}', { namespace: 'istio-system' });
    await policies(mesh);
    await becomes({ outside: [identity(mallory), 'refused'], mesh: [identity(bob), BOB] });
    await policies(mesh, peers('{mtls: {mode: PERMISSIVE}}'));
    await becomes({ outside: [identity(mallory), 'nobody'], mesh: [identity(alice), ALICE] });
    await policies(mesh, peers('{selector: {matchLabels: {app: web}}, portLevelMtls: {9000: {mode: DISABLE}}}', { name: 'web' }));
    await becomes({ outside: [identity(mallory), 'refused'], mesh: [identity(alice), ALICE], 'tcp outside': [tcp(mallory), 'echoed'], tcp: [tcp(alice), 'echoed'] });
    await policies(peers('{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9000: {mode: STRICT}}}', { name: 'web' }));
    await becomes({ outside: [identity(mallory), 'nobody'], 'tcp outside': [tcp(mallory), 'refused'], tcp: [tcp(alice), 'echoed'] });
  });

  test(`AuthorizationPolicy: one without rules allows nothing, one with an empty rule everything (${mode})`, async () => {
    await policies(policy('nothing', '{}'));
    await becomes({ mesh: [http(alice), '403'], outside: [http(mallory), '403'], tcp: [tcp(alice), 'refused'] });
    await policies(policy('all', '{rules: [{}]}'));
    await becomes({ mesh: [http(alice), '200'], outside: [http(mallory), '200'], tcp: [tcp(alice), 'echoed'] });
    await policies(policy('none', '{action: DENY, rules: [{}]}'));
    await becomes({ mesh: [http(alice), '403'], outside: [http(mallory), '403'], tcp: [tcp(alice), 'refused'] });
    await policies();
    await becomes({ mesh: [http(alice), '200'], tcp: [tcp(alice), 'echoed'] });
  });

  test(`AuthorizationPolicy ALLOW: by principal, namespace and service account, for HTTP and for TCP (${mode})`, async () => {
    for (const source of [`principals: [cluster.local/ns/${mode}/sa/client]`, `namespaces: [${mode}]`, 'serviceAccounts: [client]', 'principals: ["*/sa/client"]', `notNamespaces: [guests-${mode}], principals: ["*"]`]) {
      await policies(policy('who', `{rules: [{from: [{source: {${source}}}]}]}`));
      await becomes({
        alice: [http(alice), '200'], bob: [http(bob), '403'], mallory: [http(mallory), '403'],
        'alice tcp': [tcp(alice), 'echoed'], 'bob tcp': [tcp(bob), 'refused'], 'mallory tcp': [tcp(mallory), 'refused'],
      });
    }
  });

  test(`AuthorizationPolicy: by the caller's own address, which no header alters (${mode})`, async () => {
    const [address] = mesh.lab.pod(...(alice.split('/') as [string, string])).ips as [string];
    await policies(policy('where', `{rules: [{from: [{source: {ipBlocks: [${address}/32]}}]}]}`));
    await becomes({
      alice: [http(alice), '200'], bob: [http(bob), '403'], 'bob lies': [http(bob, '/', '-H', `x-forwarded-for: ${address}`), '403'], mallory: [http(mallory), '403'],
      'alice tcp': [tcp(alice), 'echoed'], 'bob tcp': [tcp(bob), 'refused'],
    });
    await policies(policy('where', `{action: DENY, rules: [{from: [{source: {ipBlocks: [${address}]}}]}]}`));
    await becomes({ alice: [http(alice), '403'], bob: [http(bob), '200'], mallory: [http(mallory), '200'], 'alice tcp': [tcp(alice), 'refused'], 'bob tcp': [tcp(bob), 'echoed'] });
  });

  test(`a policy is not gone round by the pod's own address or by what a client says of itself (${mode})`, async () => {
    const [address] = mesh.lab.pod(mode, 'web-v1').ips as [string];
    const direct = (from: string, ...args: string[]): Probe => async () => {
      const { code, stdout } = await mesh.lab.exec(from, ['curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', '--max-time', '10', ...args, `http://${address}:8080/`]);
      return code === 0 ? stdout : 'refused';
    };
    const line = (from: string): Probe => async () => {
      const { stdout } = await mesh.lab.exec(from, ['bash', '-c', `exec 3<>/dev/tcp/${address}/9000 && echo ping >&3 && timeout 10 head -1 <&3`]);
      return stdout === 'ping\n' ? 'echoed' : 'refused';
    };
    const lie = ['-H', `x-forwarded-client-cert: URI=${ALICE}`];
    await policies(policy('who', `{rules: [{from: [{source: {principals: [cluster.local/ns/${mode}/sa/client]}}]}]}`));
    await becomes({
      bob: [direct(bob), '403'], 'bob lies': [http(bob, '/', ...lie), '403'], mallory: [direct(mallory), '403'], 'mallory lies': [direct(mallory, ...lie), '403'],
      'bob tcp': [line(bob), 'refused'], 'mallory tcp': [line(mallory), 'refused'], alice: [http(alice), '200'],
    });
    await policies();
    await becomes({ bob: [direct(bob), '200'], mallory: [direct(mallory), '200'], 'bob tcp': [line(bob), 'echoed'], 'mallory tcp': [line(mallory), 'echoed'] });
    await policies(peers('{mtls: {mode: STRICT}}'));
    const told = await mesh.lab.exec(alice, ['curl', '-s', '-H', 'x-forwarded-client-cert: URI=spiffe://cluster.local/ns/x/sa/admin', `http://web.${mode}/`]);
    assert.match(told.stdout, new RegExp(`URI=${ALICE}`));
    assert.doesNotMatch(told.stdout, /sa\/admin/);
    await becomes({ mallory: [direct(mallory), 'refused'], 'mallory tcp': [line(mallory), 'refused'], alice: [http(alice), '200'] });
  });

  test(`AuthorizationPolicy ALLOW: by method, path, host and header; a rule about HTTP never opens a TCP port (${mode})`, async () => {
    await policies(policy('what', '{rules: [{to: [{operation: {methods: [GET], paths: ["/public/*", "/users/{*}/photo"]}}]}, {when: [{key: "request.headers[x-pass]", values: [please]}]}, {to: [{operation: {hosts: ["special.*"]}}]}]}'));
    await becomes({
      public: [http(bob, '/public/a'), '200'], post: [http(bob, '/public/a', '-X', 'POST'), '403'], private: [http(bob, '/private'), '403'],
      template: [http(bob, '/users/7/photo'), '200'], 'too deep': [http(bob, '/users/7/x/photo'), '403'],
      header: [http(bob, '/private', '-H', 'x-pass: please'), '200'], 'other header': [http(bob, '/private', '-H', 'x-pass: no'), '403'],
      // The path is judged as the application will see it.
      dots: [http(bob, '/public/../private', '--path-as-is'), '403'],
      host: [http(mallory, '/private', '-H', 'host: special.example'), '200'], 'other host': [http(mallory, '/private', '-H', 'host: else.example'), '403'],
      tcp: [tcp(bob), 'refused'],
    });
  });

  test(`AuthorizationPolicy DENY beats ALLOW; on a TCP port it is read without what only HTTP knows (${mode})`, async () => {
    await policies(policy('allow', '{rules: [{}]}'), policy('deny', `{action: DENY, rules: [{from: [{source: {namespaces: [guests-${mode}]}}], to: [{operation: {notMethods: [GET]}}]}]}`));
    await becomes({ get: [http(bob), '200'], post: [http(bob, '/', '-X', 'POST'), '403'], alice: [http(alice, '/', '-X', 'POST'), '200'], 'bob tcp': [tcp(bob), 'refused'], 'alice tcp': [tcp(alice), 'echoed'] });
    await policies(policy('mesh', '{action: DENY, rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}', { namespace: 'istio-system' }), policy('others', '{action: DENY, selector: {matchLabels: {app: other}}, rules: [{}]}'));
    await becomes({ alice: [http(alice), '200'], bob: [http(bob), '200'], mallory: [http(mallory), '403'], 'mallory tcp': [tcp(mallory), 'refused'] });
  });

  test(`AuthorizationPolicy: a dry run decides nothing (${mode})`, async () => {
    await policies(policy('dry', '{action: DENY, rules: [{}]}').replace('metadata: {', 'metadata: {annotations: {istio.io/dry-run: "true"}, '), policy('paths', '{action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]}'));
    await becomes({ denied: [http(alice, '/no'), '403'], dry: [http(alice), '200'] });
  });

  test(`a policy that changes holds for connections that are already open once they are drained, without a failure for those it still allows (${mode})`, async () => {
    await policies();
    await becomes({ mesh: [http(alice), '200'], guest: [http(bob), '200'] });
    const [stays, goes] = [alice, bob].map((from) => Load.start(mesh.lab, from, { url: `http://web.${mode}/`, keepAlive: 2, fresh: 0, pauseMs: 10 })) as [Load, Load];
    try {
      await Promise.all([stays.run(20), goes.run(20)]);
      await policies(policy('home', `{rules: [{from: [{source: {namespaces: [${mode}]}}]}]}`));
      const denied = 'status 403: RBAC: access denied';
      await goes.run(1, ({ failures }) => (failures[denied] ?? 0) > 0);
      await drained(envoys);
      const later = await goes.run(20);
      assert.deepEqual(later.failures, { [denied]: later.requests }, 'once refused, always refused');
      await policies();
      await goes.run(1, ({ requests, failures }) => requests > (failures[denied] ?? 0));
      await drained(envoys);
      assert.deepEqual((await goes.run(20)).failures, {});
    } finally {
      await goes.end();
      assert.deepEqual((await stays.end()).failures, {});
    }
  });

  test(`RequestAuthentication: a token must be good, none is no mistake until a policy asks for one (${mode})`, async () => {
    const rule = `{issuer: issuer.example, audiences: [web], jwks: '${jwks('rsa', 'RS256', rsa.publicKey)}', forwardOriginalToken: true, outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-group, claim: group}]}`;
    const good = token({ aud: 'web', group: 'dev' });
    const past = Math.floor(Date.now() / 1_000) - 3_600;
    const cases: Record<string, [Probe, string]> = {
      good: [http(alice, '/', ...bearer(good)), '200'],
      expired: [http(alice, '/', ...bearer(token({ aud: 'web', exp: past }))), '401'],
      'too early': [http(alice, '/', ...bearer(token({ aud: 'web', nbf: Math.floor(Date.now() / 1_000) + 3_600 }))), '401'],
      'another issuer': [http(alice, '/', ...bearer(token({ aud: 'web', iss: 'other.example' }))), '401'],
      'another audience': [http(alice, '/', ...bearer(token({ aud: 'api' }))), '403'],
      'another key': [http(alice, '/', ...bearer(token({ aud: 'web' }, { key: stranger.privateKey }))), '401'],
      nonsense: [http(alice, '/', ...bearer('a.b.c')), '401'],
    };
    await policies(authentication(rule));
    await becomes({ ...cases, missing: [http(alice), '200'] });
    const { stdout } = await mesh.lab.exec(alice, ['curl', '-s', ...bearer(good), `http://web.${mode}/`]);
    const seen = (JSON.parse(stdout) as { headers: Record<string, string> }).headers;
    assert.equal(seen['authorization'], `Bearer ${good}`);
    assert.equal(seen['x-group'], 'dev');
    assert.equal((JSON.parse(Buffer.from(seen['x-payload']!, 'base64url').toString()) as { sub: string }).sub, 'someone');
    await policies(authentication(rule), policy('need', '{rules: [{from: [{source: {requestPrincipals: ["issuer.example/*"]}}], when: [{key: "request.auth.claims[group]", values: [dev, ops]}]}]}'));
    await becomes({
      ...cases, missing: [http(alice), '403'], 'another group': [http(alice, '/', ...bearer(token({ aud: 'web', group: 'sales' }))), '403'], 'no group': [http(alice, '/', ...bearer(token({ aud: 'web' }))), '403'],
      'one of several groups': [http(alice, '/', ...bearer(token({ aud: 'web', group: ['sales', 'ops'] }))), '200'],
    });
  });

  test(`RequestAuthentication: from headers, parameters and cookies; several issuers, each with its own key (${mode})`, async () => {
    const rules = [
      `{issuer: issuer.example, jwks: '${jwks('rsa', 'RS256', rsa.publicKey)}', fromHeaders: [{name: x-token, prefix: "Token "}], fromParams: [token], fromCookies: [token]}`,
      `{issuer: ec.example, jwks: '${jwks('ec', 'ES256', ec.publicKey)}'}`,
    ];
    const good = token({});
    const bad = token({}, { key: stranger.privateKey });
    const ecToken = token({ iss: 'ec.example' }, { key: ec.privateKey, alg: 'ES256', kid: 'ec' });
    await policies(authentication(rules.join(', ')), policy('need', '{rules: [{from: [{source: {requestPrincipals: ["*"]}}]}]}'));
    await becomes({
      header: [http(alice, '/', '-H', `x-token: Token ${good}`), '200'], 'bad header': [http(alice, '/', '-H', `x-token: Token ${bad}`), '401'],
      parameter: [http(alice, `/?token=${good}`), '200'], 'bad parameter': [http(alice, `/?token=${bad}`), '401'],
      cookie: [http(alice, '/', '-b', `token=${good}`), '200'], 'bad cookie': [http(alice, '/', '-b', `token=${bad}`), '401'],
      'the other issuer': [http(alice, '/', ...bearer(ecToken)), '200'], none: [http(alice), '403'],
    });
  });

  test(`RequestAuthentication: keys by jwksUri are fetched by the control plane; until they are there every token is refused, and rotated keys are taken (${mode})`, async () => {
    let keys: string | undefined;
    const server = createServer((_request, response) => (keys === undefined ? response.writeHead(503).end() : response.end(keys)));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    try {
      await policies(authentication(`{issuer: issuer.example, jwksUri: "http://127.0.0.1:${(server.address() as AddressInfo).port}/keys"}`));
      const good = bearer(token({}));
      await becomes({ 'no keys yet': [http(alice, '/', ...good), '401'], missing: [http(alice), '200'] });
      assert.match(mesh.pilot.status().jwksProblems.join(), /found status 503, expected 200; every token of the issuer is refused/);
      keys = jwks('rsa', 'RS256', rsa.publicKey);
      await becomes({ 'keys are there': [http(alice, '/', ...good), '200'], 'another key': [http(alice, '/', ...bearer(token({}, { key: stranger.privateKey }))), '401'] });
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });

  for (const provider of ['by-http', 'by-grpc']) {
    test(`AuthorizationPolicy CUSTOM: what it matches is decided ${provider.replace('-', ' ')}, before DENY and ALLOW, whatever the client's mode (${mode})`, async () => {
      await policies(policy('ext', `{action: CUSTOM, provider: {name: ${provider}}, rules: [{to: [{operation: {paths: ["/guarded/*"]}}]}]}`), policy('deny', '{action: DENY, rules: [{to: [{operation: {paths: [/guarded/never]}}]}]}'), oneRequestEach);
      const pass = ['-H', 'x-ext-authz: allow'];
      const other = mode === 'node' ? 'sidecar/client' : 'node/client';
      await becomes({
        unguarded: [http(alice, '/open'), '200'], refused: [http(alice, '/guarded/a'), '403'], allowed: [http(alice, '/guarded/a', ...pass), '200'],
        'allowed, then denied': [http(alice, '/guarded/never', ...pass), '403'],
        'refused, of the other mode': [http(other, '/guarded/a'), '403'], 'allowed, of the other mode': [http(other, '/guarded/a', ...pass), '200'], 'denied, of the other mode': [http(other, '/guarded/never', ...pass), '403'],
      });
      const asked = await mesh.lab.exec(alice, ['curl', '-s', '-i', `http://web.${mode}/guarded/a`]);
      assert.match(asked.stdout, /x-ext-authz-result: denied[^]*denied by ext_authz/);
      const passed = await mesh.lab.exec(alice, ['curl', '-s', ...pass, `http://web.${mode}/guarded/a`]);
      assert.equal((JSON.parse(passed.stdout) as { headers: Record<string, string> }).headers['x-ext-authz-result'], 'allowed');
      if (mode !== 'node') return;
      const [guarded, never, unguarded] = [await explained(alice, '/guarded/a'), await explained(alice, '/guarded/never'), await explained(alice, '/open')];
      assert.deepEqual([guarded.verdict, never.verdict, unguarded.verdict], ['unknown', 'deny', 'allow']);
      const [port, kind] = provider === 'by-http' ? [8_000, 'HTTP'] : [9_000, 'gRPC'];
      assert.equal(guarded.reason, `AuthorizationPolicy node/ext, rule 0 (CUSTOM) asks the external authorizer ${provider} (ext.authz.svc.cluster.local:${port}, by ${kind}; while that does not answer requests are refused), which decides`);
    });
  }

  test(`AuthorizationPolicy CUSTOM: connections of no known protocol are decided by gRPC; a provider that is not there refuses what its policies match (${mode})`, async () => {
    await policies(policy('ext', '{action: CUSTOM, provider: {name: by-grpc}, rules: [{to: [{operation: {ports: ["9000"]}}]}]}'));
    // Of a connection that showed no certificate Envoy tells the provider no principal.
    await becomes({ alice: [tcp(alice), mode === 'node' ? 'refused' : 'echoed'], bob: [tcp(bob), 'refused'], http: [http(bob), '200'] });
    await policies(policy('ext', '{action: CUSTOM, provider: {name: nobody}, rules: [{to: [{operation: {paths: ["/guarded/*"]}}]}]}'));
    await becomes({ guarded: [http(alice, '/guarded/a', '-H', 'x-ext-authz: allow'), '403'], open: [http(alice, '/open'), '200'] });
    if (mode === 'node') assert.match((await explained(alice, '/guarded/a')).reason, /^AuthorizationPolicy node\/ext, rule 0 \(CUSTOM\) denies it, since its provider is not known/);
  });
}

test('an ingress gateway: tokens and routes by their claims, addresses, hosts and paths, external authorization', async () => {
  for (const mode of ENFORCING) await mesh.clear(mode);
  const at = (host: string, path: string, ...args: string[]): Probe => async () => {
    const { stdout } = await mesh.lab.exec('outside/client', ['curl', '-s', '-o', '/dev/null', '-w', '%{http_code}', '--max-time', '10', '-H', `host: ${host}`, ...args, `http://ingress.edge${path}`]);
    return stdout;
  };
  const routes = `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop, namespace: edge}
spec: {selector: {istio: ingress}, servers: [{hosts: ["*"], port: {number: 80, name: http, protocol: HTTP}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: edge}
spec:
  hosts: ["*"]
  gateways: [shop]
  http:
    - match: [{uri: {exact: /staff}, headers: {"@request.auth.claims.group": {exact: dev}}}]
      directResponse: {status: 202}
    - match: [{uri: {exact: /staff}}]
      directResponse: {status: 404}
    - route: [{destination: {host: web.sidecar.svc.cluster.local, port: {number: 80}}}]
`;
  const [address] = mesh.lab.pod('outside', 'client').ips as [string];
  const apply = (...objects: string[]): Promise<void> => mesh.apply('mesh', [routes, ...objects].join('---\n'));
  const edge = { namespace: 'edge' };
  const becomes = (expected: Parameters<typeof becomesAt>[0]): Promise<void> => becomesAt(expected, ['edge/ingress']);
  const rule = `{issuer: issuer.example, jwks: '${jwks('rsa', 'RS256', rsa.publicKey)}'}`;

  await apply(authentication(rule, 'ingress', 'edge'), policy('need', '{rules: [{to: [{operation: {paths: ["/public/*"]}}]}, {from: [{source: {requestPrincipals: ["issuer.example/*"]}}]}]}', edge));
  await becomes({
    public: [at('a.example', '/public/x'), '200'], 'no token': [at('a.example', '/'), '403'], good: [at('a.example', '/', ...bearer(token({}))), '200'], bad: [at('a.example', '/public/x', ...bearer(token({}, { key: stranger.privateKey }))), '401'],
    'claim that routes': [at('a.example', '/staff', ...bearer(token({ group: ['ops', 'dev'] }))), '202'], 'claim that does not': [at('a.example', '/staff', ...bearer(token({ group: 'sales' }))), '404'],
  });
  await apply(policy('from', `{action: DENY, rules: [{from: [{source: {ipBlocks: [${address}/32]}}], to: [{operation: {hosts: ["private.*"]}}]}]}`, edge));
  await becomes({ private: [at('private.example', '/'), '403'], other: [at('a.example', '/'), '200'] });
  await apply(policy('from', '{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}]}', edge));
  await becomes({ 'what a client says of itself does not count': [at('a.example', '/', '-H', 'x-forwarded-for: 192.0.2.7'), '200'] });
  await apply(policy('ext', '{action: CUSTOM, provider: {name: by-grpc}, selector: {matchLabels: {istio: ingress}}, rules: [{to: [{operation: {paths: ["/guarded/*"]}}]}]}', edge));
  await becomes({ refused: [at('a.example', '/guarded/x'), '403'], allowed: [at('a.example', '/guarded/x', '-H', 'x-ext-authz: allow'), '200'], open: [at('a.example', '/'), '200'] });
});
