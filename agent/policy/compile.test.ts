import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Action, Authorization, Scope, type Match } from '../../proto/generated/istio/security/authorization.js';
import { AuthorizationType } from '../xds/resource-types.js';
import { pack } from '../../common/xds/any.js';
import { fitsIdentity, type Identity } from './authorization.js';
import { allows, compilePolicy, MAX_TERMS } from './compile.js';

type Text = Match['principals'][number];
const exact = (value: string): Text => ({ match_type: { $case: 'exact', value } });
const prefix = (value: string): Text => ({ match_type: { $case: 'prefix', value } });
const suffix = (value: string): Text => ({ match_type: { $case: 'suffix', value } });
const PRESENT: Text = { match_type: { $case: 'presence', value: {} } };
const block = (text: string): { address: Buffer; length: number } => {
  const [address = '', length] = text.split('/');
  return { address: bytes(address), length: Number(length) };
};

function bytes(text: string): Buffer {
  if (!text.includes(':')) return Buffer.from(text.split('.').map(Number));
  const [left = '', right = ''] = text.split('::').map((half) => half.split(':').filter(Boolean).map((group) => group.padStart(4, '0')).join(''));
  return Buffer.from(left + '0'.repeat(32 - left.length - right.length) + right, 'hex');
}

const mapped = (text: string): Buffer => (text.includes(':') ? bytes(text) : Buffer.concat([Buffer.from('00000000000000000000ffff', 'hex'), bytes(text)]));

const IDENTITIES = new Map<string, Identity>([
  ['alice', { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'alice' }],
  ['bob', { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'bob' }],
  ['carol', { trustDomain: 'cluster.local', namespace: 'bank', serviceAccount: 'alice' }],
  ['dave', { trustDomain: 'other.example', namespace: 'shop', serviceAccount: 'alice' }],
  ['alice-2', { trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'alice' }],
]);

const match = (about: Partial<Match>): Match => ({
  namespaces: [], not_namespaces: [], principals: [], not_principals: [], source_ips: [], not_source_ips: [], destination_ips: [], not_destination_ips: [],
  destination_ports: [], not_destination_ports: [], service_accounts: [], not_service_accounts: [], ...about,
});
const policy = (action: Action, ...groups: Match[][][]): Authorization =>
  Authorization.fromPartial({ name: 'p', namespace: 'n', scope: Scope.NAMESPACE, action, groups: groups.map((clauses) => ({ rules: clauses.map((matches) => ({ matches })) })) });
const allow = (...groups: Match[][][]): Authorization => policy(Action.ALLOW, ...groups);
const deny = (...groups: Match[][][]): Authorization => policy(Action.DENY, ...groups);

/** Who of all callers gets in, at port 8080 from 10.0.0.1 unless told otherwise; `-` has no identity. */
function admitted(policies: Authorization[], { from = '10.0.0.1', to = '10.1.0.1', port = 8080 } = {}): string {
  const compiled = compilePolicy(policies, IDENTITIES);
  const ask = (number: number): boolean => allows(compiled, { class: number, source: mapped(from), destination: mapped(to), port });
  return [...(ask(0) ? ['-'] : []), ...[...IDENTITIES.keys()].filter((key) => ask(compiled.classes.get(key)!))].join(' ');
}
const ALL = '- alice bob carol dave alice-2';

test('principals fit as exact, prefix, suffix and presence; who has none fits none', () => {
  assert.equal(admitted([allow([[match({ principals: [exact('cluster.local/ns/shop/sa/alice')] })]])]), 'alice alice-2');
  assert.equal(admitted([allow([[match({ principals: [prefix('cluster.local/ns/shop/')] })]])]), 'alice bob alice-2');
  assert.equal(admitted([allow([[match({ principals: [suffix('/sa/alice')] })]])]), 'alice carol dave alice-2');
  assert.equal(admitted([allow([[match({ principals: [PRESENT] })]])]), 'alice bob carol dave alice-2');
  assert.equal(admitted([allow([[match({ not_principals: [exact('cluster.local/ns/shop/sa/alice')] })]])]), '- bob carol dave');
  assert.equal(admitted([deny([[match({ not_principals: [PRESENT] })]])]), 'alice bob carol dave alice-2');
  assert.equal(admitted([allow([[match({ principals: [PRESENT], not_principals: [suffix('/bob')] })]])]), 'alice carol dave alice-2');
});

