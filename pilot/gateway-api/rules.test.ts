import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GRPCRoute, HttpRoute, HTTPRoute } from '../../common/kube/types.js';
import { byPrecedence, convertRules, type ConversionContext } from './rules.js';

const context: ConversionContext = { resolve: ({ name, port }) => ({ host: name, port }), unresolved: () => undefined };
const route = (spec: Partial<HTTPRoute['spec']>): HTTPRoute => ({ apiVersion: 'gateway.networking.k8s.io/v1', kind: 'HTTPRoute', metadata: { name: 'r', namespace: 'a' }, spec });
const one = (rule: NonNullable<HTTPRoute['spec']['rules']>[number]): HttpRoute => convertRules(route({ rules: [{ backendRefs: [{ name: 'web', port: 80 }], ...rule }] }), context)[0]!.route;

test('of headers with equal names the first counts, whatever their case', () => {
  const filter = { type: 'RequestHeaderModifier' as const, requestHeaderModifier: { set: [{ name: 'X-A', value: '1' }, { name: 'x-a', value: '2' }], add: [{ name: 'x-b', value: '3' }, { name: 'x-b', value: '4' }] } };
  assert.deepEqual(one({ filters: [filter] }).headers, { request: { set: { 'x-a': '1' }, add: { 'x-b': '3' } } });
  assert.deepEqual(one({ matches: [{ headers: [{ name: 'X-A', value: '1' }, { name: 'x-a', value: '2' }] }] }).match, [{ headers: { 'x-a': { exact: '1' } } }]);
  assert.deepEqual(one({ matches: [{ queryParams: [{ name: 'A', value: '1' }, { name: 'a', value: '2' }, { name: 'a', value: '3' }] }] }).match, [{ queryParams: { A: { exact: '1' }, a: { exact: '2' } } }]);
});

test('timeouts: an attempt\'s limit is the request\'s where there is no more than one, else each attempt\'s', () => {
  const limits = (rule: Parameters<typeof one>[0]): unknown[] => {
    const { timeout, retries } = one(rule);
    return [timeout, retries?.perTryTimeout, retries?.attempts];
  };
  assert.deepEqual(limits({ timeouts: { request: '5s' } }), ['5s', undefined, undefined]);
  assert.deepEqual(limits({ timeouts: { backendRequest: '2s' } }), ['2s', undefined, undefined]);
  assert.deepEqual(limits({ timeouts: { request: '5s', backendRequest: '2s' } }), ['5s', '2s', 2]);
  assert.deepEqual(limits({ timeouts: { backendRequest: '2s' }, retry: { attempts: 3 } }), [undefined, '2s', 3]);
});

test('a slash at the end of a prefix says nothing, in matches and in what replaces them', () => {
  assert.deepEqual(one({ matches: [{ path: { value: '/a/' } }], filters: [{ type: 'URLRewrite', urlRewrite: { path: { type: 'ReplacePrefixMatch', replacePrefixMatch: '/b/' } } }] }), { name: 'a.r.0', match: [{ uri: { prefix: '/a' } }], rewrite: { uri: '/b' }, route: [{ destination: { host: 'web', port: { number: 80 } } }] });
});

test('what leads nowhere: 500, of gRPC UNAVAILABLE, and copies are left out', () => {
  const nowhere: ConversionContext = { resolve: () => 'BackendNotFound', unresolved: () => undefined };
  const backendRefs = [{ name: 'gone', port: 80 }];
  const status = (kind: string): unknown => convertRules({ ...route({ rules: [{ backendRefs }] }), kind } as GRPCRoute, nowhere)[0]!.route.directResponse?.status;
  assert.deepEqual([status('HTTPRoute'), status('GRPCRoute')], [500, 503]);
  assert.equal(convertRules(route({ rules: [{ filters: [{ type: 'RequestMirror', requestMirror: { backendRef: backendRefs[0]! } }], backendRefs }] }), nowhere)[0]!.route.mirrors, undefined);
});

test('precedence: exact paths, prefixes by length, regular expressions; what takes everything comes last', () => {
  const path = (type: 'Exact' | 'PathPrefix' | 'RegularExpression', value: string) => ({ path: { type, value } });
  const matches = [{}, path('RegularExpression', '/a.*'), { headers: [{ name: 'x', value: '1' }] }, path('PathPrefix', '/a'), { ...path('PathPrefix', '/b'), method: 'GET' }, path('PathPrefix', '/longer/'), path('Exact', '/')];
  const order = (given: HTTPRoute | GRPCRoute): (number | undefined)[] => convertRules(given, context).sort(byPrecedence).map(({ index }) => index);
  assert.deepEqual(order(route({ rules: matches.map((match) => ({ matches: [match] })) })), [6, 5, 4, 3, 2, 1, 0]);
  const grpc = [{ headers: [{ name: 'x', value: '1' }] }, { method: { method: 'M' } }, { method: { service: 'S' } }, { method: { service: 'S', method: 'M' } }];
  assert.deepEqual(order({ ...route({}), kind: 'GRPCRoute', spec: { rules: grpc.map((match) => ({ matches: [match] })) } } as GRPCRoute), [3, 2, 1, 0]);
});
