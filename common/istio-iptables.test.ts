import assert from 'node:assert/strict';
import { test } from 'node:test';
import { istioNatRules, istioRemoveInput, istioRestoreInput } from './istio-iptables.js';

test('istioNatRules: the sidecar rules are those that Istio documents, in its order', () => {
  assert.deepEqual(istioNatRules({ family: 'ipv4' }), [
    '-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN',
    '-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001',
    '-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006',
    '-A PREROUTING -p tcp -j ISTIO_INBOUND',
    '-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN',
    '-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN',
    '-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN',
    '-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT',
    '-A OUTPUT -j ISTIO_OUTPUT',
    '-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN',
    '-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT',
    '-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN',
    '-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN',
    '-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT',
    '-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN',
    '-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN',
    '-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN',
    '-A ISTIO_OUTPUT -j ISTIO_REDIRECT',
  ]);
});

test('istioNatRules: IPv6 differs in the addresses only', () => {
  const v4 = istioNatRules({ family: 'ipv4' }).map((rule) =>
    rule.replace('127.0.0.6/32', '::6/128').replace('127.0.0.1/32', '::1/128'),
  );
  assert.deepEqual(istioNatRules({ family: 'ipv6' }), v4);
});

test('istioRestoreInput: outbound only, by mark, names no inbound chain and no user', () => {
  const input = istioRestoreInput({ family: 'ipv4', inbound: false, proxy: { mark: 0x539 } });
  assert.doesNotMatch(input, /INBOUND|IN_REDIRECT|owner/);
  assert.match(input, /^-A ISTIO_OUTPUT -m mark --mark 0x539 -j RETURN$/m);
  assert.ok(input.startsWith('*nat\n:ISTIO_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n'));
  assert.ok(input.endsWith('\nCOMMIT\n'));
});

test('istioRemoveInput: takes the jumps of built-in chains away before the chains', () => {
  const lines = istioRemoveInput({ family: 'ipv4' }).split('\n');
  assert.deepEqual(lines.slice(0, 3), ['*nat', '-D PREROUTING -p tcp -j ISTIO_INBOUND', '-D OUTPUT -j ISTIO_OUTPUT']);
  assert.ok(lines.indexOf('-X ISTIO_OUTPUT') > lines.indexOf('-F ISTIO_OUTPUT'));
});
