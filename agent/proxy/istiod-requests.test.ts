// Requests arrive where a recorded istiod sent them: real servers at the recorded addresses, a real Envoy with what the agent folds of the recording.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { test, type TestContext } from 'node:test';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { IstiodWorld } from '../testing/istiod-world.js';
import { Recording } from '../testing/recording.js';

interface Ask {
  url: string;
  host?: string;
  method?: string;
  headers?: Record<string, string>;
}

interface Answer {
  status: number;
  headers: Record<string, string>;
  /** The address that answered; empty where the answer is the proxy's own. */
  server: string;
  path: string;
  sent: Record<string, string>;
  ms: number;
}

/** HTTP, with or without TLS, and HTTP/2 beside it: says who was asked what; `?wait=` in ms, `?status=`, `?status-of=ADDRESS:STATUS`; /count: requests so far that were not for it, by host. */
const server = (ports: readonly number[]): string => `
  const http = require('http'); const counts = {};
  const answer = (req, res) => {
    const address = req.socket.localAddress.replace('::ffff:', '');
    const url = new URL(req.url, 'http://x');
    if (url.pathname === '/count') return res.end(JSON.stringify(counts[address] ?? {}));
    const host = req.headers.host; counts[address] ??= {}; counts[address][host] = (counts[address][host] ?? 0) + 1;
    const [who, what] = (url.searchParams.get('status-of') ?? '').split(':');
    res.statusCode = who === address ? Number(what) : Number(url.searchParams.get('status') ?? 200);
    setTimeout(() => res.end(JSON.stringify({ server: address, path: req.url, headers: req.headers })), Number(url.searchParams.get('wait') ?? 0));
  };
  let left = ${ports.length};
  for (const port of ${JSON.stringify(ports)}) http.createServer(answer).listen(port, '::', () => --left === 0 && console.log('ready'));`;

/** One after the other, or all at once. */
const asking = (list: readonly Ask[], atOnce: boolean): string => `
  const http = require('http'); const list = ${JSON.stringify(list)}; const results = [];
  const ask = ({ url, host, method = 'GET', headers = {} }) => new Promise((resolve) => {
    const since = Date.now();
    const req = http.request(url, { method, headers: { ...(host ? { host } : {}), ...headers }, timeout: 15000 }, (res) => {
      let text = ''; res.on('data', (d) => (text += d)); res.on('end', () => {
        let body = {}; try { body = JSON.parse(text); } catch {}
        resolve({ status: res.statusCode, headers: res.headers, server: body.server ?? '', path: body.path ?? '', sent: body.headers ?? {}, ms: Date.now() - since });
      });
    });
    req.on('timeout', () => req.destroy(new Error('timeout')));
    req.on('error', () => resolve({ status: 0, headers: {}, server: '', path: '', sent: {}, ms: Date.now() - since }));
    req.end();
  });
  (async () => {
    if (${atOnce}) results.push(...await Promise.all(list.map(ask)));
    else for (const item of list) results.push(await ask(item));
    console.log(JSON.stringify(results));
  })();`;

class Scene {
  private constructor(readonly world: IstiodWorld, readonly vip: string, readonly host: string) {}

  /** @param addresses of servers, with ports; the first recorded client calls `vip` as `host` */
  static async open(test: TestContext, scenario: string, { addresses, ports = [80], vip, host, pods, redirect = '10.96.0.0/16' }: { addresses: readonly string[]; ports?: readonly number[]; vip: string; host: string; pods?: string[]; redirect?: string }): Promise<Scene> {
    const world = new IstiodWorld(scenario, pods ? { pods } : {});
    test.after(() => world.close());
    await world.start();
    const netns = world.netns();
    for (const address of addresses) await netns.ip('addr', 'add', `${address}/32`, 'dev', 'lo');
    await netns.serve(server(ports));
    await netns.redirect(redirect);
    await world.ready();
    return new Scene(world, vip, host);
  }

