import assert from 'node:assert/strict';
import { test } from 'node:test';
import { objectStatuses, type SourcedResource } from './object-status.js';

test('an object that all resources come from, as a DestinationRule of the whole mesh, costs one look at each of them', (context) => {
  const MANY = 1_000;
  const resources = Array.from({ length: MANY }, (_, index): SourcedResource => ({ type: 'CDS', name: `${index}`, version: 'v', acked: true, readBack: index > 0, objects: ['DestinationRule/all.istio-system', `Service/${index}.shop`] }));
  let looks = 0;
  const iterate = Array.prototype[Symbol.iterator];
  context.after(() => (Array.prototype[Symbol.iterator] = iterate));
  Array.prototype[Symbol.iterator] = function (this: unknown[]) {
    looks += this.length;
    return iterate.call(this);
  };
  const statuses = objectStatuses(resources, { drifting: new Set(['Service/7.shop']) });
  Array.prototype[Symbol.iterator] = iterate;
  assert.ok(looks < 20 * MANY, `${looks} looks`);
  const of = (name: string): unknown => statuses.filter(({ object }) => object === name).map(({ state, resources: own }) => [state, own.length]);
  assert.deepEqual(['DestinationRule/all.istio-system', 'Service/7.shop', 'Service/8.shop'].map(of), [[['ACKED', MANY]], [['DRIFT', 1]], [['IN FORCE', 1]]]);
});
