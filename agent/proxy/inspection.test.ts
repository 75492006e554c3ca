import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { sleep, waitFor } from '../../common/retry.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { pack } from '../../common/xds/any.js';
import { echoServer, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_CLUSTER, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, httpListener, routes, sniffedListener, tcpListener } from '../testing/resources.js';
import { CDS, LDS } from './snapshot.js';
import type { ProxyPod } from './node-proxy.js';

const DRAIN_SECONDS = 1;
const HEADER_CLUSTER = 'outbound|80|v2|web.shop.svc.cluster.local';

/** Says "first" to whoever connects, then echoes. */
const serverFirst = `require('net').createServer((s) => { s.write('first'); s.on('data', (d) => s.write(d)); s.on('error', () => {}); s.on('end', () => s.end()); }).listen(5001, () => console.log('ready'));`;

/** Connects, sends `data` after `delayMs`, prints what comes until the end, or 3 s after the data. */
function lateClient(address: string, port: number, data: string, delayMs: number): string {
  return `const s = require('net').connect(${port}, '${address}'); let text = ''; const done = (error) => { console.log(JSON.stringify({ text, error })); process.exit(0); };
    s.on('data', (d) => (text += d)); s.on('error', (e) => done(e.code)); s.on('close', () => done());
    setTimeout(() => { s.write(${JSON.stringify(data)}); setTimeout(done, 3000); }, ${delayMs});`;
}

/** A connection that stays: prints "ready" when the server spoke, answers each line on stdin with an echo. */
function held(address: string, port: number): string {
  return `const s = require('net').connect(${port}, '${address}'); let ready = false;
    s.on('data', (d) => { if (!ready) { ready = true; console.log('ready'); } else console.log('echo ' + d); });
    s.on('error', (e) => console.log('error ' + e.code)); s.on('close', () => console.log('closed'));
    process.stdin.on('data', (d) => s.write(d));`;
}

async function echoed(child: ChildProcess, text: string): Promise<string> {
  let out = '';
  child.stdout?.on('data', (data: Buffer) => (out += data.toString()));
  child.stdout?.resume();
  child.stdin?.write(text);
  await waitFor('an answer', () => out.length > 0);
  return out.trim();
}