  ask(list: readonly (Omit<Ask, 'url'> & { path?: string; url?: string })[], atOnce = false): Promise<Answer[]> {
    return this.world.netns().script<Answer[]>(asking(list.map(({ path = '/', url, host, ...rest }) => ({ url: url ?? `http://${this.vip}${path}`, host: host ?? this.host, ...rest })), atOnce));
  }

  async one(path: string, rest: Omit<Ask, 'url'> = {}): Promise<Answer> {
    return (await this.ask([{ path, ...rest }]))[0]!;
  }

  /** How many of so many requests each server, or each status without one, answered. */
  async shares(count: number, path = '/', rest: Omit<Ask, 'url'> = {}): Promise<Record<string, number>> {
    const shares: Record<string, number> = {};
    for (const { status, server: who } of await this.ask(Array.from({ length: count }, () => ({ path, ...rest })))) shares[who || status] = (shares[who || status] ?? 0) + 1;
    return shares;
  }

  /** What a server was asked so far, by the Host it saw. */
  async seen(address: string): Promise<Record<string, number>> {
    return JSON.parse(await this.world.netns().exec('curl', '-s', '-m', '5', `http://${address}/count`)) as Record<string, number>;
  }

  async goTo(step: number): Promise<void> {
    await this.world.goTo(step);
    assert.deepEqual(await this.world.refusals(), [], `step ${step}`);
  }
}

const isAbout = (value: number | undefined, least: number, most: number, what: string): void => assert.ok(value !== undefined && value >= least && value <= most, `${what}: found ${value}, expected ${least} to ${most}`);

test('match-kinds: paths, headers, queries, methods and source labels lead where the VirtualService says', async (t) => {
  const [v1, v2, alt] = ['10.244.1.76', '10.244.2.77', '10.244.1.80'];
  const scene = await Scene.open(t, 'match-kinds', { addresses: [v1, v2, alt], vip: '10.96.72.1', host: 'web' });
  assert.deepEqual(Object.keys(await scene.shares(30)).sort(), [v1, v2]);
  await scene.goTo(1);
  assert.deepEqual(await scene.shares(10, '/one'), { [v1]: 10 });
  assert.deepEqual(await scene.shares(5, '/TWO/more'), { [v1]: 5 });
  const headers = { 'x-a': 'abc', 'x-b': 'bcd', 'x-c': 'there' };
  assert.deepEqual(await scene.shares(5, '/u/12', { headers }), { [v2]: 5 });
  assert.deepEqual(await scene.shares(5, '/u/12', { headers: { ...headers, 'x-no': '1' } }), { [alt]: 5 });
  assert.deepEqual(await scene.shares(5, '/u/12', { headers: { ...headers, 'x-a': 'b' } }), { [alt]: 5 });
  const put = await scene.one('/?q=1&r=b', { method: 'PUT' });
  assert.deepEqual([put.server, put.sent['x-q'], put.sent['x-team']], [alt, '1', undefined]);
  const other = await scene.one('/?q=1&r=bb', { method: 'PUT' });
  assert.deepEqual([other.server, other.sent['x-q'], other.sent['x-team']], [alt, undefined, 'a'], 'by its source\'s label');
});

