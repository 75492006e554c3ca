import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { pino } from 'pino';
import { DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { AdsSession, namesIn, type AdsCall } from './ads-session.js';
import { CDS, SDS, Snapshot, type Entry } from './snapshot.js';

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
