// VirtualServices with real traffic through real Envoys: every kind of match and action and protocol, by sidecars and by the node's proxy.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { instancePaths } from '../agent/index.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { MeshWorld, MODES, type CurlOptions, type Mode } from './mesh/world.js';
import { configuration, workloads } from './routing-mesh.js';

const mesh = new MeshWorld('routing', { yaml: workloads });
const otherThan = (mode: Mode): Mode => (mode === 'node' ? 'sidecar' : 'node');

before(async () => {
  await mesh.up();
  for (const mode of MODES) await mesh.apply(mode, configuration(otherThan(mode)));
});
after(() => mesh.down());

async function exec(from: string, ...argv: string[]): Promise<string> {
  const { code, stdout, stderr } = await mesh.lab.exec(from, argv, { timeoutMs: 60_000 });
  assert.equal(code, 0, `${argv.join(' ')}: ${stderr}`);
  return stdout;
}

/** How many requests of this path the server itself counted. */
async function counted(mode: Mode, path: string): Promise<number> {
  const { paths } = JSON.parse(await exec(`${mode}/server-v1`, 'curl', '-sS', 'http://127.0.0.1:8080/count')) as { paths: Record<string, number> };
  return paths[path] ?? 0;
}

/** Sum of the counters of the client's proxy whose names match. */
async function stat(mode: Mode, pattern: RegExp): Promise<number> {
  const socket = join(instancePaths({ instance: mesh.name }).folder, 'envoy-admin.sock');
  const text = mode === 'node' ? (await run('curl', ['-sS', '--unix-socket', socket, 'http://envoy/stats'])).stdout : await mesh.lab.proxyAdmin('sidecar/client', '/stats');
  return text.split('\n').map((line) => /^(.*): (\d+)$/.exec(line)).reduce((sum, found) => (found && pattern.test(found[1]!) ? sum + Number(found[2]) : sum), 0);
}

/** Lines from a connection that says `text` (nothing when empty) and takes `count` lines. */
async function lines(from: string, host: string, port: number, text: string, count = 1): Promise<string[]> {
  const program = `const s = require('node:net').connect(${port}, ${JSON.stringify(host)}); let t = ''; s.setTimeout(15000, () => { console.error('nothing for 15 s'); process.exit(1); }); s.on('error', (e) => { console.error(e.message); process.exit(1); }); ${text ? `s.write(${JSON.stringify(`${text}\n`)});` : ''} s.on('data', (d) => { t += d; if (t.split('\\n').length > ${count}) { console.log(t.trim()); process.exit(0); } }); s.on('end', () => { console.error('ended after ' + JSON.stringify(t)); process.exit(1); });`;
  return (await exec(from, process.execPath, '-e', program)).split(/\r?\n/).filter((line) => line !== '');
}

const addressOf = async (from: string, host: string): Promise<string> => (await exec(from, 'getent', 'ahostsv4', host)).split(/\s+/)[0]!;

/** Bounds that a fair draw of `n` with probability `p` leaves less than once in ten million times. */
function within(count: number, n: number, p: number): void {
  const slack = 5.5 * Math.sqrt(n * p * (1 - p));
  assert.ok(Math.abs(count - n * p) <= slack, `${count} of ${n}, expected ${n * p} ± ${slack.toFixed(1)}`);
}

test('no proxy refuses any of it', async () => {
  assert.deepEqual(await mesh.nacks(), []);
});

