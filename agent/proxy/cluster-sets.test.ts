import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { assignment, edsCluster, sidecarState } from '../testing/resources.js';
import { twinOf, type ClusterSet } from './cluster-sets.js';

const WEB = 'outbound|80||web.shop.svc.cluster.local';
const stateOf = (...addresses: string[]): SidecarState => sidecarState({ [`cds ${WEB}`]: edsCluster(WEB), [`eds ${WEB}`]: assignment(WEB, addresses) });
const seen = { identity: 'spiffe://cluster.local/ns/shop/sa/alice', local: '10.0.0.6', accountClusters: 0 };
type Set = ClusterSet<string, string>;
const setOf = ({ clusters, endpoints }: SidecarState, change: Partial<Set> = {}): Set => ({ clusters, endpoints, ...seen, result: new Map([[WEB, 'folded']]), problems: [], isNeutral: true, ...change });
const wanted = (state: SidecarState, change: Partial<typeof seen> = {}) => ({ ...state, ...seen, identity: 'spiffe://cluster.local/ns/shop/sa/bob', ...change });

test('what was folded for one class is another\'s where both were sent the same, whosever pods they are', () => {
  const set = setOf(stateOf('10.0.0.5:80'));
  assert.equal(twinOf(new Map([['a', set]]), 'b', wanted(stateOf('10.0.0.5:80')))?.set, set);
});

test('it is not where anything differs that folding goes by', () => {
  const state = stateOf('10.0.0.5:80');
  const cases: [string, Set, ReturnType<typeof wanted>][] = [
    ['an endpoint', setOf(stateOf('10.0.0.9:80')), wanted(state)],
    ['a cluster less', setOf({ ...state, clusters: new Map() }), wanted(state)],
    ['no certificates', setOf(state, { identity: '' }), wanted(state)],
    ['pods of the node', setOf(state), wanted(state, { local: '10.0.0.6,10.0.0.7' })],
    ['a cluster has become an account\'s own', setOf(state), wanted(state, { accountClusters: 1 })],
    ['an account\'s own cluster is in it', setOf(state, { isNeutral: false }), wanted(state)],
    ['something could not be folded, which is said by class', setOf(state, { problems: ['bad'] }), wanted(state)],
  ];
  for (const [what, set, of] of cases) assert.equal(twinOf(new Map([['a', set]]), 'b', of), undefined, what);
});

test('where all classes differ only a few are looked at', () => {
  const sets = new Map(Array.from({ length: 6 }, (_, i) => [`c${i}`, setOf(stateOf(`10.0.1.${i}:80`))] as const));
  assert.equal(twinOf(sets, 'new', wanted(stateOf('10.0.1.1:80')))?.key, 'c1');
  assert.equal(twinOf(sets, 'new', wanted(stateOf('10.0.1.5:80'))), undefined);
});