test('namespaces and service accounts, with their not-forms', () => {
  assert.equal(admitted([deny([[match({ namespaces: [exact('shop')] })]])]), '- carol');
  assert.equal(admitted([allow([[match({ not_namespaces: [exact('shop')] })]])]), '- carol');
  assert.equal(admitted([allow([[match({ namespaces: [prefix('ba')] })]])]), 'carol');
  assert.equal(admitted([allow([[match({ service_accounts: [{ namespace: 'shop', service_account: 'alice' }] })]])]), 'alice dave alice-2');
  assert.equal(admitted([allow([[match({ not_service_accounts: [{ namespace: 'shop', service_account: 'alice' }] })]])]), '- bob carol');
});

test('a policy without rules allows nobody; a rule without anything allows all; a DENY without rules denies nobody', () => {
  assert.equal(admitted([]), ALL);
  assert.equal(admitted([allow()]), '');
  assert.equal(admitted([allow([])]), ALL);
  assert.equal(admitted([allow([[]])]), ALL);
  assert.equal(admitted([deny()]), ALL);
  assert.equal(admitted([deny([])]), '');
});

test('a match of nothing fits nobody in ALLOW, and everybody in DENY', () => {
  assert.equal(admitted([allow([[match({})]])]), '');
  assert.equal(admitted([deny([[match({})]])]), '');
});

test('DENY counts before ALLOW, ALLOW policies add up, and a dry run changes nothing', () => {
  const alice = allow([[match({ principals: [suffix('/sa/alice')] })]]);
  const shop = deny([[match({ namespaces: [exact('shop')] })]]);
  assert.equal(admitted([alice, shop]), 'carol');
  assert.equal(admitted([alice, allow([[match({ principals: [suffix('/bob')] })]])]), 'alice bob carol dave alice-2');
  assert.equal(admitted([{ ...shop, dry_run: true }, { ...allow(), dry_run: true }]), ALL);
});

test('the clauses of a group hold together, its matches are alternatives', () => {
  const group = [[match({ principals: [suffix('/alice')] }), match({ principals: [suffix('/bob')] })], [match({ destination_ports: [80] }), match({ destination_ports: [8080], namespaces: [exact('shop')] })]];
  assert.equal(admitted([allow(group)], { port: 80 }), 'alice bob carol dave alice-2');
  assert.equal(admitted([allow(group)], { port: 8080 }), 'alice bob dave alice-2');
  assert.equal(admitted([allow(group)], { port: 81 }), '');
});

test('ports and their not-form', () => {
  const of = (ports: number[], not: number[], port: number): boolean => admitted([allow([[match({ destination_ports: ports, not_destination_ports: not })]])], { port }) === ALL;
  assert.deepEqual([80, 443, 81].map((port) => of([80, 443], [], port)), [true, true, false]);
  assert.deepEqual([1, 79, 80, 81, 65_535].map((port) => of([], [80, 65_535, 1], port)), [false, true, false, true, false]);
  assert.deepEqual([80, 443].map((port) => of([80, 443], [80], port)), [false, true]);
});