describe('inspected ports', () => {
  const world = new ProxyWorld();
  let a: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    const table = world.controlPlane;
    service('10.96.1.1', 9000, 'plain');
    await world.start({ execPath: world.drainingAfter(DRAIN_SECONDS) });
    byHeader(80);
    table.set(edsCluster(HEADER_CLUSTER), HEADER_CLUSTER);
    table.set(assignment(HEADER_CLUSTER, [`${ENDPOINT}:81`]), HEADER_CLUSTER);
    a = await world.pod('pod-a');
    await a.netns.serve(echoServer(80).replace('path: req.url', "path: 'v1'"));
    await a.netns.serve(echoServer(81).replace('path: req.url', "path: 'v2'").replace('res.end(', "if (req.url === '/big') return res.end(Buffer.alloc(5e6, 'x')); res.end("));
    await a.netns.serve(serverFirst);
    world.running.setPods([a.pod]);
    await world.ready(a.pod);
  });
  after(() => world.close());

  /** A TCP service, of declared or unknown protocol, whose server speaks first. */
  function service(vip: string, port: number, kind: 'plain' | 'unknown'): string {
    const cluster = `outbound|${port}||${vip}`;
    world.controlPlane.set(edsCluster(cluster), cluster);
    world.controlPlane.set(assignment(cluster, [`${ENDPOINT}:5001`]), cluster);
    world.controlPlane.set(kind === 'plain' ? tcpListener(vip, port, cluster) : sniffedListener(vip, port, cluster), `${vip}_${port}`);
    if (kind === 'unknown') world.controlPlane.set(routes(port, { web: SERVICE_CLUSTER }), `${port}`);
    return `${vip}_${port}`;
  }
  /** An HTTP port on which a header leads to v2. */
  function byHeader(port: number): void {
    const table = RouteConfiguration.decode(routes(port, { web: SERVICE_CLUSTER }).value);
    const [plain] = table.virtual_hosts[0]?.routes ?? [];
    assert.ok(plain);
    const special = RouteConfiguration.decode(routes(port, { web: HEADER_CLUSTER }).value).virtual_hosts[0]?.routes[0];
    assert.ok(special?.match);
    special.match.headers = [{ name: 'user', invert_match: false, treat_missing_header_as_empty: false, header_match_specifier: { $case: 'string_match', value: { ignore_case: false, match_pattern: { $case: 'exact', value: 'jesse' } } } }] as never;
    table.virtual_hosts[0]!.routes = [special, plain];
    world.controlPlane.set(pack(RouteConfiguration, table), `${port}`);
    world.controlPlane.set(httpListener(port), `0.0.0.0_${port}`);
  }
  async function rollOut(marker: string): Promise<void> {
    world.controlPlane.push(CDS);
    world.controlPlane.push(LDS);
    await waitFor(marker, async () => JSON.stringify(await world.running.envoy.admin.configDump()).includes(marker));
    await world.settled();
  }
  async function stat(name: string): Promise<number> {
    return (await world.running.envoy.admin.stats(`^${name.replaceAll('.', '\\.')}$`)).get(name) ?? 0;
  }
  const request = 'GET / HTTP/1.1\r\nhost: web\r\nuser: jesse\r\nconnection: close\r\n\r\n';

  it('keep connections alive while Services and ports come and go', async () => {
    await rollOut(service('10.96.1.4', 7001, 'unknown'));
    const plain = await a.netns.serve(held('10.96.1.1', 9000));
    const unknown = await a.netns.serve(held('10.96.1.4', 7001));
    await rollOut(service('10.96.1.2', 9000, 'plain')); // a Service on a port that is there
    byHeader(8081);
    await rollOut('0.0.0.0_8081'); // ports that are new: HTTP, of unknown protocol, plain
    await rollOut(service('10.96.1.3', 7002, 'unknown'));
    await rollOut(service('10.96.1.3', 9001, 'plain'));
    world.controlPlane.tables.get(LDS)?.delete('10.96.1.3_7002');
    world.controlPlane.push(LDS, ['10.96.1.3_7002']);
    await sleep(DRAIN_SECONDS * 1_000 + 1_500);
    assert.deepEqual([await echoed(plain, 'x'), await echoed(unknown, 'y')], ['echo x', 'echo y']);
    assert.equal(await stat('listener_manager.total_listeners_draining'), 0);
  });

  it('do not make a plain port wait whose server speaks first, one that came later neither', async () => {
    const before_ = await stat('listener.pod_pod-a.downstream_pre_cx_timeout');
    for (const [vip, port] of [['10.96.1.1', 9000], ['10.96.1.3', 9001]] as const) {
      assert.equal((await a.netns.script<{ text: string }>(lateClient(vip, port, '', 0))).text, 'first');
    }
    assert.equal(await stat('listener.pod_pod-a.downstream_pre_cx_timeout'), before_);
  });

  for (const [port, where] of [[80, 'in the pod\'s own listener'], [8081, 'in the internal one']] as const) {
    it(`route declared HTTP by its headers however late the request comes: ${where}`, async () => {
      const { text } = await a.netns.script<{ text: string }>(lateClient(SERVICE_VIP, port, request, 1_500));
      assert.match(text, /^HTTP\/1\.1 200 /);
      assert.match(text, /"path":"v2"/);
      assert.match(text, /"server":"10\.0\.0\.5"/);
      const prompt = await a.netns.script<{ text: string }>(lateClient(SERVICE_VIP, port, request.replace('jesse', 'other'), 0));
      assert.match(prompt.text, /"path":"v1"/);
    });
  }

  it('lose nothing of a large answer whose end closes the connection', async () => {
    const big = request.replace('GET / ', 'GET /big ');
    for (const port of [80, 8081]) {
      const { length } = await a.netns.script<{ length: number }>(`const s = require('net').connect(${port}, '${SERVICE_VIP}'); let length = 0;
        s.on('data', (d) => (length += d.length)); s.on('close', () => console.log(JSON.stringify({ length }))); setTimeout(() => s.write(${JSON.stringify(big)}), 300);`);
      assert.ok(length > 5_000_000, `${length} bytes on port ${port}`);
    }
  });

  it('pass through what is not HTTP on a port that is declared as HTTP', async () => {
    await a.netns.ip('addr', 'add', '10.96.9.9/32', 'dev', 'lo');
    for (const port of [80, 8081]) {
      if (port !== 80) await a.netns.serve(serverFirst.replace('5001', `${port}, '10.96.9.9'`));
      const { text } = await a.netns.script<{ text: string }>(lateClient('10.96.9.9', port, '\u0001binary\r\n', 0));
      // On port 80 an HTTP server stands behind the address, and it is the one that refuses.
      if (port === 80) assert.doesNotMatch(text, /istio-envoy|server: envoy/);
      else assert.equal(text, 'first\u0001binary\r\n');
    }
  });
});
