// Envoy's part of the connection series: what was told of a connection that is open is not told again, however Envoy is read.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { logger } from '../../common/log.js';
import { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import type { RequestView } from '../proxy/request-view.js';
import { CONNECTION_STATS_PATH, ConnectionStatsReader, NO_CONNECTIONS } from './envoy-connection-stats.js';
import { EnvoyConnections } from './envoy-connections.js';

const folder = mkdtempSync(join(tmpdir(), 'up-connections-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const KEY = ['s', '/netns/client', 'outbound|9000||db.shop.svc.cluster.local', 'db;shop;db;;Kubernetes', 'node'].join('\t');
const INBOUND = ['d', '', 'pod/db/inbound|9000||', 'db', 'spiffe://cluster.local/ns/far/sa/away'].join('\t');
const TUNNEL = ['t', '', '9000', 'db', 'spiffe://cluster.local/ns/far/sa/away'].join('\t');

class World implements RequestView {
  envoy: string | undefined = '1 1';
  stats: Record<string, number> = {};
  nowMs = 0;
  readonly path = join(folder, `${Math.random()}.jsonl`);
  readonly workloads = { synced: true, revision: 1, addresses: new Map(['client', 'db'].map((name, index) => {
    const value = Workload.fromPartial({ uid: name, name, namespace: 'shop', addresses: [Buffer.from([10, 0, 0, index + 1])], workload_name: name, service_account: name, canonical_name: name, canonical_revision: 'latest', cluster_id: 'Kubernetes', services: { 'shop/db': { ports: [{ service_port: 9000, target_port: 9000 }] } } });
    return [name, { message: Address.fromPartial({ type: { $case: 'workload', value } }) }] as const;
  }).concat([['shop/db', { message: Address.fromPartial({ type: { $case: 'service', value: { name: 'db', namespace: 'shop', hostname: 'db.shop.svc.cluster.local' } } }) }]])) };
  connections = this.agent();

  agent(): EnvoyConnections {
    return new EnvoyConnections({ view: this, workloads: this.workloads, path: this.path, logger: logger('test'), now: () => this.nowMs });
  }
  pods() {
    return ['client', 'db'].map((uid, index) => ({ uid, netnsPath: `/netns/${uid}`, addresses: [`10.0.0.${index + 1}`] }));
  }
  serviceOf() {
    return { hostname: 'db.shop.svc.cluster.local', name: 'db', namespace: 'shop' };
  }
  async read(path: string, onText: (text: string) => void): Promise<void> {
    assert.equal(path, CONNECTION_STATS_PATH);
    const text = JSON.stringify({ stats: Object.entries(this.stats).map(([name, value]) => ({ name: `underpass_connections.${name}`, value })) });
    // In pieces, as it comes.
    for (let from = 0; from < text.length; from += 50) onText(text.slice(from, from + 50));
  }

  /** Of the source: opened, closed by flags, received, sent. */
  async told(): Promise<unknown> {
    this.nowMs += 10_000;
    await this.connections.refresh();
    const [first] = this.connections.report(() => true).sums.filter(({ reporter }) => reporter === 'source');
    const { opened, closed, received, sent } = first?.totals ?? NO_CONNECTIONS;
    return [Number(opened), Object.fromEntries([...closed].map(([flags, count]) => [flags, Number(count)])), Number(received), Number(sent)];
  }
}

const at = (name: string, key = KEY) => `${name}.k.${key}`;
const open = (name: string, id: string) => `${name}_open.k.${KEY}.id.${id}`;

test('EnvoyConnections: bytes of a connection that is open are told once, whether its end or its sum is seen first', async () => {
  const w = new World();
  w.stats = { [at('opened')]: 2, [open('received', '7')]: 100, [open('sent', '7')]: 50, [open('received', '8')]: 10 };
  assert.deepEqual(await w.told(), [2, {}, 110, 50]);
  // The end without the sum, then both, with what came last.
  w.stats[open('received', '7')] = w.stats[open('sent', '7')] = 0;
  assert.deepEqual(await w.told(), [2, {}, 110, 50]);
  Object.assign(w.stats, { [at('received')]: 120, [at('sent')]: 50, [at('closed', `${KEY}\t-`)]: 1 });
  assert.deepEqual(await w.told(), [2, { '-': 1 }, 130, 50]);
  // The sum before the end: what is told too early is not told again.
  Object.assign(w.stats, { [at('received')]: 135, [at('closed', `${KEY}\tUC`)]: 1 });
  assert.deepEqual(await w.told(), [2, { '-': 1, UC: 1 }, 145, 50]);
  w.stats[open('received', '8')] = 0;
  assert.deepEqual(await w.told(), [2, { '-': 1, UC: 1 }, 145, 50]);
  w.stats[at('received')] = 146;
  assert.deepEqual(await w.told(), [2, { '-': 1, UC: 1 }, 146, 50]);
});

test('EnvoyConnections: what never was begins and ends, with its flags', async () => {
  const w = new World();
  w.stats = { [at('failed', `${KEY}\tUF,URX`)]: 3 };
  assert.deepEqual(await w.told(), [3, { 'UF,URX': 3 }, 0, 0]);
});

test('EnvoyConnections: sums do not fall when Envoy drops a quantity, is started anew, or the agent is, and nothing is told twice', async () => {
  const w = new World();
  w.stats = { [at('opened')]: 2, [at('received')]: 70, [at('sent')]: 7, [open('received', '7')]: 100, [at('closed', `${KEY}\t-`)]: 1 };
  assert.deepEqual(await w.told(), [2, { '-': 1 }, 170, 7]);
  delete w.stats[at('received')];
  delete w.stats[at('sent')];
  delete w.stats[at('opened')];
  assert.deepEqual(await w.told(), [2, { '-': 1 }, 170, 7]);
  w.stats[open('received', '7')] = 130;
  assert.deepEqual(await w.told(), [2, { '-': 1 }, 200, 7]);
  await w.connections.close();
  w.connections = w.agent();
  await w.connections.open();
  assert.deepEqual(await w.told(), [2, { '-': 1 }, 200, 7]);
  w.envoy = '2 2';
  w.stats = { [at('opened')]: 1, [at('received')]: 5 };
  assert.deepEqual(await w.told(), [3, { '-': 1 }, 205, 7]);
});

test('EnvoyConnections: both sides of a connection within the node, and who called from outside; a tunnel by the port that it asked for', async () => {
  const w = new World();
  w.stats = { [at('opened')]: 1, [at('opened', INBOUND)]: 2, [at('opened', TUNNEL)]: 4 };
  await w.told();
  const rows = w.connections.report(() => true).sums.map(({ labels, totals }) => [labels['reporter'], labels['source_workload'], labels['source_principal'], labels['destination_service_name'], labels['connection_security_policy'], labels['response_flags'], Number(totals.opened)]);
  assert.deepEqual(rows, [
    ['source', 'client', 'spiffe://cluster.local/ns/shop/sa/client', 'db', 'unknown', '-', 1],
    ['destination', 'client', 'spiffe://cluster.local/ns/shop/sa/client', 'db', 'unknown', '-', 1],
    // The inbound chain's and the tunnel's: the same service, and so one series.
    ['destination', 'unknown', 'spiffe://cluster.local/ns/far/sa/away', 'db', 'mutual_tls', '-', 6],
  ]);
});

test('ConnectionStatsReader: nothing counted is no error; an answer that broke off is', () => {
  const read = (text: string) => {
    const reader = new ConnectionStatsReader();
    reader.read(text);
    return reader.end();
  };
  assert.equal(read('{"stats":[]}').size, 0);
  const whole = `{"stats":[{"name":"underpass_connections.opened.k.a\\"b","value":3}]}`;
  assert.deepEqual([...read(whole).keys()], ['a"b\topened']);
  for (const bad of ['', 'no', whole.slice(0, -1), whole.slice(0, 30)]) assert.throws(() => read(bad), { code: 'UNDERPASS_ENVOY_STATS' });
  assert.throws(() => read(`{"name":"${'x'.repeat(100_000)}`), { code: 'UNDERPASS_ENVOY_STATS' });
});
