import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VirtualHost } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import { heldHost } from './held-host.js';
import { canonical } from './resource-type.js';

const message = VirtualHost.fromPartial({
  name: 'a.ns.svc:80', domains: ['a', 'a.ns', '10.0.0.1'], include_request_attempt_count: true,
  routes: [{ name: 'first', match: { path_specifier: { $case: 'prefix', value: '/' } }, action: { $case: 'route', value: { cluster_specifier: { $case: 'cluster', value: 'outbound|80||a' } } } }],
});
const bytes = Buffer.from(VirtualHost.encode(message).finish());

test('a held host reads, copies and encodes as the message that it was', () => {
  const source = Buffer.from(bytes);
  const host = heldHost(source);
  source.fill(0);
  const decoded = VirtualHost.decode(bytes);
  assert.deepEqual({ ...host }, decoded);
  assert.deepEqual(canonical(host), canonical(decoded));
  assert.deepEqual(Buffer.from(VirtualHost.encode(host).finish()), bytes);
  assert.deepEqual(Object.keys(host), Object.keys(decoded));
  const { name, routes: [route] } = host;
  assert.deepEqual([name, route?.name], ['a.ns.svc:80', 'first']);
});

test('a copy of a held host may be altered, the host itself may not', () => {
  const host = heldHost(bytes);
  const copy = canonical(host) as VirtualHost;
  copy.routes[0]!.name = 'other';
  copy.routes.push(...host.routes);
  copy.domains = [];
  assert.deepEqual({ ...host }, VirtualHost.decode(bytes));
  assert.throws(() => {
    host.domains = [];
  }, TypeError);
});

test('bytes that are no virtual host are refused at once', () => {
  assert.throws(() => heldHost(Buffer.from([0x0a, 0x7f, 0x61])), RangeError);
});
