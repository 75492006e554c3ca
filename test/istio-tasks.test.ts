// The tasks of Istio's documentation on traffic management and security: their YAML as it is, what they promise looked for in real traffic.
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { waitFor } from '../common/retry.js';
import { MODES, type MeshWorld } from './mesh/world.js';
import { task, tasksWorld, type Credential, type TasksWorld } from './istio-tasks-world.js';

const INGRESS = 'istio-ingressgateway.istio-system';

for (const mode of MODES) describe(mode, () => {
  let world: TasksWorld;
  let mesh: MeshWorld;
  before(async () => {
    world = await tasksWorld(mode);
    ({ mesh } = world);
  });
  after(() => world?.down());

  const BOOKINFO = ['bookinfo-gateway', 'destination-rule-all', 'virtual-service-all-v1'].map((name) => `samples/bookinfo/${name}`);
  /** What a task changes comes last: of the same object the later one counts. */
  const applyBookinfo = (...files: string[]): Promise<void> => mesh.apply('mesh', newest(task('default', ...BOOKINFO, ...files)));

  /** As repeated `kubectl apply`: of objects of one name the last stays. */
  function newest(yaml: string): string {
    const found = new Map<string, string>();
    for (const document of yaml.split(/^---\n/m)) found.set(/kind: .*|^ {2}name: .*|^ {2}namespace: .*/gm[Symbol.match](document)?.slice(0, 3).join() ?? '', document);
    return [...found.values()].join('---\n');
  }

  async function pages({ user = '', count = 1 } = {}): Promise<string[]> {
    const { code, stdout, stderr } = await mesh.lab.exec('legacy/curl', ['curl', '-sS', '--max-time', '20', ...(user ? ['-H', `cookie: session=${user}`] : []), `http://${INGRESS}/productpage?[1-${count}]`], { timeoutMs: 60_000 });
    assert.equal(code, 0, stderr);
    return stdout.split('<!DOCTYPE html>').slice(1);
  }

  type Stars = 'none' | 'black' | 'red' | 'no ratings' | 'no reviews' | 'no page';
  function starsOf(page: string): Stars {
    if (page.includes('Error fetching product reviews!')) return 'no reviews';
    if (page.includes('Ratings service is currently unavailable')) return 'no ratings';
    const color = /<font color="(black|red)">/.exec(page)?.[1] as Stars | undefined;
    return color ?? (page.includes('Book Reviews') ? 'none' : 'no page');
  }
  /** What everybody, and what jason, sees. */
  const seen = (): Promise<Stars[]> => Promise.all(['', 'jason'].map(async (user) => starsOf((await pages({ user }))[0] ?? '')));

  test(`request routing: everybody sees reviews v1, jason v2 (${mode})`, async () => {
    await applyBookinfo();
    assert.deepEqual(await seen(), ['none', 'none']);
    await applyBookinfo('request-routing/virtual-service-reviews-test-v2');
    assert.deepEqual(await mesh.nacks(), []);
    assert.deepEqual(await seen(), ['none', 'black']);
  });

  test(`fault injection: jason's ratings come too late for reviews, or not at all; nobody else notices (${mode})`, async () => {
    await applyBookinfo('request-routing/virtual-service-reviews-test-v2', 'fault-injection/virtual-service-ratings-test-delay');
    assert.deepEqual(await seen(), ['none', 'no reviews']);
    await applyBookinfo('request-routing/virtual-service-reviews-test-v2', 'fault-injection/virtual-service-ratings-test-abort');
    assert.deepEqual(await seen(), ['none', 'no ratings']);
  });

  test(`traffic shifting: half of the requests, then all, go to reviews v3 (${mode})`, async () => {
    await applyBookinfo('traffic-shifting/virtual-service-reviews-50-v3');
    const found = (await pages({ count: 40 })).map(starsOf);
    assert.deepEqual([...new Set(found)].sort(), ['none', 'red'], found.join());
    await applyBookinfo('traffic-shifting/virtual-service-reviews-v3');
    assert.deepEqual(new Set((await pages({ count: 10 })).map(starsOf)), new Set(['red']));
  });

  test(`request timeouts: a delay of ratings shows as missing reviews once reviews has a timeout (${mode})`, async () => {
    await applyBookinfo('request-timeouts/reviews-v2', 'request-timeouts/ratings-delay');
    assert.deepEqual(await seen(), ['black', 'black']);
    await applyBookinfo('request-timeouts/ratings-delay', 'request-timeouts/reviews-timeout');
    assert.deepEqual(await seen(), ['no reviews', 'no reviews']);
  });

  test(`circuit breaking: what is more than the connection pool takes is turned away (${mode})`, async () => {
    await mesh.apply('mesh', task('default', 'circuit-breaking/httpbin-destination-rule'));
    const fortio = (...words: string[]): ReturnType<typeof mesh.lab.exec> => mesh.lab.exec('default/fortio-deploy', ['/usr/bin/fortio', ...words, 'http://httpbin:8000/get'], { timeoutMs: 30_000 });
    assert.match((await fortio('curl', '-quiet')).stdout, /^HTTP\/1\.1 200 OK/);
    const { stdout } = await fortio('load', '-c', '3', '-qps', '0', '-n', '30', '-loglevel', 'Warning');
    assert.match(stdout, /Code 200 : \d+/);
    assert.match(stdout, /Code 503 : \d+/);
    assert.match(await mesh.proxyAdmin('default/fortio-deploy', '/stats?filter=httpbin.*pending_overflow'), /outbound\|8000\|\|httpbin\.default\.svc\.cluster\.local.*upstream_rq_pending_overflow: [1-9]/);
  });

  test(`mirroring: v1 answers, v2 gets a copy (${mode})`, async () => {
    const apply = (...files: string[]): Promise<void> => mesh.apply('mesh', newest(task('mirroring', 'mirroring/all-v1', ...files)));
    const logged = (version: string, path: string): number => readFileSync(mesh.lab.pod('mirroring', `httpbin-${version}`).containers.find(({ name }) => name === 'httpbin')!.log!, 'utf8').split(path).length - 1;
    const get = (path: string): Promise<unknown> => mesh.curl('outside', `http://httpbin:8000${path}`, { from: 'mirroring/curl' });
    await apply();
    await get('/headers?before');
    await apply('mirroring/mirror-to-v2');
    for (let i = 0; i < 5; i++) await get('/headers?after');
    await waitFor('the copies', () => logged('v2', '?after') === 5, { timeoutMs: 120_000, everyMs: 50 });
    assert.deepEqual(['v1', 'v2'].map((version) => [logged(version, '?before'), logged(version, '?after')]), [[1, 5], [0, 5]]);
  });

  test(`TCP traffic shifting: all connections to v1, then a fifth to v2 (${mode})`, async () => {
    const namespace = 'istio-io-tcp-traffic-shifting';
    const words = async (count: number): Promise<Set<string>> => {
      const script = `for i in $(seq ${count}); do exec 3<>/dev/tcp/${INGRESS}/31400; echo hello >&3; head -n 1 <&3; exec 3>&-; done`;
      const { stdout, stderr } = await mesh.lab.exec('legacy/curl', ['bash', '-c', script], { timeoutMs: 30_000 });
      const lines = stdout.trim().split('\n');
      assert.equal(lines.length, count, stderr);
      return new Set(lines);
    };
    await mesh.apply('mesh', task(namespace, 'tcp-traffic-shifting/tcp-echo-all-v1'));
    await waitFor('the gateway to listen', async () => (await mesh.lab.exec('legacy/curl', ['bash', '-c', `exec 3<>/dev/tcp/${INGRESS}/31400; echo hello >&3; head -n 1 <&3`])).stdout !== '', { timeoutMs: 120_000, everyMs: 50 });
    assert.deepEqual(await words(20), new Set(['one hello']));
    await mesh.apply('mesh', newest(task(namespace, 'tcp-traffic-shifting/tcp-echo-all-v1', 'tcp-traffic-shifting/tcp-echo-20-v2')));
    assert.deepEqual(await words(60), new Set(['one hello', 'two hello']));
  });

  const ip = (): string => mesh.lab.pod('istio-system', 'istio-ingressgateway').ips[0]!;
  /** From outside of the mesh to the ingress gateway: status, or how curl failed. */
  async function status(url: string, { from = 'legacy/curl', args = [] as string[] } = {}): Promise<number | string> {
    const { code, answer } = await mesh.tryCurl('outside', url, { from, args });
    return answer?.status ?? `exit ${code}`;
  }
  const becomes = (what: string, expected: unknown, get: () => Promise<unknown>): Promise<void> => {
    let found: unknown;
    return waitFor(what, async () => isDeepStrictEqual((found = await get()), expected), { timeoutMs: 60_000, everyMs: 50 }).then(() => undefined, () => assert.deepEqual(found, expected, what));
  };

  test(`ingress control: the gateway serves the paths of its host, or of any (${mode})`, async () => {
    const host = ['-H', 'host: httpbin.example.com'];
    await mesh.apply('mesh', task('default', 'ingress-control/httpbin-gateway'));
    await becomes('the route', [200, 404, 404], async () => [await status(`http://${INGRESS}/status/200`, { args: host }), await status(`http://${INGRESS}/headers`, { args: host }), await status(`http://${INGRESS}/status/200`)]);
    await mesh.apply('mesh', task('default', 'ingress-control/any-host'));
    await becomes('the route', 200, () => status(`http://${INGRESS}/headers`));
  });

  test(`secure ingress: SIMPLE with one host and several, a certificate that is exchanged, MUTUAL (${mode})`, async () => {
    const file = (name: string): string => join(world.folder, name);
    const secure = (host: string): string[] => ['--connect-to', `${host}:443:${ip()}:8443`, '--cacert', file('ca.crt')];
    const teapot = async (...more: string[]): Promise<string> => {
      const { code, answer } = await mesh.tryCurl('outside', 'https://httpbin.example.com/status/418', { from: 'legacy/curl', args: [...secure('httpbin.example.com'), ...more] });
      return answer ? `${answer.status} ${/teapot/.exec(answer.text)?.[0]}` : code > 0 ? 'refused' : '';
    };
    const [httpbin, renewed, helloworld] = [await world.credential('httpbin', 'httpbin.example.com'), await world.credential('renewed', 'httpbin.example.com'), await world.credential('helloworld', 'helloworld.example.com')];
    await world.credential('client', 'client.example.com');
    const served = async (): Promise<string> => (await mesh.lab.exec('legacy/curl', ['sh', '-c', `echo | openssl s_client -connect ${ip()}:8443 -servername httpbin.example.com 2>/dev/null | openssl x509 -noout -serial`])).stdout.trim().slice(7).toLowerCase();
    const serial = ({ certificate }: Credential): string => new X509Certificate(certificate).serialNumber.toLowerCase();
    const apply = (yaml: string, ...secrets: string[]): Promise<void> => mesh.apply('mesh', [yaml, ...secrets].join('---\n'));

    await apply(task('default', 'secure-ingress/simple'), world.secret('httpbin-credential', httpbin));
    await becomes('the teapot', '418 teapot', teapot);
    assert.equal(await served(), serial(httpbin));
    await apply(task('default', 'secure-ingress/simple'), world.secret('httpbin-credential', renewed));
    await becomes('the new certificate', serial(renewed), served);
    assert.equal(await teapot(), '418 teapot');

    await apply(task('default', 'secure-ingress/multiple-hosts'), world.secret('httpbin-credential', httpbin), world.secret('helloworld-credential', helloworld));
    await becomes('both hosts', [200, '418 teapot'], async () => [await status('https://helloworld.example.com/hello', { args: secure('helloworld.example.com') }), await teapot()]);

    await apply(task('default', 'secure-ingress/mutual'), world.secret('httpbin-credential', httpbin, true));
    await becomes('the demand for a certificate', ['refused', '418 teapot'], async () => [await teapot(), await teapot('--cert', file('client.crt'), '--key', file('client.key'))]);
  });

  test(`ingress without TLS termination: the server behind the gateway ends TLS itself (${mode})`, async () => {
    await mesh.apply('mesh', task('default', 'ingress-sni-passthrough/passthrough'));
    const args = ['-k', '--connect-to', `nginx.example.com:443:${ip()}:8443`];
    await becomes('the server', 200, () => status('https://nginx.example.com/', { args }));
    assert.equal((await mesh.curl('outside', 'https://nginx.example.com/', { from: 'legacy/curl', args })).body['sni'], 'nginx.example.com');
  });

  test(`egress control: services outside are reached, and a timeout can be set for them (${mode})`, async () => {
    const from = 'default/curl';
    await mesh.apply('mesh', task('default', 'egress-control/httpbin-ext', 'egress-control/google'));
    await becomes('the service outside', 200, () => status('http://httpbin.org/headers', { from }));
    assert.equal(await status('https://www.google.com/', { from, args: ['-k'] }), 200);
    await mesh.apply('mesh', task('default', 'egress-control/httpbin-ext', 'egress-control/google', 'egress-control/httpbin-ext-timeout'));
    assert.equal(await status('http://httpbin.org/delay/5', { from }), 504);
  });

  test(`egress gateway: HTTP and TLS to a host outside leave through the gateway (${mode})`, async () => {
    const from = 'default/curl';
    const through = async (port: number): Promise<number> => Number(/cx_total: (\d+)/.exec(await mesh.lab.proxyAdmin('istio-system/istio-egressgateway', `/stats?filter=outbound.${port}..edition.cnn.com.*upstream_cx_total`))?.[1] ?? 0);
    await mesh.apply('mesh', task('default', 'egress-gateway/service-entry'));
    await becomes('the host outside', 200, () => status('http://edition.cnn.com/headers', { from }));
    assert.equal(await through(80), 0);
    await mesh.apply('mesh', task('default', 'egress-gateway/service-entry', 'egress-gateway/http'));
    await becomes('the way through the gateway', [200, true], async () => [await status('http://edition.cnn.com/headers', { from }), (await through(80)) > 0]);
    await mesh.apply('mesh', task('default', 'egress-gateway/service-entry-tls', 'egress-gateway/https'));
    await becomes('the way through the gateway', [200, true], async () => [await status('https://edition.cnn.com/', { from, args: ['-k'] }), (await through(443)) > 0]);
  });

  test(`egress TLS origination: plain requests go out as HTTPS, to a server whose certificate is checked (${mode})`, async () => {
    const get = (from: string): Promise<number | string> => status('http://edition.cnn.com/politics', { from });
    // The shared Envoy has one trust store, the node's, which knows the authority.
    const untrusting = mode === 'sidecar' ? 503 : 200;
    await mesh.apply('mesh', task('default', 'egress-tls-origination/service-entry'));
    const server = async (path: string): Promise<Record<string, unknown>> => (await mesh.curl('outside', `http://edition.cnn.com${path}`, { from: 'default/trusting' })).body;
    assert.equal((await server('/headers'))['tls'], undefined);
    await mesh.apply('mesh', task('default', 'egress-tls-origination/originate'));
    await becomes('HTTPS', [200, untrusting], async () => [await get('default/trusting'), await get('default/curl')]);
    for (let i = 0; i < 5; i++) {
      const { tls, sni } = await server('/politics');
      assert.match(String(tls), /^TLSv1\./);
      assert.equal(sni, 'edition.cnn.com');
    }
  });

  const HTTPBIN_CLIENTS = ['foo', 'bar', 'legacy'] as const;
  /** Of the task's loop: from each of three namespaces to httpbin of two. */
  async function reachable(): Promise<Record<string, boolean>> {
    const pairs = HTTPBIN_CLIENTS.flatMap((from) => (['foo', 'bar'] as const).map((to) => [from, to] as const));
    return Object.fromEntries(await Promise.all(pairs.map(async ([from, to]) => [`${from} ${to}`, (await status(`http://httpbin.${to}:8000/ip`, { from: `${from}/curl` })) === 200] as const)));
  }
  const all = { 'foo foo': true, 'foo bar': true, 'bar foo': true, 'bar bar': true, 'legacy foo': true, 'legacy bar': true };

  test(`mutual TLS: strict in the mesh, a namespace, a workload, but for a port, over the namespace (${mode})`, async () => {
    await mesh.clear('mesh');
    assert.deepEqual(await reachable(), all);
    const step = async (expected: object, ...files: string[]): Promise<void> => {
      await mesh.apply('mesh', task('default', ...files));
      await becomes(files.join(), { ...all, ...expected }, reachable);
    };
    await step({ 'legacy foo': false, 'legacy bar': false }, 'authentication/mtls-mesh-strict');
    const inFoo = 'authentication/mtls-namespace-strict';
    await step({ 'legacy foo': false }, inFoo);
    await step({ 'legacy foo': false, 'legacy bar': false }, inFoo, 'authentication/mtls-workload-strict');
    await step({ 'legacy foo': false }, inFoo, 'authentication/mtls-port-disable', 'authentication/mtls-port-disable-client');
    await step({}, inFoo, 'authentication/mtls-workload-over-namespace');
  });

  test(`end-user authentication: tokens are checked at the gateway, demanded, demanded on one path (${mode})`, async () => {
    const get = (path: string, token?: string): Promise<number | string> => status(`http://${INGRESS}${path}`, token === undefined ? {} : { args: ['-H', `authorization: Bearer ${token}`] });
    const statuses = async (): Promise<unknown[]> => [await get('/headers'), await get('/headers', 'deadbeef'), await get('/headers', world.token()), await get('/ip')];
    const step = async (expected: number[], ...files: string[]): Promise<void> => {
      await mesh.apply('mesh', task('foo', 'authentication/httpbin-gateway', ...files));
      await becomes(files.join(), expected, statuses);
    };
    await step([200, 200, 200, 200]);
    await step([200, 401, 200, 200], 'authentication/jwt');
    await step([403, 401, 200, 403], 'authentication/jwt', 'authentication/require-jwt');
    await step([403, 401, 200, 200], 'authentication/jwt', 'authentication/require-jwt-path');
    assert.equal(await get('/headers', world.token({ exp: 1 })), 401);
  });

  test(`authorization for HTTP: nothing is allowed, then one call after another of Bookinfo (${mode})`, async () => {
    // A connection that a gateway pooled to a pod of mode node before there was a policy has never met a proxy.
    const address = mode === 'sidecar' ? INGRESS : 'productpage.default:9080';
    const steps: [string | undefined, RegExp][] = [
      [undefined, /RBAC: access denied/],
      ['productpage-viewer', /Error fetching product details[^]*Error fetching product reviews/],
      ['details-viewer', /Book Details[^]*Error fetching product reviews/],
      ['reviews-viewer', /Book Details[^]*Ratings service is currently unavailable/],
      ['ratings-viewer', /Book Details[^]*glyphicon-star/],
    ];
    const files = ['samples/bookinfo/bookinfo-gateway', 'samples/bookinfo/destination-rule-all', 'traffic-shifting/virtual-service-reviews-v3', 'authorization-http/allow-nothing'];
    for (const [viewer, expected] of steps) {
      if (viewer) files.push(`authorization-http/${viewer}`);
      await mesh.apply('mesh', task('default', ...files));
      await becomes(viewer ?? 'allow-nothing', true, async () => expected.test((await mesh.curl('outside', `http://${address}/productpage`, { from: 'legacy/curl' })).text));
    }
  });

  test(`authorization for TCP: by port; rules on methods, which TCP has not (${mode})`, async () => {
    const connect = async (host: string, port: number): Promise<string> => (await mesh.lab.exec('foo/curl', ['bash', '-c', `exec 3<>/dev/tcp/${host}/${port}; echo "port ${port}" >&3; timeout 30 head -n 1 <&3`], { timeoutMs: 60_000 })).stdout.trim();
    const ports = async (): Promise<string[]> => [await connect('tcp-echo', 9000), await connect('tcp-echo', 9001), await connect(mesh.lab.pod('foo', 'tcp-echo').ips[0]!, 9002)];
    const [first, second, third] = ['hello port 9000', 'hello port 9001', 'hello port 9002'];
    const step = async (expected: (string | undefined)[], ...files: string[]): Promise<void> => {
      await mesh.apply('mesh', task('foo', ...files));
      await becomes(files.join(), expected, ports);
    };
    await step([first, second, third]);
    await step([first, second, ''], 'authorization-tcp/allow-ports');
    await step(['', '', ''], 'authorization-tcp/allow-http-only');
    await step(['', '', ''], 'authorization-tcp/deny-http-only');
    await step(['', second, third], 'authorization-tcp/deny-port');
  });

  const httpbinFoo = (path: string, ...headers: string[]): Promise<number | string> => status(`http://httpbin.foo:8000${path}`, { from: 'foo/curl', args: headers.flatMap((header) => ['-H', header]) });
  async function policies(expected: (number | string)[], probe: () => Promise<unknown>, ...files: string[]): Promise<void> {
    await mesh.apply('mesh', task('foo', 'ext-authz/mesh-config', ...files));
    await becomes(files.join(), expected, probe);
  }

  test(`authorization for JWT: a valid token, required, of a group (${mode})`, async () => {
    const bearer = (token: string): string => `authorization: Bearer ${token}`;
    const probe = async (): Promise<unknown[]> => Promise.all([httpbinFoo('/headers'), httpbinFoo('/headers', bearer('invalidToken')), httpbinFoo('/headers', bearer(world.token())), httpbinFoo('/headers', bearer(world.token({ groups: ['group1', 'group2'], scope: ['scope1', 'scope2'] })))]);
    await policies([200, 401, 200, 200], probe, 'authorization-jwt/jwt-example');
    await policies([403, 401, 200, 200], probe, 'authorization-jwt/jwt-example', 'authorization-jwt/require-jwt');
    await policies([403, 401, 403, 200], probe, 'authorization-jwt/jwt-example', 'authorization-jwt/require-group');
  });

  test(`authorization, explicit deny: of a method, unless a header says so, over what is allowed (${mode})`, async () => {
    const probe = async (): Promise<unknown[]> => Promise.all([httpbinFoo('/get'), httpbinFoo('/get', 'x-token: admin'), httpbinFoo('/get', 'x-token: guest'), httpbinFoo('/ip', 'x-token: guest'), httpbinFoo('/ip', 'x-token: admin')]);
    await policies([403, 403, 403, 403, 403], probe, 'authorization-deny/deny-get');
    await policies([403, 200, 403, 403, 200], probe, 'authorization-deny/deny-get-unless-admin');
    await policies([403, 403, 403, 403, 200], probe, 'authorization-deny/deny-get-unless-admin', 'authorization-deny/allow-path-ip');
  });

  test(`authorization, dry run: the policy denies nothing; statistics and the proxy's log have what it would have denied (${mode})`, async () => {
    const [server] = mesh.lab.pods().filter(({ namespace, labels }) => namespace === 'foo' && labels['app'] === 'httpbin');
    const proxy = `foo/${server!.name}`;
    const counted = async (): Promise<(string | undefined)[]> => {
      const stats = await mesh.proxyAdmin(proxy, '/stats?filter=^http\\.inbound_.*rbac\\.istio_dry_run_deny_shadow');
      return ['allowed', 'denied'].map((result) => new RegExp(`^http\\.inbound_0\\.0\\.0\\.0_80.*shadow_${result}: (\\d+)`, 'm').exec(stats)?.[1]);
    };
    await mesh.proxyAdmin(proxy, '/logging?rbac=debug', 'POST');
    await mesh.apply('mesh', task('foo', 'ext-authz/mesh-config', 'authorization-dry-run/deny-path-headers'));
    await becomes('the policy', true, async () => (await httpbinFoo('/headers')) === 200 && mesh.proxyLog(proxy).includes('shadow denied, matched policy ns[foo]-policy[deny-path-headers]-rule[0]'));
    const [allowed, denied] = (await counted()).map(Number);
    assert.deepEqual([await httpbinFoo('/headers'), await httpbinFoo('/get'), await httpbinFoo('/headers')], [200, 200, 200]);
    assert.deepEqual((await counted()).map(Number), [allowed! + 1, denied! + 2]);
    await mesh.proxyAdmin(proxy, '/logging?rbac=warning', 'POST');
  });

  test(`authorization, external: the authorizer is asked over gRPC, or HTTP, for the paths of the policy (${mode})`, async () => {
    const probe = async (): Promise<unknown[]> => Promise.all([httpbinFoo('/headers', 'x-ext-authz: deny'), httpbinFoo('/headers', 'x-ext-authz: allow'), httpbinFoo('/ip')]);
    for (const policy of ['policy-grpc', 'policy-http']) await policies([403, 200, 200], probe, `ext-authz/${policy}`);
    const { body } = await mesh.curl('outside', 'http://httpbin.foo:8000/headers', { from: 'foo/curl', headers: { 'x-ext-authz': 'allow' } });
    assert.deepEqual(body['headers']['X-Ext-Authz-Check-Result'] ?? body['headers']['X-Ext-Authz'], ['allow']);
    assert.deepEqual(await mesh.nacks(), []);
  });
});
