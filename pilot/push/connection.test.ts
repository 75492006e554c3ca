import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rootLogger } from '../../common/log.js';
import { DeltaDiscoveryRequest } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { Generator, Generators } from '../generate/generator.js';
import { TYPE, type Resource } from '../generate/resource.js';
import { ChangeSet } from '../model/changes.js';
import { TestStream } from '../testing/stream.js';
import { Assembler } from './assembler.js';
import { BudgetShare, SendBudget } from './budget.js';
import { ConnectThrottle } from './connect-throttle.js';
import type { ConnectionContext } from './connection.js';
import { DeltaConnection } from './delta.js';
import { PushMetrics } from './metrics.js';
import { MapStore } from './shared-map.js';

const NODE = 'sidecar~10.0.0.9~client.shop~shop.svc.cluster.local';
const turns = async (count = 50): Promise<void> => {
  for (let turn = 0; turn < count; turn++) await new Promise<void>((resolve) => setImmediate(resolve));
};

function open(bytes: number, throttle = new ConnectThrottle(16)): { call: TestStream; connection: DeltaConnection; budget: SendBudget; generator: Generator; ask: (more?: Partial<DeltaDiscoveryRequest>) => void; bump: () => void } {
  let version = 1;
  const one = (_proxy: unknown, name: string): Resource => ({ name, version: `${version}`, body: { type_url: TYPE.endpoint, value: Buffer.alloc(bytes) } });
  const generator: Generator = { typeUrl: TYPE.endpoint, wildcard: false, all: (proxy) => [one(proxy, 'a'), one(proxy, 'b')], one, affected: () => ['a', 'b'], invalidate: () => undefined };
  const generators = { get: () => generator } as unknown as Generators;
  const budget = new SendBudget(64 << 20);
  const logger = rootLogger.child({}, { level: 'silent' });
  const context: ConnectionContext = { generators, logger, metrics: new PushMetrics(), budget, throttle, assembler: new Assembler(), maps: new MapStore(), maxNames: 100, version: () => 'v', clients: () => undefined, wake: () => undefined };
  const call = new TestStream();
  const connection = new DeltaConnection(context, call as unknown as DeltaConnection['call'], () => undefined, { identity: undefined, local: false });
  const ask = (more: Partial<DeltaDiscoveryRequest> = {}): void => void call.emit('data', DeltaDiscoveryRequest.fromPartial({ type_url: TYPE.endpoint, node: { id: NODE }, resource_names_subscribe: ['a'], ...more }));
  return { call, connection, budget, generator, ask, bump: () => void version++ };
}

test('a client that asks and asks but does not read is made no more responses until it has read', async () => {
  const { call, budget, ask } = open(2 << 20);
  for (let index = 0; index < 100; index++) ask();
  await turns();
  assert.deepEqual([call.written.length, call.paused], [1, true]);
  assert.ok(budget.isFree, 'others are served');
  call.unread.shift()!();
  await turns();
  assert.equal(call.written.length, 2);
  call.emit('close');
  assert.equal(budget.inFlightBytes, 0);
});

test('of clients that connect together the requests are read only as earlier ones are answered', async () => {
  const throttle = new ConnectThrottle(1);
  const [first, second, third] = [open(10, throttle), open(10, throttle), open(10, throttle)];
  const reading = (): number[] => [first, second, third].map(({ call }) => call.listenerCount('data'));
  assert.deepEqual(reading(), [1, 0, 0]);
  first.ask();
  await turns();
  assert.deepEqual([first.call.written.length, reading()], [1, [1, 1, 0]]);
  second.call.emit('cancelled');
  assert.deepEqual(reading(), [1, 1, 1], 'one that goes away makes room as well');
  third.ask();
  await turns();
  assert.equal(third.call.written.length, 1);
});

test('delta: after the wildcard is unsubscribed nothing is sent but what was subscribed to by name', async () => {
  const { call, connection, ask, bump } = open(10);
  ask({ resource_names_subscribe: ['*', 'b'] });
  ask({ resource_names_subscribe: [], resource_names_unsubscribe: ['*'] });
  await turns();
  assert.deepEqual([...connection.watches.get(TYPE.endpoint)!.sent], ['b']);
  call.read();
  bump();
  connection.push(new ChangeSet());
  assert.equal(call.written.length, 2);
  assert.deepEqual([...connection.watches.get(TYPE.endpoint)!.sent], ['b']);
});

test('BudgetShare: what a stalled client has not read stops holding up the others, and is given back only once', async () => {
  const budget = new SendBudget(10);
  const share = new BudgetShare(budget, 1);
  share.take(100);
  assert.equal(budget.isFree, false);
  // The share's own timer keeps no process alive.
  const alive = setInterval(() => undefined, 1_000);
  await new Promise<void>((resolve) => budget.whenFree(resolve));
  clearInterval(alive);
  assert.deepEqual([budget.inFlightBytes, share.unsentBytes], [0, 100]);
  share.give(100);
  share.release();
  assert.deepEqual([budget.inFlightBytes, share.unsentBytes], [0, 0]);
});

test('large resources of a request are made each in a turn of its own, and the answer has them all', async () => {
  const { call, ask, generator } = open(10);
  ask();
  await turns();
  const log: string[] = [];
  const { one } = generator;
  generator.isLarge = () => true;
  generator.one = (proxy, name) => {
    log.push(name);
    setImmediate(() => log.push('turn'));
    return one(proxy, name);
  };
  ask({ resource_names_subscribe: ['b', 'c', 'd'] });
  await turns();
  assert.deepEqual(log.slice(0, 6), ['b', 'turn', 'c', 'turn', 'd', 'turn']);
  assert.deepEqual(call.read().at(-1)!.resources.map(({ name }) => name), ['b', 'c', 'd']);
});

test('a request is worked off in steps that others get their turn between, and no push comes in the middle', async () => {
  const { call, connection, ask, bump } = open(10);
  ask();
  assert.deepEqual([call.written.length, connection.ready], [0, false]);
  bump();
  await turns();
  assert.deepEqual(call.read().map(({ resources }) => resources.map(({ name, version }) => `${name} ${version}`)), [['a 2']]);
});

test('of two responses the second is given to the stream when the first has been read', async () => {
  const { call, ask } = open(10);
  ask();
  ask({ resource_names_subscribe: ['b'] });
  await turns();
  assert.equal(call.written.length, 1);
  call.unread.shift()!();
  assert.equal(call.written.length, 2);
});
