import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { HttpRoute } from '../../common/kube/types.js';
import { testMesh } from '../testing/model.js';
import { mergeDelegate } from './virtual-services-merge.js';
import { destinationsOf } from './virtual-services.js';

const vs = (name: string, spec: string, namespace = 'shop'): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n---`;
const to = (host: string): HttpRoute => ({ route: [{ destination: { host } }] });

test('VirtualServices are resolved: hosts, destinations, mirrors and gateways in full', () => {
  const { model } = testMesh(
    vs('web', '{hosts: [Web, "*.Example.com"], gateways: [front, infra/edge, old.other.svc.cluster.local, mesh], http: [{match: [{gateways: [front]}], route: [{destination: {host: web}}], mirror: {host: dark}}, {route: [{destination: {host: web}}], mirrors: [{destination: {host: dim}}]}], tls: [{match: [{sniHosts: [a.example.com], gateways: [edge]}], route: [{destination: {host: secure}}]}]}'),
  );
  const [{ object }] = model.virtualServices as unknown as [(typeof model.virtualServices)[0]];
  const full = (name: string): string => `${name}.shop.svc.cluster.local`;
  assert.deepEqual([object.spec.hosts, object.spec.gateways], [[full('web'), '*.example.com'], ['shop/front', 'infra/edge', 'other/old', 'mesh']]);
  assert.deepEqual(destinationsOf(object).map(({ host }) => host), ['web', 'dark', 'web', 'dim', 'secure'].map(full));
  assert.deepEqual([object.spec.http![0]!.match![0]!.gateways, object.spec.tls![0]!.match[0]!.gateways], [['shop/front'], ['shop/edge']]);
});

test('a delegate takes the place of the route that names it, in its own namespace or another, if exported there', () => {
  const root = vs('root', '{hosts: [web], http: [{match: [{uri: {prefix: /a}}], delegate: {name: mine}}, {match: [{uri: {prefix: /b}}], delegate: {name: theirs, namespace: other}}, {delegate: {name: hidden, namespace: other}}, {delegate: {name: missing}}, {name: last, route: [{destination: {host: web}}]}]}');
  const delegate = (name: string, more = ''): string => `{${more}http: [{name: ${name}, route: [{destination: {host: ${name}}}]}]}`;
  const mesh = testMesh(root + vs('mine', delegate('mine')) + vs('theirs', delegate('theirs', 'exportTo: [shop], '), 'other') + vs('hidden', delegate('hidden', 'exportTo: ["."], '), 'other'));
  const http = (): HttpRoute[] => mesh.model.virtualServices[0]!.object.spec.http!;
  assert.equal(mesh.model.virtualServices.length, 1);
  assert.deepEqual(http().map(({ name, route }) => [name, route![0]!.destination.host]), [['mine', 'mine.shop.svc.cluster.local'], ['theirs', 'theirs.other.svc.cluster.local'], ['last', 'web.shop.svc.cluster.local']]);
  assert.deepEqual(http()[1]!.match, [{ uri: { prefix: '/b' } }]);
  mesh.apply(vs('hidden', delegate('seen', 'exportTo: ["*"], '), 'other'));
  assert.deepEqual(http().map(({ name }) => name), ['mine', 'theirs', 'seen', 'last']);
});

test('mergeDelegate: conditions multiply, those outside of the root drop their route', () => {
  const root: HttpRoute = { match: [{ uri: { prefix: '/a' } }, { uri: { exact: '/x' }, headers: { h: { exact: '1' } } }] };
  const matches = (...match: NonNullable<HttpRoute['match']>): unknown => mergeDelegate(root, [{ ...to('d'), match }])[0]?.match?.map(({ uri, headers, method }) => [uri, headers, method?.exact]);
  assert.deepEqual(matches({ uri: { prefix: '/a/b' } }), [[{ prefix: '/a/b' }, {}, undefined]]);
  assert.deepEqual(matches({ uri: { exact: '/x' } }), [[{ exact: '/x' }, { h: { exact: '1' } }, undefined]]);
  assert.deepEqual(matches({ method: { exact: 'GET' } }), [[{ prefix: '/a' }, {}, 'GET'], [{ exact: '/x' }, { h: { exact: '1' } }, 'GET']]);
  assert.equal(matches({ uri: { prefix: '/b' } }), undefined);
  assert.equal(matches({ uri: { prefix: '/a/b' } }, { uri: { prefix: '/b' } }), undefined);
  assert.equal(matches({ uri: { regex: '/a.*' } }), undefined);
  assert.equal(matches({ uri: { prefix: '/a' }, ignoreUriCase: true }), undefined);
});

test('mergeDelegate: a delegate keeps its own settings and takes the root\'s where it has none', () => {
  const root: HttpRoute = { name: 'root', timeout: '1s', rewrite: { uri: '/' }, headers: { request: { set: { a: 'root' } } }, fault: { abort: { httpStatus: 500 } } };
  const [merged] = mergeDelegate(root, [{ ...to('d'), name: 'own', timeout: '2s', headers: { request: { set: { b: 'own' } } } }]);
  assert.deepEqual([merged!.name, merged!.timeout, merged!.rewrite, merged!.headers, merged!.fault], ['root-own', '2s', root.rewrite, { request: { set: { b: 'own' } } }, root.fault]);
});

test('mergeDelegate: source namespace, ports, gateways and labels must agree', () => {
  const one = (root: NonNullable<HttpRoute['match']>[0], own: NonNullable<HttpRoute['match']>[0]): boolean => mergeDelegate({ match: [root] }, [{ ...to('d'), match: [own] }]).length === 1;
  assert.deepEqual([one({ sourceNamespace: 'a' }, {}), one({ sourceNamespace: 'a' }, { sourceNamespace: 'a' }), one({}, { sourceNamespace: 'a' })], [false, true, true]);
  assert.deepEqual([one({ port: 80 }, { port: 81 }), one({ port: 80 }, {}), one({ gateways: ['a/b'] }, { gateways: ['a/c'] }), one({ gateways: ['a/b', 'a/c'] }, { gateways: ['a/c'] })], [false, true, false, true]);
  assert.deepEqual([one({ sourceLabels: { app: 'x' } }, { sourceLabels: { app: 'y' } }), one({ sourceLabels: { app: 'x' } }, { sourceLabels: { v: '1' } })], [false, true]);
});