test('blocks of IPv4 and IPv6 addresses, of the source and the destination, with their not-forms', () => {
  const from = (about: Partial<Match>, address: string): boolean => admitted([allow([[match(about)]])], { from: address }) === ALL;
  const blocks = { source_ips: [block('10.0.0.0/9'), block('fd00::/17')] };
  assert.deepEqual(['10.127.255.255', '10.128.0.0', 'fd00:7fff::1', 'fd00:8000::1'].map((address) => from(blocks, address)), [true, false, true, false]);
  assert.deepEqual(['10.0.0.1', '10.0.0.2'].map((address) => from({ not_source_ips: [block('10.0.0.1/32')] }, address)), [false, true]);
  // All of IPv6 holds nothing of IPv4, however short its prefix.
  assert.deepEqual(['10.0.0.1', 'fd00::1'].map((address) => from({ source_ips: [block('::/0')] }, address)), [false, true]);
  assert.deepEqual(['10.0.0.1', 'fd00::1'].map((address) => from({ source_ips: [block('0.0.0.0/0')] }, address)), [true, false]);
  assert.equal(admitted([allow([[match({ destination_ips: [block('10.1.0.1/32')] })]])]), ALL);
  assert.equal(admitted([allow([[match({ not_destination_ips: [block('10.1.0.0/16')] })]])]), '');
  // Of two clauses about the source both have to hold.
  const nested = [[match({ source_ips: [block('10.0.0.0/8')] })], [match({ source_ips: [block('10.0.0.0/30'), block('192.168.0.0/16')] })]];
  assert.deepEqual(['10.0.0.3', '10.0.0.4', '192.168.0.1'].map((address) => admitted([allow(nested)], { from: address }) === ALL), [true, false, false]);
});