test('timeout-retry-fault: time-outs, retries, aborts and delays are those of each step', async (t) => {
  const [v1, v2] = ['10.244.1.67', '10.244.2.68'];
  const scene = await Scene.open(t, 'timeout-retry-fault', { addresses: [v1, v2], vip: '10.96.63.1', host: 'ratings' });
  const jesse = { headers: { user: 'jesse' } };
  await scene.goTo(1);
  const timed = await scene.one('/');
  assert.deepEqual([timed.server, timed.sent['x-envoy-expected-rq-timeout-ms']], [v1, '10000']);
  await scene.goTo(2);
  const late = await scene.one('/?wait=3000', jesse);
  assert.equal(late.status, 504);
  assert.ok(late.ms >= 900, `after ${late.ms} ms`);
  assert.deepEqual([(await scene.one('/', jesse)).server, (await scene.one('/?wait=1500')).server], [v2, v1]);
  await scene.goTo(3);
  const before = (await scene.seen(v2))['ratings'] ?? 0;
  assert.equal((await scene.one('/?wait=2500', jesse)).status, 504);
  assert.equal(((await scene.seen(v2))['ratings'] ?? 0) - before, 1, 'a try that took too long is not made again: its default is to retry what never arrived');
  const aborted = await scene.shares(100);
  isAbout(aborted['500'], 60, 95, 'aborted of 100 at 80 %');
  assert.equal(aborted[v1], 100 - aborted['500']!);
  await scene.goTo(4);
  const slow = (await scene.ask(Array.from({ length: 100 }, () => ({})), true)).filter(({ server: who, ms }) => who === v1 && ms >= 4_900).length;
  const delayed = [...(await scene.world.proxy.envoy.admin.stats('fault\\.delays_injected$')).values()].reduce((sum, count) => sum + count, 0);
  isAbout(delayed, 1, 30, 'delayed of 100 at 10 %');
  assert.ok(slow >= delayed, `${slow} took five seconds`);
  await scene.goTo(5);
  const refused = await scene.shares(200);
  isAbout(refused['400'], 4, 50, 'refused of 200 at 10 %');
  assert.equal(refused[v1], 200 - refused['400']!);
});

test('mirror: what the first version answers the second is sent as well, all or a fifth of it', async (t) => {
  const [v1, v2] = ['10.244.1.68', '10.244.2.69'];
  const scene = await Scene.open(t, 'mirror', { addresses: [v1, v2], vip: '10.96.64.1', host: 'httpbin' });
  await scene.goTo(1);
  const total = async (): Promise<number> => Object.values(await scene.seen(v2)).reduce((sum, count) => sum + count, 0);
  assert.deepEqual(await scene.shares(20), { [v1]: 20 });
  const first = await total();
  assert.equal(first, 20);
  await scene.goTo(2);
  assert.deepEqual(await scene.shares(300), { [v1]: 300 });
  isAbout((await total()) - first, 25, 110, 'mirrored of 300 at 20 %');
});

test('delegate: what the root hands over is routed by the delegate', async (t) => {
  const [v1, v2, own] = ['10.244.1.75', '10.244.2.76', '10.244.1.79'];
  const scene = await Scene.open(t, 'delegate', { addresses: [v1, v2, own], vip: '10.96.71.1', host: 'productpage' });
  assert.deepEqual(Object.keys(await scene.shares(20, '/productpage/v1/x')).sort(), [v1, v2]);
  await scene.goTo(1);
  assert.deepEqual(await scene.shares(10, '/productpage/v1/x'), { [own]: 10 });
  for (const path of ['/productpage/v2', '/other']) assert.deepEqual(Object.keys(await scene.shares(30, path)).sort(), [v1, v2]);
});

test('gateway-api: a mesh HTTPRoute\'s weights, header match, rewrite and time-out', async (t) => {
  const [echo, second] = ['10.244.1.90', '10.244.1.94'];
  const scene = await Scene.open(t, 'gateway-api', { addresses: [echo, second], vip: '10.96.86.1', host: 'echo' });
  assert.deepEqual(await scene.shares(10), { [echo]: 10 });
  await scene.goTo(1);
  const shares = await scene.shares(300);
  isAbout(shares[second], 40, 115, 'of 300 at 25 %');
  assert.equal(shares[echo], 300 - shares[second]!);
  await scene.goTo(2);
  const jesse = { headers: { user: 'jesse' } };
  const rewritten = await scene.one('/a/x', jesse);
  assert.deepEqual([rewritten.server, rewritten.path], [second, '/b/x']);
  assert.equal((await scene.one('/a/x?wait=2500', jesse)).status, 504);
  const [other, plain] = [await scene.one('/a/x'), await scene.one('/z', jesse)];
  assert.deepEqual([other.server, other.path, plain.server], [echo, '/a/x', echo]);
});

