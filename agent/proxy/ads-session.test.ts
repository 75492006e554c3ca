import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { namesIn } from './ads-session.js';

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
