import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { sleep, waitFor } from '../../common/retry.js';
import { echoServer, type TestNetns } from '../testing/netns.js';
import { ENDPOINT, ProxyWorld, SERVICE_VIP } from '../testing/proxy-world.js';
import { assignment, edsCluster, tcpListener } from '../testing/resources.js';
import type { ProxyPod } from './node-proxy.js';

const DRAIN_SECONDS = 1;
const TCP_VIP = '10.96.1.1';
/** The chain of the pod's own listener, of HTTP on port 80 and of the TCP service. */
const OWN = ['0.0.0.0_80/0', `${TCP_VIP}_9000/0`];

const tcpEcho = `require('net').createServer((s) => { s.on('data', (d) => s.write('echo ' + d)); s.on('error', () => {}); }).listen(5001, () => console.log('ready'));`;

/** A connection that stays: for each line on stdin it sends `text`, and prints the first line of what comes, or how it ended. */
function held(address: string, port: number, text: string): string {
  return `const s = require('net').connect(${port}, '${address}', () => console.log('ready'));
    s.on('data', (d) => console.log(String(d).split(/\\r?\\n/)[0])); s.on('error', (e) => console.log('error ' + e.code)); s.on('close', () => console.log('closed'));
    process.stdin.on('data', () => s.write(${JSON.stringify(text)}));`;
}

async function answer(child: ChildProcess): Promise<string> {
  let out = '';
  child.stdout?.on('data', (data: Buffer) => (out += data.toString()));
  child.stdin?.write('\n');
  await waitFor('an answer', () => out.length > 0, { timeoutMs: 10_000 });
  child.stdout?.removeAllListeners('data');
  return out.trim();
}

describe('pods that come many at a time', () => {
  const world = new ProxyWorld();
  let pods: ProxyPod[];
  let netns: TestNetns;

  before(async () => {
    const cluster = `outbound|9000||${TCP_VIP}`;
    world.controlPlane.set(edsCluster(cluster), cluster);
    world.controlPlane.set(assignment(cluster, [`${ENDPOINT}:5001`]), cluster);
    world.controlPlane.set(tcpListener(TCP_VIP, 9000, cluster), `${TCP_VIP}_9000`);
    await world.start({ execPath: world.drainingAfter(DRAIN_SECONDS) });
    const made = [];
    for (let i = 0; i < 12; i++) made.push(await world.pod(`pod-${i}`, { ips: [`10.0.1.${i + 1}`] }));
    pods = made.map(({ pod }) => pod);
    netns = made[0]!.netns;
    for (const server of [echoServer(80), tcpEcho]) await netns.serve(server);
  });
  after(() => world.close());

  /** Names of the chains of the pod's listener that is in force. */
  async function chains(uid: string): Promise<string[]> {
    const { configs } = (await world.running.envoy.admin.configDump()) as { configs: { dynamic_listeners?: { name: string; active_state?: { listener: { filter_chains: { name: string }[] } } }[] }[] };
    const listener = configs.flatMap(({ dynamic_listeners = [] }) => dynamic_listeners).find(({ name }) => name === `pod/${uid}/outbound`);
    return listener?.active_state?.listener.filter_chains.map(({ name }) => name) ?? [];
  }
  const owned = async (uid: string): Promise<string[]> => (await chains(uid)).filter((name) => OWN.includes(name)).sort();

  it('are served before their listeners are whole; connections from then live on when they are, whatever drains', async () => {
    world.running.setPods(pods.slice(0, 11));
    await world.ready(...pods.slice(0, 11));
    assert.deepEqual(await owned('pod-0'), [], 'brief');
    assert.equal(world.running.status().settled, false);
    const http = await netns.serve(held(SERVICE_VIP, 80, 'GET / HTTP/1.1\r\nhost: web\r\n\r\n'));
    const tcp = await netns.serve(held(TCP_VIP, 9000, 'x'));
    const answers = async (): Promise<string[]> => [await answer(http), await answer(tcp)];
    assert.deepEqual(await answers(), ['HTTP/1.1 200 OK', 'echo x']);
    await waitFor('all listeners to be whole', () => world.running.status().settled, { timeoutMs: 20_000 });
    for (const { uid } of pods.slice(0, 11)) assert.deepEqual(await owned(uid), OWN, uid);
    await sleep(DRAIN_SECONDS * 1_000 + 1_500);
    assert.deepEqual(await answers(), ['HTTP/1.1 200 OK', 'echo x']);
    const stats = await world.running.envoy.admin.stats('^listener_manager\\.');
    assert.deepEqual(['listener_in_place_updated', 'total_listeners_draining', 'total_filter_chains_draining'].map((name) => stats.get(`listener_manager.${name}`)), [11, 0, 0]);
  });

  it('stay whole beside those that come later, of which a few are whole at once', async () => {
    world.running.setPods(pods);
    await world.ready(...pods);
    for (const { uid } of pods) assert.deepEqual(await owned(uid), OWN, uid);
  });
});