test('service-entry: hosts outside, by their own address or by workloads with weights, and no more when they are gone', async (t) => {
  const [outside, vm1, vm2] = ['192.0.2.80', '2.2.2.2', '2.2.2.3'];
  const scene = await Scene.open(t, 'service-entry', { addresses: [outside, vm1, vm2], ports: [80, 8088], vip: outside, host: 'a.foo.com', redirect: '192.0.2.0/24' });
  await scene.goTo(1);
  const wild = await scene.one('/x');
  assert.deepEqual([wild.status, wild.server], [200, outside]);
  await scene.goTo(2);
  assert.equal((await scene.one('/', { host: 'api.bar.com' })).status, 503, 'a name that nobody resolves');
  await scene.goTo(3);
  assert.deepEqual(await scene.shares(10, '/', { host: 'details.bookinfo.com' }), { [vm1]: 10 });
  await scene.goTo(4);
  const shares = await scene.shares(200, '/', { host: 'details.bookinfo.com' });
  isAbout(shares[vm2], 145, 195, 'of 200 at weight 7 of 8');
  assert.equal(shares[vm1], 200 - shares[vm2]!);
  await scene.goTo(5);
  assert.deepEqual(await scene.shares(5, '/', { host: 'details.bookinfo.com' }), { [outside]: 5 }, 'ALLOW_ANY: to where it was sent');
});

test('sidecar-scope: under REGISTRY_ONLY a host that the Sidecar leaves out is answered 502, and 200 again without it', async (t) => {
  const [a, b] = ['10.244.1.78', '10.244.1.82'];
  const scene = await Scene.open(t, 'sidecar-scope', { addresses: [a, b], vip: '10.96.74.1', host: 'a' });
  const toB = (): Promise<Answer[]> => scene.ask([{ url: 'http://10.96.74.2/', host: 'b' }]);
  assert.deepEqual([(await scene.one('/')).server, (await toB())[0]!.server], [a, b]);
  await scene.goTo(1);
  assert.deepEqual([(await scene.one('/')).server, (await toB())[0]!.status], [a, 502]);
  await scene.goTo(2);
  assert.deepEqual([(await scene.one('/')).server, (await toB())[0]!.server], [a, b]);
});

test('lb-policies: consistent hashing by header and by cookie', async (t) => {
  const all = ['10.244.1.77', '10.244.2.78', '10.244.1.79'];
  const scene = await Scene.open(t, 'lb-policies', { addresses: all, vip: '10.96.73.1', host: 'api' });
  assert.deepEqual(Object.keys(await scene.shares(60)).sort(), [...all].sort());
  await scene.goTo(1);
  const byUser = await Promise.all(['ann', 'ben', 'cleo', 'dan', 'eve', 'fay', 'gus', 'hal'].map((user) => scene.shares(5, '/', { headers: { 'x-user': user } })));
  for (const shares of byUser) assert.deepEqual(Object.values(shares), [5]);
  assert.ok(new Set(byUser.flatMap((shares) => Object.keys(shares))).size > 1);
  await scene.goTo(2);
  const first = await scene.one('/');
  const cookie = String(first.headers['set-cookie']).split(';')[0]!;
  assert.match(cookie, /^sid=/);
  assert.deepEqual(await scene.shares(15, '/', { headers: { cookie } }), { [first.server]: 15 });
  for (const step of [3, 4, 5, 6]) {
    await scene.goTo(step);
    assert.equal((await scene.one('/')).status, 200, `step ${step}`);
  }
});

test('circuit-breaker: an endpoint that answered 500 once is ejected, until the rule is gone', async (t) => {
  const [v1, v2] = ['10.244.1.69', '10.244.2.70'];
  const scene = await Scene.open(t, 'circuit-breaker', { addresses: [v1, v2], vip: '10.96.65.1', host: 'httpbin' });
  assert.deepEqual(Object.keys(await scene.shares(20)).sort(), [v1, v2]);
  await scene.goTo(1);
  await scene.shares(20, `/?status-of=${v1}:500`);
  assert.deepEqual(await scene.shares(20), { [v2]: 20 });
  const many = await scene.ask(Array.from({ length: 12 }, () => ({ path: '/?wait=400' })), true);
  assert.ok(many.some(({ status }) => status === 503) && many.some(({ status }) => status === 200), many.map(({ status }) => status).join());
  await scene.goTo(2);
  await scene.goTo(3);
  assert.deepEqual(Object.keys(await scene.shares(30)).sort(), [v1, v2]);
});

