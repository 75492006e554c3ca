import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIstioInit } from './istio-iptables-arguments.js';
import { DEFAULT_CAPTURE, istioNatRules, istioRemoveInput, istioRestoreInput } from './istio-iptables.js';

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

const defaults = ['istio-iptables', '-p', '15001', '-z', '15006', '-u', '1337', '-m', 'REDIRECT', '-i', '*', '-x', '', '-b', '*', '-d', '15090,15021,15020'];

test('parseIstioInit: the default arguments are the default rules', () => {
  const { capture, uid, gid } = parseIstioInit([...defaults, '--log_output_level=default:info']);
  assert.deepEqual([capture, uid, gid], [DEFAULT_CAPTURE, 1337, 1337]);
});

test('istioNatRules: included and excluded ports, ranges and interfaces stand where istio-iptables has them', () => {
  const { capture } = parseIstioInit([
    ...['-p', '15001', '-z', '15006', '-u', '1337', '-m', 'REDIRECT', '-i', '10.96.0.0/12,fd00::/8', '-x', '10.97.0.0/16,::1/128', '-b', '80, 443', '-d', '8080'],
    ...['-o', '3306', '-q', '9000', '-c', 'not-istio-nic'],
  ]);
  const rules = istioNatRules({ family: 'ipv4', capture });
  assert.deepEqual(rules.slice(0, 2), ['-A PREROUTING -i not-istio-nic -j RETURN', '-A OUTPUT -o not-istio-nic -j RETURN']);
  assert.deepEqual(rules.filter((rule) => /INBOUND/.test(rule)), [
    '-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN',
    '-A PREROUTING -p tcp -j ISTIO_INBOUND',
    '-A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT',
    '-A ISTIO_INBOUND -p tcp --dport 443 -j ISTIO_IN_REDIRECT',
  ]);
  const output = rules.slice(rules.indexOf('-A OUTPUT -j ISTIO_OUTPUT'));
  assert.deepEqual(output.slice(1, 3), ['-A ISTIO_OUTPUT -p tcp --dport 3306 -j RETURN', '-A ISTIO_OUTPUT -p udp --dport 3306 -j RETURN']);
  assert.deepEqual(output.slice(-4), [
    '-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN',
    '-A ISTIO_OUTPUT -d 10.97.0.0/16 -j RETURN',
    '-A ISTIO_OUTPUT -p tcp --dport 9000 -j ISTIO_REDIRECT',
    '-A ISTIO_OUTPUT -d 10.96.0.0/12 -j ISTIO_REDIRECT',
  ]);
  assert.ok(istioNatRules({ family: 'ipv6', capture }).includes('-A ISTIO_OUTPUT -d fd00::/8 -j ISTIO_REDIRECT'));
});

test('istioNatRules: no inbound ports, no jump; a loopback range among the included ones captures loopback too', () => {
  const none = parseIstioInit([...defaults, '-b', '']).capture;
  assert.ok(!istioNatRules({ family: 'ipv4', capture: none }).some((rule) => rule.startsWith('-A PREROUTING')));
  const loopback = parseIstioInit([...defaults, '-i', '127.1.2.3/32']).capture;
  assert.ok(!istioNatRules({ family: 'ipv4', capture: loopback }).some((rule) => rule.includes('! --uid-owner')));
});

test('parseIstioInit: what can not be followed is refused by option', () => {
  for (const [option, value, expected] of [
    ['-b', '80,x', /-b: found "x", expected ports/],
    ['-x', '10.0.0.0', /-x: found "10\.0\.0\.0", expected ranges/],
    ['-m', 'TPROXY', /-m: found "TPROXY", expected REDIRECT/],
    ['-c', 'a b', /-c: found "a b"/],
    ['-p', 'http', /-p: found "http", expected a number/],
  ] as const)
    assert.throws(() => parseIstioInit([...defaults, option, value]), expected);
});