for (const mode of MODES) {
  describe(`routing, mode=${mode}`, () => {
    const client = `${mode}/client`;
    const get = (url: string, options?: CurlOptions) => mesh.curl(mode, url, options);
    const version = async (path: string, options: CurlOptions = {}, host = 'shop'): Promise<string> => (await get(`http://${host}${path}`, options)).version;

    test('match uri: exact, prefix, regex as a whole, without case', async () => {
      const found: Record<string, unknown> = {};
      for (const path of ['/m/exact', '/m/exact/', '/m/prefixed', '/m/prefi', '/m/regex/12', '/m/regex/12/a', '/M/case/x', '/M/Exact']) found[path] = await version(path);
      assert.deepEqual(found, { '/m/exact': 'v2', '/m/exact/': 'v1', '/m/prefixed': 'v2', '/m/prefi': 'v1', '/m/regex/12': 'v2', '/m/regex/12/a': 'v1', '/M/case/x': 'v2', '/M/Exact': 'v1' });
    });

    test('match headers: exact, prefix, regex and presence together; withoutHeaders', async () => {
      const all = { 'x-exact': 'a', 'x-prefix': 'bee', 'x-regex': 'ccc', 'x-present': 'yes' };
      const asked = [all, { ...all, 'x-exact': 'aa' }, { ...all, 'x-prefix': 'eb' }, { ...all, 'x-regex': 'ccd' }];
      assert.deepEqual(await Promise.all(asked.map((headers) => version('/m/header', { headers }))), ['v2', 'v1', 'v1', 'v1']);
      const { 'x-present': _, ...less } = all;
      assert.equal(await version('/m/header', { headers: less }), 'v1');
      const values: Record<string, string>[] = [{}, { 'x-value': 'good' }, { 'x-value': 'bad' }, { 'x-no': '1' }];
      assert.deepEqual(await Promise.all(values.map((headers) => version('/m/without', { headers }))), ['v2', 'v2', 'v1', 'v1']);
    });

    test('match method, authority, scheme, query parameters, and alternatives', async () => {
      assert.deepEqual([await version('/m/method', { method: 'PUT' }), await version('/m/method')], ['v2', 'v1']);
      assert.deepEqual([await version('/m/authority', {}, `shop.${mode}`), await version('/m/authority')], ['v2', 'v1']);
      assert.equal(await version('/m/scheme'), 'v2');
      assert.deepEqual([await version('/m/query?q=1&r=z'), await version('/m/query?q=1&r=Z'), await version('/m/query?q=1'), await version('/m/query?r=z')], ['v2', 'v1', 'v1', 'v1']);
      assert.deepEqual([await version('/m/or'), await version('/m/either', { headers: { 'x-or': '1' } }), await version('/m/either')], ['v2', 'v2', 'v1']);
    });

    test('match port, sourceLabels, sourceNamespace, gateways', async () => {
      assert.deepEqual([await version('/m/port', {}, 'shop:8081'), await version('/m/port')], ['v2', 'v1']);
      assert.deepEqual([await version('/m/labels', { from: `${mode}/client-b` }), await version('/m/labels')], ['v2', 'v1']);
      assert.deepEqual([await version('/m/namespace', { from: `${otherThan(mode)}/client` }, `shop.${mode}`), await version('/m/namespace')], ['v2', 'v1']);
      assert.deepEqual([await version('/m/mesh'), await version('/m/gateway')], ['v2', 'v1']);
    });

    test('the first rule that matches counts', async () => {
      assert.equal(await version('/m/first'), 'v2');
    });

    test('every form of a host leads to its routes: short, with namespace, in full, with a dot, with a port, by address', async () => {
      const address = await addressOf(client, 'shop');
      const forms = ['shop', `shop.${mode}`, `shop.${mode}.svc`, `shop.${mode}.svc.cluster.local`, `SHOP.${mode}`, 'shop:80', address];
      assert.deepEqual(await Promise.all(forms.map((host) => version('/m/exact', {}, host))), forms.map(() => 'v2'));
      assert.equal(await version('/m/exact', { headers: { host: `shop.${mode}.svc.cluster.local.` } }), 'v2');
    });

    test('weights', async () => {
      const out = await exec(client, 'sh', '-c', "curl -sS 'http://shop/weights?[1-400]' | grep -o '\"version\":\"v[12]\"' | sort | uniq -c");
      const count = (wanted: string): number => Number(new RegExp(`(\\d+) "version":"${wanted}"`).exec(out)?.[1] ?? 0);
      assert.equal(count('v1') + count('v2'), 400, out);
      within(count('v2'), 400, 0.2);
    });

    test('rewrite: prefix, exact path, pattern, authority; the query stays', async () => {
      const path = async (asked: string): Promise<unknown> => (await get(`http://shop${asked}`)).body['path'];
      assert.deepEqual([await path('/rewrite/prefix/a?b=c'), await path('/rewrite/exact?b=c'), await path('/rewrite/pattern/one/two')], ['/new/a?b=c', '/exactly?b=c', '/two/one']);
      const answer = await get('http://shop/rewrite/authority');
      assert.equal(answer.body['headers']['host'], 'other.example.com');
    });

    test('redirect: authority, path, code, scheme and port', async () => {
      const all = await get('http://shop/redirect/all?a=b');
      assert.deepEqual([all.status, all.headers['location']], [307, 'http://other.example.com/there?a=b']);
      const port = await get('http://shop/redirect/port/x?a=b');
      assert.deepEqual([port.status, port.headers['location']], [301, 'https://shop:8443/redirect/port/x?a=b']);
    });

    test('direct responses, of text and of bytes', async () => {
      const text = await get('http://shop/direct/text');
      assert.deepEqual([text.status, text.text, text.headers['x-tea']], [418, 'short and stout', 'pot']);
      const bytes = await get('http://shop/direct/bytes');
      assert.deepEqual([bytes.status, bytes.text], [299, 'hi']);
    });

    test('headers: set, add and remove, at the route and at the destination, in requests and answers; the authority', async () => {
      const { body, headers } = await get('http://shop/headers', { headers: { 'x-set': 'client', 'x-add': 'client', 'x-remove': 'client' } });
      assert.deepEqual(['x-set', 'x-both', 'x-add', 'x-remove'].map((name) => body['headers'][name]), ['route', 'destination', 'client, route', undefined]);
      assert.deepEqual([headers['x-answer'], headers['x-pod']], ['route, destination', undefined]);
      assert.equal((await get('http://shop/authority')).body['headers']['host'], 'set.example.com');
    });

    test('a delegate\'s routes stand in the place of the route that names it', async () => {
      const narrow = await get('http://shop/delegate/v2');
      const rest = await get('http://shop/delegate/x');
      assert.deepEqual([narrow.version, narrow.headers['x-by'], rest.version, rest.headers['x-by']], ['v2', undefined, 'v1', 'delegate']);
      // The delegate's own conditions are within the root's, or nothing.
      assert.equal((await get('http://shop/elsewhere')).status, 200);
    });

    test('of two VirtualServices on a host the older one counts', async () => {
      assert.equal(await version('/x', {}, 'plain'), 'v2');
    });

    test('what is exported to its own namespace only is nothing to others', async () => {
      const url = `http://private.${mode}/x`;
      assert.deepEqual([(await get(url)).status, (await get(url, { from: `${otherThan(mode)}/client` })).status], [299, 200]);
    });

    test('a host that is no service is routed by its name on port 80', async () => {
      const address = await addressOf(client, 'shop');
      assert.equal(await version('/x', { args: ['--resolve', `foreign.example.com:80:${address}`] }, 'foreign.example.com'), 'v2');
    });

    test('mirror: a copy arrives, its host with a suffix, its answer is dropped; none at zero percent', async () => {
      const answers = [await get('http://shop/mirror/a'), await get('http://shop/mirror/a'), await get('http://shop/unmirrored')];
      assert.deepEqual(answers.map(({ status, version: v }) => [status, v]), [[200, 'v1'], [200, 'v1'], [200, 'v1']]);
      const seen = async (): Promise<Record<string, string[]>> => JSON.parse(await exec(`${mode}/recorder`, 'curl', '-sS', 'http://127.0.0.1:8080/seen')) as Record<string, string[]>;
      await waitFor('both copies at the mirror', async () => (await seen())['/mirror/a']?.length === 2, { timeoutMs: 120_000 });
      assert.deepEqual(await seen(), { '/mirror/a': ['shop-shadow', 'shop-shadow'] });
    });

    test('fault: aborted requests reach no server; none at zero percent, half at fifty', async () => {
      const [all, none] = [await get('http://shop/abort/all'), await get('http://shop/abort/none')];
      assert.deepEqual([all.status, none.status, await counted(mode, '/abort/all')], [451, 200, 0]);
      const out = await exec(client, 'sh', '-c', "curl -sS -o /dev/null -w '%{http_code}\\n' 'http://shop/abort/half?[1-200]' | grep -c 451");
      within(Number(out), 200, 0.5);
    });

    test('fault: a delay is put in before the server has the request', async () => {
      const before = await stat(mode, /fault.*delays_injected$/);
      const started = performance.now();
      const { status } = await get('http://shop/delay');
      assert.deepEqual([status, (await stat(mode, /fault.*delays_injected$/)) - before], [200, 1]);
      assert.ok(performance.now() - started >= 250, 'an answer before the delay was over');
    });

    test('timeout: 504 when no answer came', async () => {
      const started = performance.now();
      const { status } = await get('http://shop/timeout');
      assert.equal(status, 504);
      assert.ok(performance.now() - started >= 200, 'given up before the time was over');
    });

    test('retries: as many as asked, on what was asked, each counted at the server; a try has its own timeout', async () => {
      const retried = await get('http://shop/retried');
      assert.deepEqual([retried.status, await counted(mode, '/flaky/2/503')], [200, 3]);
      const exhausted = await get('http://shop/exhausted');
      assert.deepEqual([exhausted.status, await counted(mode, '/status/500')], [500, 3]);
      const unretried = await get('http://shop/unretried');
      assert.deepEqual([unretried.status, await counted(mode, '/status/503')], [503, 1]);
      const tries = await get('http://shop/tries');
      assert.deepEqual([tries.status, await counted(mode, '/hang/tries')], [504, 2]);
    });

    test('CORS: preflights are answered for origins that may, others go on', async () => {
      const preflight = (origin: string) => get('http://shop/cors', { method: 'OPTIONS', headers: { origin, 'access-control-request-method': 'PUT' } });
      const may = await preflight('https://a.example');
      assert.deepEqual([may.status, may.headers['access-control-allow-origin'], may.headers['access-control-allow-methods'], may.headers['access-control-max-age'], may.version], [200, 'https://a.example', 'GET,PUT', '3600', '']);
      const other = await preflight('https://b.example');
      assert.deepEqual([other.headers['access-control-allow-origin'], other.version], [undefined, 'v1']);
    });

    test('hashing: one header value always goes to one endpoint, many values to all; a cookie is made for who has none', async () => {
      const loop = async (header: string, times: number): Promise<string> => exec(client, 'sh', '-c', `for i in $(seq 1 ${times}); do curl -sS -H "x-user: ${header}" http://hashed/x | grep -o '"version":"v[12]"'; done | sort | uniq -c | tr -d ' \n'`);
      const [same, many] = [await loop('jesse', 16), await loop('user-$i', 40)];
      assert.match(same, /^16"version":"v[12]"$/);
      assert.match(many, /v1.*v2/);
      const first = await get('http://cookie/x');
      const [cookie = ''] = (first.headers['set-cookie'] ?? '').split(';');
      assert.match(cookie, /^user="?[^"]+"?$/);
      for (let i = 0; i < 6; i++) assert.equal(await version('/x', { headers: { cookie } }, 'cookie'), first.version);
    });

    test('gRPC: unary and streaming calls by method and metadata, weights a call, faults and retries by status', async () => {
      const call = async (...args: string[]): Promise<{ version: string; message: string }[]> => (await exec(client, 'grpc-client', ...args)).trim().split('\n').map((line) => JSON.parse(line) as { version: string; message: string });
      assert.deepEqual((await call('grpc:7070', 'Unary', '{"message":"a"}')).map(({ version: v, message }) => [v, message]), [['v1', 'a']]);
      assert.deepEqual((await call('grpc:7070', 'ServerStream', '{"message":"b","count":4}')).map(({ version: v }) => v), ['v2', 'v2', 'v2', 'v2']);
      assert.deepEqual((await call('grpc:7070', 'ClientStream', '{"message":"a"}', '{"message":"b"}')).map(({ version: v, message }) => [v, message]), [['v1', 'a b']]);
      assert.deepEqual((await call('grpc:7070', 'BidiStream', '{"message":"a"}', '{"message":"b"}')).map(({ version: v, message }) => [v, message]), [['v2', 'a'], ['v2', 'b']]);
      const half = await call('-n', '100', '-H', 'x-half=1', 'grpc:7070', 'Unary');
      within(half.filter(({ version: v }) => v === 'v2').length, 100, 0.5);
      assert.equal((await call('-H', 'x-retry=1', 'grpc:7070', 'Unary', '{"fail":14,"times":2,"key":"retry"}'))[0]!.version, 'v1');
      const aborted = await mesh.lab.exec(client, ['grpc-client', '-H', 'x-abort=1', 'grpc:7070', 'Unary']);
      assert.deepEqual([aborted.code, /code 8/.test(aborted.stderr)], [1, true], aborted.stderr);
    });

    test('WebSocket: upgraded through routes like any request', async () => {
      const out = await exec(client, 'ws-client', 'http://shop/m/prefix/ws', 'one', 'two');
      assert.match(out, /server-v2.*one\n.*server-v2.*two/);
    });

    test('TCP routes: weights a connection, sources', async () => {
      const said = await Promise.all(Array.from({ length: 4 }, async () => {
        const program = `(async () => { const net = require('node:net'); const out = []; for (let i = 0; i < 30; i++) out.push(await new Promise((done, fail) => { const s = net.connect(9000, 'tcp', () => s.write('x\\n')); s.on('data', (d) => { done(String(d).trim()); s.destroy(); }); s.on('error', fail); })); console.log(out.join('\\n')); })()`;
        return (await exec(client, process.execPath, '-e', program)).trim().split('\n');
      }));
      const all = said.flat();
      assert.deepEqual([all.length, [...new Set(all)].sort()], [120, ['v1 x', 'v2 x']]);
      within(all.filter((line) => line === 'v2 x').length, 120, 0.25);
      for (let i = 0; i < 5; i++) assert.deepEqual(await lines(`${mode}/client-b`, 'tcp', 9000, 'hello'), ['v2 hello']);
    });

    test('TCP connections that are hashed by the client\'s address go to one endpoint', async () => {
      const said = new Set<string>();
      for (let i = 0; i < 12; i++) for (const line of await lines(client, 'near', 9000, 'x')) said.add(line);
      assert.equal(said.size, 1, [...said].join());
    });

    test('TCP through a forward proxy: the connection is asked for by CONNECT', async () => {
      assert.deepEqual(await lines(client, 'tunnel', 3128, 'hello'), ['far.example.com:443 hello']);
    });

    test('TLS routes: by the name that the client asks for, encrypted to the end', async () => {
      const address = await addressOf(client, 'tls');
      const served = async (name: string): Promise<unknown> => {
        const { version: v, body } = await get(`https://${name}/`, { args: ['-k', '--http1.1', '--resolve', `${name}:443:${address}`] });
        return [v, body['sni']];
      };
      for (let i = 0; i < 4; i++) assert.deepEqual([await served('a.example.com'), await served('x.b.example.com')], [['v1', 'a.example.com'], ['v2', 'x.b.example.com']]);
    });

    test('server-first protocols: on a declared port, and on a well-known one without a name', async () => {
      assert.match((await lines(client, 'greet', 9100, ''))[0]!, /^220 server-v[12] v[12]$/);
      assert.match((await lines(client, 'greet', 3306, ''))[0]!, /^220 server-v[12] v[12]$/);
    });

    test('sniffed ports: HTTP is routed, everything else goes through as it is', async () => {
      for (let i = 0; i < 4; i++) assert.equal(await version('/x', {}, 'sniff:7777'), 'v2');
      assert.match((await lines(client, 'sniff', 7778, 'anything'))[0]!, /^v[12] anything$/);
    });

    test('a headless service\'s pods are reached by name and by address, in HTTP and TCP', async () => {
      assert.match(String(await version('/x', {}, 'head:8080')), /^v[12]$/);
      const addresses = (await exec(client, 'getent', 'ahostsv4', 'head')).split('\n').map((line) => line.split(/\s+/)[0]!).filter((line) => line !== '');
      const said = await Promise.all([...new Set(addresses)].map(async (address) => (await lines(client, address, 9000, 'hi'))[0]));
      assert.deepEqual(said.sort(), ['v1 hi', 'v2 hi']);
    });
  });
}