test('tcp-tls-routes: TCP by weight, TLS by server name, gRPC by weight and method', async (t) => {
  const recording = Recording.open('tcp-tls-routes')!;
  const [t1, t2, tls, g1, g2] = ['10.244.1.81', '10.244.2.82', '10.244.1.85', '10.244.1.89', '10.244.2.90'];
  const world = new IstiodWorld('tcp-tls-routes');
  t.after(() => world.close());
  await world.start();
  const netns = world.netns();
  for (const address of [t1, t2, tls, g1, g2]) await netns.ip('addr', 'add', `${address}/32`, 'dev', 'lo');
  const { certificatePem, privateKeyPem } = await issueServerCertificate(await CertificateAuthority.create(), { dnsNames: ['tls', 'tls.l4.svc.cluster.local'] });
  await netns.serve(`
    const net = require('net'), tls = require('tls'), http2 = require('http2');
    const say = (socket) => { socket.on('error', () => {}); socket.end(socket.localAddress.replace('::ffff:', '')); };
    const grpc = http2.createServer(); grpc.on('stream', (stream, headers) => { const { localAddress } = stream.session.socket; stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true }); stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' })); stream.end(localAddress.replace('::ffff:', '')); });
    let left = 3; const up = () => --left === 0 && console.log('ready');
    net.createServer(say).listen(9000, '::', up); tls.createServer(${JSON.stringify({ cert: certificatePem, key: privateKeyPem })}, say).listen(8443, '::', up); grpc.listen(50051, '::', up);`);
  await netns.redirect('10.96.0.0/16');
  await world.ready();
  const count = (list: string[]): Record<string, number> => Object.fromEntries([...new Set(list)].sort().map((item) => [item, list.filter((other) => other === item).length]));
  const tcp = async (times: number): Promise<Record<string, number>> => count(await netns.script<string[]>(`
    const net = require('net'); const found = [];
    const ask = () => new Promise((resolve) => { let text = ''; const socket = net.connect(9000, '10.96.77.1'); socket.on('data', (d) => (text += d)).on('close', () => resolve(text)).on('error', () => {}); });
    (async () => { for (let i = 0; i < ${times}; i++) found.push(await ask()); console.log(JSON.stringify(found)); })();`));
  const byName = (name: string): Promise<string> => netns.script<string>(`
    let text = ''; const socket = require('tls').connect({ host: '10.96.77.2', port: 443, servername: ${JSON.stringify(name)}, rejectUnauthorized: false });
    socket.on('data', (d) => (text += d)).on('close', () => console.log(JSON.stringify(text))).on('error', () => {}); socket.setTimeout(5000, () => socket.destroy());`);
  const grpc = async (times: number): Promise<Record<string, number>> => count(await netns.script<string[]>(`
    const session = require('http2').connect('http://10.96.77.3:50051'); const found = [];
    const ask = () => new Promise((resolve) => { let text = ''; const stream = session.request({ ':method': 'POST', ':path': '/helloworld.Greeter/SayHello', ':authority': 'grpc:50051', 'content-type': 'application/grpc', te: 'trailers' }); stream.on('data', (d) => (text += d)).on('end', () => resolve(text)).on('error', () => resolve('error')); stream.end(); });
    (async () => { for (let i = 0; i < ${times}; i++) found.push(await ask()); session.close(); console.log(JSON.stringify(found)); })();`));
  await world.goTo(1);
  const shares = await tcp(200);
  isAbout(shares[t2], 15, 70, 'of 200 connections at 20 %');
  assert.equal(shares[t1], 200 - shares[t2]!);
  for (const name of ['tls', 'tls.l4.svc.cluster.local']) assert.equal(await byName(name), tls);
  const calls = await grpc(200);
  isAbout(calls[g2], 4, 45, 'of 200 calls at 10 %');
  assert.equal(calls[g1], 200 - calls[g2]!);
  await world.goTo(2);
  assert.deepEqual(Object.keys(await tcp(40)).sort(), [t1, t2].sort());
  assert.deepEqual(await world.refusals(), []);
  assert.equal(recording.steps.length, 3);
});