test('what does not fit the tables is an error that says so, not a rule less', () => {
  const many = Array.from({ length: MAX_TERMS + 1 }, (_, i) => [[match({ destination_ports: [i + 1] })]]);
  assert.throws(() => compilePolicy([allow(...many)], IDENTITIES), /come to 65 terms, the kernel's tables hold 64/);
  const blocks = Array.from({ length: 129 }, (_, i) => block(`10.0.${i}.0/24`));
  assert.throws(() => compilePolicy([allow([[match({ source_ips: blocks })]])], IDENTITIES), /129 blocks of addresses/);
  const crowd = new Map(Array.from({ length: 64 }, (_, i): [string, Identity] => [`${i}`, { trustDomain: 't', namespace: 'n', serviceAccount: `${i}` }]));
  const each = Array.from({ length: 7 }, (_, bit) => [[match({ principals: [...crowd].filter(([key]) => (Number(key) >> bit) & 1).map(([key]) => exact(`t/ns/n/sa/${key}`)) })]]);
  assert.throws(() => compilePolicy([allow(...each)], crowd), /65 classes of callers/);
});

test('what can not be read is refused by field, so that no rule is half understood', () => {
  const type = new AuthorizationType();
  const read = (message: unknown): unknown => type.decode('n/p', '', pack(Authorization, message as Authorization));
  const of = (about: Partial<Match>): unknown => allow([[match(about)]]);
  assert.ok(read(of({ principals: [PRESENT] })));
  assert.throws(() => read(of({ source_ips: [{ address: Buffer.alloc(5), length: 8 }] })), /groups\[0\]\.rules\[0\]\.matches\[0\]\.source_ips\[0\]\.address: has 5 bytes, expected 4 or 16/);
  assert.throws(() => read(of({ not_source_ips: [{ address: Buffer.alloc(4), length: 33 }] })), /length: is 33, expected at most 32/);
  assert.throws(() => read(of({ destination_ports: [70_000] })), /destination_ports\[0\]: is 70000, expected 1 to 65535/);
  assert.throws(() => read(of({ not_destination_ports: [0] })), /is 0, expected 1 to 65535/);
  assert.throws(() => read(of({ principals: [{ match_type: undefined }] })), /principals\[0\]: is neither exact, prefix, suffix nor presence/);
  assert.throws(() => read({ ...allow(), scope: 9 as Scope }), /scope: is 9/);
  assert.throws(() => read({ ...allow(), action: 7 as Action }), /action: is 7/);
  const later = pack(Authorization, allow([[match({ principals: [PRESENT] })]]));
  const tag = Buffer.from([0x98, 0x06, 0x01]); // field 99, a number
  assert.throws(() => type.decode('n/p', '', { ...later, value: Buffer.concat([later.value, tag]) }), /has a field 99, which is not known here/);
});

/** What the policies say, read word by word. */
function saidBy(policies: readonly Authorization[], identity: Identity | undefined, from: Buffer, port: number): boolean {
  const inBlock = ({ address, length }: { address: Buffer; length: number }): boolean => {
    const own = address.length === 4 ? from.subarray(12) : from;
    const isMapped = from.subarray(0, 12).toString('hex') === '00000000000000000000ffff';
    if (isMapped !== (address.length === 4)) return false;
    const bits = (buffer: Buffer): string => [...buffer].map((byte) => byte.toString(2).padStart(8, '0')).join('').slice(0, length);
    return bits(own) === bits(address);
  };
  const fits = (one: Match, isDeny: boolean): boolean =>
    (isDeny || Object.values(one).some((values) => Array.isArray(values) && values.length > 0)) && fitsIdentity(one, identity) &&
    (one.destination_ports.length === 0 || one.destination_ports.includes(port)) && !one.not_destination_ports.includes(port) &&
    (one.source_ips.length === 0 || one.source_ips.some(inBlock)) && !one.not_source_ips.some(inBlock);
  const holds = ({ groups, action }: Authorization): boolean => groups.some(({ rules }) => rules.every(({ matches }) => matches.length === 0 || matches.some((one) => fits(one, action === Action.DENY))));
  if (policies.some((one) => one.action === Action.DENY && holds(one))) return false;
  const allowing = policies.filter(({ action }) => action === Action.ALLOW);
  return allowing.length === 0 || allowing.some(holds);
}

/** A linear congruential generator, so that a failure can be had again. */
function randomOf(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

test('the compiled terms say what the policies say, for 3,000 policies made at random and all callers', () => {
  const random = randomOf(7);
  const some = <T>(items: readonly T[]): T[] => items.filter(() => random(4) === 0);
  const texts = [exact('cluster.local/ns/shop/sa/alice'), prefix('cluster.local/'), suffix('/sa/alice'), PRESENT];
  const names = [exact('shop'), exact('bank'), prefix('s'), PRESENT];
  const blocks = ['10.0.0.0/8', '10.0.0.0/31', 'fd00::/8', '0.0.0.0/0', '::/0'].map(block);
  const accounts = [{ namespace: 'shop', service_account: 'alice' }, { namespace: 'bank', service_account: 'alice' }];
  const ports = [80, 8080, 9000];
  const one = (): Match => match({
    principals: some(texts), not_principals: some(texts), namespaces: some(names), not_namespaces: some(names), source_ips: some(blocks), not_source_ips: some(blocks.slice(0, 3)),
    destination_ports: some(ports), not_destination_ports: some(ports), service_accounts: some(accounts), not_service_accounts: some(accounts),
  });
  const list = <T>(make: () => T, max: number): T[] => Array.from({ length: random(max + 1) }, make);
  const sources = ['10.0.0.1', '10.9.9.9', '192.168.1.1', 'fd00::1', '2001::1'].map(mapped);
  let refused = 0;
  let asked = 0;
  for (let round = 0; round < 3_000; round++) {
    const policies = list(() => policy(random(2) === 0 ? Action.ALLOW : Action.DENY, ...list(() => list(() => list(one, 2), 3), 2)), 3);
    const compiled = compilePolicy(policies, IDENTITIES);
    for (const key of [undefined, ...IDENTITIES.keys()]) {
      const identity = key === undefined ? undefined : IDENTITIES.get(key);
      const source = sources[random(sources.length)]!;
      const port = ports[random(3)]!;
      const said = saidBy(policies, identity, source, port);
      const number = key === undefined ? 0 : compiled.classes.get(key)!;
      assert.equal(allows(compiled, { class: number, source, destination: mapped('10.1.0.1'), port }), said, JSON.stringify({ round, key, source, port, policies }));
      asked++;
      refused += said ? 0 : 1;
    }
  }
  assert.ok(refused > asked / 10 && refused < (asked * 9) / 10, `${refused} of ${asked} were refused: the policies say too much of one kind`);
});
