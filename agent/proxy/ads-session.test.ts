import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { pino } from 'pino';
import { DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { AdsSession, namesIn, type AdsCall } from './ads-session.js';
import { CDS, LDS, SDS, Snapshot, type Entry } from './snapshot.js';

describe('namesIn', () => {
  it('finds whom a refusal names and nobody whose name is part of that', () => {
    const names = ['outbound|80||web.shop.svc', 'outbound|80||web.shop.svc.cluster.local', 'outbound|80||web.shop.svc.cluster.local~c2', '80', 'pod/u1/outbound', 'pod/u1', 'web', 'web:80', 'a(b)*'];
    const cases: [string, string[]][] = [
      ['Error adding/updating cluster(s) outbound|80||web.shop.svc.cluster.local~c2: no such thing', ['outbound|80||web.shop.svc.cluster.local~c2']],
      ['Error adding/updating cluster(s) outbound|80||web.shop.svc.cluster.local: bad. ', ['outbound|80||web.shop.svc.cluster.local']],
      ['cluster outbound|80||web.shop.svc.', ['outbound|80||web.shop.svc']],
      ['pod/u1/outbound: failed to open netns file', ['pod/u1/outbound']],
      ['route "web:80" and "web"', ['web', 'web:80']],
      ['a(b)* is odd', ['a(b)*']],
      ['nobody', []],
    ];
    for (const [message, expected] of cases) assert.deepEqual([...namesIn(message, names)].sort(), expected.sort(), message);
  });
});

it('AdsSession: a secret goes out while the clusters that wait for it are not acknowledged yet', () => {
  const sent: DeltaDiscoveryResponse[] = [];
  const entry = (name: string): Entry => ({ name, version: '1', any: { type_url: '', value: Buffer.alloc(0) }, needs: [] });
  const clusters = [CDS, new Map([['c', entry('c')]])] as const;
  let target = new Snapshot([clusters]);
  const host = { target: () => target, acked: () => undefined, nacked: () => undefined, logger: pino({ level: 'silent' }) };
  const session = new AdsSession({ write: (response: DeltaDiscoveryResponse) => sent.push(response) } as unknown as AdsCall, host);
  const ask = (type_url: string, ...resource_names_subscribe: string[]): void => session.receive(DeltaDiscoveryRequest.fromPartial({ type_url, resource_names_subscribe }));
  ask(CDS);
  ask(SDS, 'spiffe://a');
  const secrets = (): string[] => sent.filter(({ type_url }) => type_url === SDS).flatMap(({ resources }) => resources.map(({ name }) => name));
  assert.deepEqual([sent.filter(({ type_url }) => type_url === CDS).length, secrets()], [1, []]);
  target = new Snapshot([clusters, [SDS, new Map([['spiffe://a', entry('spiffe://a')]])]]);
  session.push();
  assert.deepEqual(secrets(), ['spiffe://a']);
  target = target.with(SDS, new Map([['spiffe://b', entry('spiffe://b')]]));
  ask(SDS, 'spiffe://b');
  assert.deepEqual(secrets(), ['spiffe://a', 'spiffe://b']);
  session.close();
});

it('AdsSession: of those that a refusal which Envoy cut off does not name none is taken for acknowledged', async () => {
  const sent: DeltaDiscoveryResponse[] = [];
  const answers: string[] = [];
  const entries = ['a', 'b', 'c'].map((name): Entry => ({ name, version: '1', any: { type_url: '', value: Buffer.alloc(0) }, needs: [] }));
  const host = {
    target: () => new Snapshot([[CDS, new Map(entries.map((entry) => [entry.name, entry]))]]), logger: pino({ level: 'silent' }),
    acked: (_type: string, name: string) => answers.push(`${name} taken`), nacked: ({ name }: { name: string }) => void answers.push(`${name} refused`),
  };
  const session = new AdsSession({ write: (response: DeltaDiscoveryResponse) => sent.push(response) } as unknown as AdsCall, host);
  session.receive(DeltaDiscoveryRequest.fromPartial({ type_url: CDS }));
  const answer = (message?: string): void => session.receive(DeltaDiscoveryRequest.fromPartial({ type_url: CDS, response_nonce: sent.at(-1)!.nonce, ...(message === undefined ? {} : { error_detail: { message } }) }));
  answer(`Error adding/updating cluster(s) a: ${'x'.repeat(4_000)}...(truncated)`);
  assert.equal(session.idle, false);
  await new Promise(setImmediate);
  assert.deepEqual([answers, sent.at(-1)!.resources.map(({ name }) => name), session.idle], [['a refused'], ['b', 'c'], false]);
  answer('Error adding/updating cluster(s) c: bad');
  assert.deepEqual(answers, ['a refused', 'b taken', 'c refused']);
  session.close();
});

describe('AdsSession: listeners of many new pods', () => {
  const entry = (name: string): Entry => ({ name, version: '1', any: { type_url: '', value: Buffer.alloc(0) }, needs: [] });
  const pods = Array.from({ length: 25 }, (_, i) => `u${i}`);
  const inner = entry('inspect/c1/http');
  /** In the order in which they are folded. */
  const all = [...pods.map((uid) => entry(`pod/${uid}/hbone`)), ...pods.map((uid) => entry(`pod/${uid}/outbound`)), inner];
  const snapshotOf = (entries: readonly Entry[]): Snapshot => new Snapshot([[LDS, new Map(entries.map((each) => [each.name, each]))]]);

  const open = (given: Snapshot) => {
    const sent: DeltaDiscoveryResponse[] = [];
    const answered = new Map<string, 'taken' | 'refused'>();
    const world = { sent, answered, target: given, done: 0 };
    const host = {
      target: () => world.target, logger: pino({ level: 'silent' }),
      acked: (_type: string, name: string) => void answered.set(name, 'taken'), nacked: ({ name }: { name: string }) => void answered.set(name, 'refused'), rolledOut: () => void world.done++,
    };
    const session = new AdsSession({ write: (response: DeltaDiscoveryResponse) => sent.push(response) } as unknown as AdsCall, host);
    const answer = async (index: number, message?: string): Promise<void> => {
      session.receive(DeltaDiscoveryRequest.fromPartial({ type_url: LDS, response_nonce: sent[index]!.nonce, ...(message === undefined ? {} : { error_detail: { message } }) }));
      await new Promise(setImmediate);
    };
    const names = (index: number): string[] => sent[index]!.resources.map(({ name }) => name);
    const begin = async (): Promise<void> => {
      session.receive(DeltaDiscoveryRequest.fromPartial({ type_url: LDS }));
      await new Promise(setImmediate);
    };
    return { world, session, answer, names, begin };
  };

  it('go out a few at a time, what they lead to before them and where HBONE ends behind them; a pod is in force when its own part is', async () => {
    const { world, session, answer, names, begin } = open(snapshotOf(all));
    await begin();
    assert.deepEqual([world.sent.length, names(0), names(1)], [2, [inner.name], pods.slice(0, 20).map((uid) => `pod/${uid}/outbound`)], 'the next part is there when Envoy has made the first, and no more');
    await answer(0);
    await answer(1);
    assert.deepEqual([world.answered.get('pod/u0/outbound'), world.answered.get('pod/u20/outbound'), world.sent.length], ['taken', undefined, 4]);
    for (let index = 2; index < world.sent.length; index++) await answer(index);
    assert.deepEqual(world.sent.slice(3).flatMap(({ resources }) => resources.map(({ name }) => name)), pods.map((uid) => `pod/${uid}/hbone`));
    assert.deepEqual([world.answered.size, world.done, session.idle], [all.length, 1, true]);
    session.close();
  });

  it('those that a pod\'s callers have to pass go out with its own: it is not in the mesh without them for as long as others\' are made', async () => {
    const { session, names, begin, answer } = open(snapshotOf([...all, ...pods.flatMap((uid) => [entry(`pod/${uid}/inbound`), entry(`pod/${uid}/inbound-mesh/1`)])]));
    await begin();
    await answer(0);
    assert.deepEqual([new Set(names(1)), new Set(names(2))], [pods.slice(0, 20), pods.slice(20)].map((some) => new Set(some.flatMap((uid) => [`pod/${uid}/outbound`, `pod/${uid}/inbound`, `pod/${uid}/inbound-mesh/1`]))));
    session.close();
  });

  it('one that Envoy refuses holds nobody back', async () => {
    const { world, session, answer, begin } = open(snapshotOf(all));
    await begin();
    await answer(0);
    await answer(1, 'Error adding/updating listener(s) pod/u3/outbound: no such file');
    for (let index = 2; index < world.sent.length; index++) await answer(index);
    assert.deepEqual([[...world.answered].filter(([, how]) => how === 'refused'), world.answered.size, world.done], [[['pod/u3/outbound', 'refused']], all.length, 1]);
    session.close();
  });

  it('that of a pod which is gone before its turn is never sent: its namespace is gone, too', async () => {
    const { world, session, answer, begin } = open(snapshotOf(all));
    await begin();
    world.target = snapshotOf(all.filter(({ name }) => !name.startsWith('pod/u20/')));
    session.push();
    for (let index = 0; index < world.sent.length; index++) await answer(index);
    assert.deepEqual([world.sent.flatMap(({ resources }) => resources).some(({ name }) => name.startsWith('pod/u20/')), world.answered.size, session.holds(LDS, 'pod/u20/outbound'), session.idle], [false, all.length - 2, false, true]);
    session.close();
  });

  it('those that Envoy has change together, at one moment', async () => {
    const { world, session, answer, names, begin } = open(snapshotOf(all));
    await begin();
    for (let index = 0; index < world.sent.length; index++) await answer(index);
    const before = world.sent.length;
    const changed = all.map((each) => ({ ...each, version: '2' }));
    world.target = snapshotOf([...changed, entry('pod/new/outbound')]);
    session.push();
    await new Promise(setImmediate);
    assert.deepEqual([names(before).length, names(before + 1)], [all.length, ['pod/new/outbound']]);
    session.close();
  });
});