/** Of the two recorded policies for requests: a caller's pod stands beside the recorded one, on the same node. */
async function inbound(t: TestContext, scenario: string, { session, caller, address }: { session: string; caller: { name: string; namespace: string; serviceAccount: string; ip: string }; address: string }): Promise<{ world: IstiodWorld; ask(list: readonly Ask[]): Promise<Answer[]> }> {
  const world = new IstiodWorld(scenario, { pods: [session], beside: [caller] });
  t.after(() => world.close());
  await world.start();
  const [own, theirs] = [world.netns(caller.name), world.netns(session)];
  await world.connect(caller.name, session);
  await theirs.serve(server([80]));
  await own.redirect('10.96.0.0/16');
  await world.ready();
  return { world, ask: (list) => own.script<Answer[]>(asking(list.map((item) => ({ host: address, ...item })), false)) };
}

test('authz-sidecar: each step lets in what its policies allow, by the caller\'s account, method, path and header', async (t) => {
  const { world, ask } = await inbound(t, 'authz-sidecar', { session: 'httpbin-v1-6d9f-hbone-delta', caller: { name: 'toolbox', namespace: 'secured', serviceAccount: 'toolbox', ip: '10.244.1.75' }, address: 'httpbin' });
  const url = 'http://10.96.67.1';
  const all = async (): Promise<number[]> => (await ask([{ url: `${url}/headers` }, { url: `${url}/headers`, method: 'POST' }, { url: `${url}/other` }, { url: `${url}/status/200` }])).map(({ status }) => status);
  assert.deepEqual(await all(), [200, 200, 200, 200]);
  await world.goTo(1);
  assert.deepEqual(await all(), [403, 403, 403, 403]);
  await world.goTo(2);
  assert.deepEqual(await all(), [200, 403, 403, 200]);
  const blocked = async (): Promise<number> => (await ask([{ url: `${url}/headers`, headers: { 'x-block': '1' } }]))[0]!.status;
  assert.equal(await blocked(), 200);
  await world.goTo(3);
  assert.deepEqual([...(await all()), await blocked()], [200, 403, 403, 200, 403]);
  await world.goTo(4);
  assert.deepEqual([...(await all()), await blocked()], [200, 200, 200, 200, 200]);
  assert.deepEqual(await world.refusals(), []);
});

test('jwt: a token of the issuer with the claim is let in, none or another is not', async (t) => {
  const { world, ask } = await inbound(t, 'jwt', { session: 'api-v1-6d9f-hbone-delta', caller: { name: 'caller', namespace: 'jwt', serviceAccount: 'caller', ip: '10.244.1.81' }, address: 'api' });
  const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const token = (claims: object, key = 'secret-secret-secret'): string => {
    const signed = `${encode({ alg: 'HS256', kid: 'k1', typ: 'JWT' })}.${encode({ iss: 'issuer.example', sub: 'ann', exp: Math.floor(Date.now() / 1000) + 600, ...claims })}`;
    return `${signed}.${createHmac('sha256', key).update(signed).digest('base64url')}`;
  };
  const status = async (bearer?: string): Promise<number> => (await ask([{ url: 'http://10.96.76.1/', ...(bearer === undefined ? {} : { headers: { authorization: `Bearer ${bearer}` } }) }]))[0]!.status;
  assert.equal(await status(), 200);
  await world.goTo(1);
  assert.deepEqual([await status(), await status(token({ group: 'dev' })), await status(token({ group: 'ops' })), await status(token({ group: 'dev' }, 'another key')), await status(token({ group: 'dev', iss: 'else' }))], [403, 200, 403, 401, 401]);
  assert.deepEqual(await world.refusals(), []);
});
