// Real namespaces, real iptables: what is left behind is compared byte by byte.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, test, type TestContext } from 'node:test';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { IptablesCapture, parseSave } from './iptables.js';

const exec = join(buildDir, 'underpass-exec');
let counter = 0;

async function namespace(context: TestContext): Promise<string> {
  const name = `up-agent-${process.pid}-${counter++}`;
  await run('ip', ['netns', 'add', name]);
  context.after(() => run('ip', ['netns', 'del', name]));
  await run('ip', ['-n', name, 'link', 'set', 'lo', 'up']);
  return `/run/netns/${name}`;
}

async function inside(netns: string, ...command: string[]): Promise<string> {
  return (await run(exec, ['--netns', netns, '--', ...command])).stdout;
}

/** Everything that iptables-save says, without its dates and without the counters that traffic moves. */
async function tables(netns: string, backends: readonly string[] = ['nft', 'legacy']): Promise<string> {
  let text = '';
  for (const backend of backends) {
    for (const program of [`iptables-${backend}-save`, `ip6tables-${backend}-save`]) {
      text += `== ${program}\n${(await inside(netns, program)).replace(/^# (Generated|Completed).*$/gm, '').replace(/\[\d+:\d+\]/g, '[]')}`;
    }
  }
  return text;
}

/** The raw rules of nf_tables, which also show base chains without rules. */
function raw(netns: string): Promise<string> {
  return inside(netns, 'nft', 'list', 'ruleset');
}

const available: string[] = [];
for (const backend of ['nft', 'legacy']) {
  const probe = await run(`iptables-${backend}`, ['--version'], { okCodes: [0, 1] }).catch(() => undefined);
  if (probe?.code === 0) available.push(backend);
}

test('IptablesCapture: there is a backend to test with', () => assert.ok(available.length > 0));

test('IptablesCapture: a namespace without tables has none again afterwards', async (context) => {
  const netns = await namespace(context);
  const before = (await tables(netns, ['nft'])) + (await raw(netns));
  const capture = new IptablesCapture(netns);
  assert.deepEqual(await capture.state(), { active: false, present: false });
  const { backend } = await capture.start();
  assert.equal(backend, available.includes('nft') ? 'nft' : 'legacy');
  const started = await tables(netns, [backend]);
  assert.match(started, /-A OUTPUT -p tcp -j UNDERPASS_OUTPUT/);
  assert.match(started, /-A UNDERPASS_OUTPUT .*--tcp-flags FIN,SYN,RST,ACK SYN -j REDIRECT --to-ports 15001/);
  assert.equal(started.match(/-A OUTPUT -p tcp -j UNDERPASS_OUTPUT/g)?.length, 2, 'IPv4 and IPv6');
  await capture.start();
  assert.equal(await tables(netns, [backend]), started, 'a second start changes nothing');
  assert.deepEqual(await capture.state(), { active: true, present: true });
  await capture.stop();
  assert.deepEqual(await capture.state(), { active: false, present: true }, 'the chain stays for established connections');
  await capture.start();
  assert.equal(await tables(netns, [backend]), started, 'a start after a stop is a start');
  await capture.stop();
  await capture.stop();
  await capture.remove();
  await capture.remove();
  assert.deepEqual(await capture.state(), { active: false, present: false });
  assert.equal((await tables(netns, ['nft'])) + (await raw(netns)), before);
});

for (const backend of available) {
  test(`IptablesCapture: a pod's own ${backend} rules stay as they were, and decide the backend`, async (context) => {
    const netns = await namespace(context);
    for (const program of [`iptables-${backend}`, `ip6tables-${backend}`]) {
      await inside(netns, program, '-t', 'nat', '-N', 'OWN');
      await inside(netns, program, '-t', 'nat', '-A', 'OWN', '-p', 'tcp', '--dport', '81', '-j', 'RETURN');
      await inside(netns, program, '-t', 'nat', '-A', 'OUTPUT', '-p', 'tcp', '-j', 'OWN');
      await inside(netns, program, '-t', 'filter', '-A', 'INPUT', '-p', 'tcp', '--dport', '82', '-j', 'DROP');
    }
    const before = await tables(netns, [backend]);
    const capture = new IptablesCapture(netns);
    assert.equal((await capture.start()).backend, backend);
    const during = await tables(netns, [backend]);
    assert.notEqual(during, before);
    assert.ok(during.indexOf('-A OUTPUT -p tcp -j OWN') < during.indexOf('-A OUTPUT -p tcp -j UNDERPASS_OUTPUT'), 'the pod\'s own rules come first');
    await capture.remove();
    assert.equal(await tables(netns, [backend]), before);
  });
}

test('IptablesCapture: a link-local address, which means something with its interface alone, is not redirected', async (context) => {
  const [netns, peer] = [await namespace(context), await namespace(context)];
  await inside(netns, 'ip', 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', peer.slice('/run/netns/'.length));
  for (const each of [netns, peer]) await inside(each, 'sh', '-ec', 'echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up');
  const address = async (): Promise<string | undefined> => /fe80::[0-9a-f:]+/.exec(await inside(peer, 'ip', '-6', '-o', 'address', 'show', 'dev', 'eth0', 'scope', 'link'))?.[0];
  await waitFor('an address', async () => (await address()) !== undefined);
  const server = spawn(exec, ['--netns', peer, '--', process.execPath, '-e', "require('node:net').createServer((s) => s.end('there')).listen(7000, '::', () => console.log('up'))"], { stdio: ['ignore', 'pipe', 'inherit'] });
  context.after(() => server.kill());
  await once(server.stdout, 'data');
  await new IptablesCapture(netns).start();
  const connect = `require('node:net').connect(7000, '${await address()}%eth0').on('data', (d) => process.stdout.write(d)).on('error', (e) => process.stdout.write(e.code))`;
  assert.equal(await inside(netns, process.execPath, '-e', connect), 'there');
});

test('IptablesCapture: a table that somebody else began to use meanwhile is left to them', async (context) => {
  if (!available.includes('nft')) return context.skip('no nft');
  const netns = await namespace(context);
  const capture = new IptablesCapture(netns);
  await capture.start();
  await inside(netns, 'iptables-nft', '-t', 'nat', '-A', 'POSTROUTING', '-p', 'tcp', '--dport', '83', '-j', 'MASQUERADE');
  await capture.remove();
  const saved = parseSave(await inside(netns, 'iptables-nft-save'));
  assert.deepEqual(saved.rules, ['-A POSTROUTING -p tcp -m tcp --dport 83 -j MASQUERADE']);
  assert.deepEqual(saved.chains, []);
});

test('IptablesCapture: a start that was cut short is completed by the next', async (context) => {
  const netns = await namespace(context);
  const capture = new IptablesCapture(netns);
  const { backend } = await capture.start();
  const whole = await tables(netns, [backend]);
  await inside(netns, `iptables-${backend}`, '-t', 'nat', '-D', 'UNDERPASS_OUTPUT', '3');
  await inside(netns, `iptables-${backend}`, '-t', 'nat', '-D', 'OUTPUT', '-p', 'tcp', '-j', 'UNDERPASS_OUTPUT');
  await capture.start();
  assert.equal(await tables(netns, [backend]), whole);
  // One family at a time: an end between the two leaves one of them behind.
  for (const program of [`iptables-${backend}`, `ip6tables-${backend}`]) {
    await inside(netns, program, '-t', 'nat', '-D', 'OUTPUT', '-p', 'tcp', '-j', 'UNDERPASS_OUTPUT');
    assert.deepEqual(await capture.state(), { active: true, present: true, outdated: true });
    await capture.start();
    assert.deepEqual([await tables(netns, [backend]), await capture.state()], [whole, { active: true, present: true }]);
  }
});

test('IptablesCapture: without ip6tables IPv4 is captured all the same, with a note', async (context) => {
  const netns = await namespace(context);
  const folder = mkdtempSync(join(tmpdir(), `up-agent-${process.pid}-`));
  const path = process.env['PATH'];
  context.after(() => {
    process.env['PATH'] = path;
    rmSync(folder, { recursive: true, force: true });
  });
  for (const name of ['iptables-nft', 'iptables-nft-save', 'iptables-nft-restore', 'nft', 'grep']) {
    symlinkSync((await run('sh', ['-c', `command -v ${name}`])).stdout.trim(), join(folder, name));
  }
  process.env['PATH'] = folder;
  const capture = new IptablesCapture(netns);
  const { notes } = await capture.start();
  assert.match(notes.join(), /IPv6 is not captured: .*ip6tables-nft-restore is not installed/);
  assert.deepEqual(await capture.state(), { active: true, present: true });
  await capture.remove();
  process.env['PATH'] = path;
  assert.equal(await raw(netns), '');
});

test('IptablesCapture: without any iptables there is a typed error', async (context) => {
  const netns = await namespace(context);
  const path = process.env['PATH'];
  context.after(() => void (process.env['PATH'] = path));
  process.env['PATH'] = '/nowhere';
  await assert.rejects(new IptablesCapture(netns).start(), { code: 'UNDERPASS_IPTABLES_MISSING' });
  assert.deepEqual(await new IptablesCapture(netns).state(), { active: false, present: false });
  process.env['PATH'] = path;
});

test('IptablesCapture: a namespace that is gone gives a typed error', async () => {
  await assert.rejects(new IptablesCapture('/run/netns/up-agent-gone').start(), { code: 'UNDERPASS_NETNS_ENTER' });
});

// A line in, a line out: each line that `program` prints is what its peer answered.
const CLIENT = `
const net = require('node:net');
const socket = net.connect(Number(process.argv[2]), process.argv[1]);
socket.on('data', (data) => process.stdout.write(data));
socket.on('error', (error) => { console.log(error.code); process.exit(1); });
process.stdin.on('data', (data) => socket.write(data)).on('end', () => socket.end());`;
const SERVER = `
const net = require('node:net');
const [address, port, name] = process.argv.slice(1);
net.createServer((socket) => socket.on('data', () => socket.write(name + '\\n')).on('error', () => {}))
  .listen({ host: address, port: Number(port) }, () => console.log('ready'));`;

class Program {
  readonly #lines: AsyncIterator<string>;
  constructor(readonly child: ChildProcess) {
    if (!child.stdout) throw new Error('no stdout');
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }
  async line(): Promise<string> {
    const next = await this.#lines.next();
    return next.done ? '(ended)' : next.value;
  }
  async ask(): Promise<string> {
    this.child.stdin?.write('x');
    return this.line();
  }
}

const children: ChildProcess[] = [];
after(() => children.forEach((child) => child.kill('SIGKILL')));

function program(netns: string, source: string, ...args: string[]): Program {
  const child = spawn(exec, ['--netns', netns, '--die-with-parent', '--', process.execPath, '-e', source, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  children.push(child);
  return new Program(child);
}

for (const backend of available) {
  test(`IptablesCapture (${backend}): connections keep the way they began, new ones take the new one`, async (context) => {
    const [a, b] = [await namespace(context), await namespace(context)];
    const [nameA, nameB] = [a, b].map((path) => path.slice('/run/netns/'.length)) as [string, string];
    const veth = `upa${process.pid % 100000}${counter}`;
    await run('ip', ['-n', nameA, 'link', 'add', veth, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', nameB]);
    for (const [ns, dev, ip] of [[nameA, veth, '10.213.7.1'], [nameB, 'eth0', '10.213.7.2']] as const) {
      await run('ip', ['-n', ns, 'addr', 'add', `${ip}/24`, 'dev', dev]);
      await run('ip', ['-n', ns, 'link', 'set', dev, 'up']);
    }
    if (backend === 'legacy') await inside(a, 'iptables-legacy', '-t', 'nat', '-A', 'OUTPUT', '-p', 'tcp', '--dport', '81', '-j', 'RETURN');
    const server = program(b, SERVER, '10.213.7.2', '8080', 'server');
    const proxy = program(a, SERVER, '127.0.0.1', '15001', 'proxy');
    assert.deepEqual([await server.line(), await proxy.line()], ['ready', 'ready']);
    const client = (): Program => program(a, CLIENT, '10.213.7.2', '8080');

    const older = client();
    assert.equal(await older.ask(), 'server');
    const capture = new IptablesCapture(a);
    assert.equal((await capture.start()).backend, backend);
    const redirected = client();
    assert.equal(await redirected.ask(), 'proxy');
    assert.equal(await older.ask(), 'server', 'a connection from before goes on');
    await capture.stop();
    const newer = client();
    assert.equal(await newer.ask(), 'server');
    assert.equal(await redirected.ask(), 'proxy', 'a redirected connection lives on after the stop');
    assert.equal(await older.ask(), 'server');
    await capture.remove();
    assert.equal(await newer.ask(), 'server');
    for (const { child } of [older, redirected, newer, server, proxy]) {
      child.kill();
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    }
  });
}

test('IptablesCapture: HBONE is not redirected on its way in; rules of a version that had no word about it count as outdated, and a start completes them', async (context) => {
  const netns = await namespace(context);
  const inbound = new IptablesCapture(netns, { direction: 'inbound' });
  const { backend } = await inbound.start();
  const started = await tables(netns, [backend]);
  assert.match(started, /-A UNDERPASS_INBOUND -p tcp -m tcp --dport 15008 -j RETURN\n-A UNDERPASS_INBOUND .*--to-ports 15006/);
  for (const program of [`iptables-${backend}`, `ip6tables-${backend}`]) await inside(netns, program, '-t', 'nat', '-D', 'UNDERPASS_INBOUND', '-p', 'tcp', '--dport', '15008', '-j', 'RETURN');
  assert.deepEqual(await inbound.state(), { active: true, present: true, outdated: true });
  await inbound.start();
  assert.equal(await tables(netns, [backend]), started);
  await inbound.remove();
});

test('IptablesCapture: the two directions share a table, and the one that is left keeps its rules', async (context) => {
  const netns = await namespace(context);
  const before = (await tables(netns, ['nft'])) + (await raw(netns));
  const [outbound, inbound] = [new IptablesCapture(netns), new IptablesCapture(netns, { direction: 'inbound' })];
  const { backend } = await inbound.start();
  await outbound.start();
  assert.deepEqual([await inbound.state(), await outbound.state()], [{ active: true, present: true }, { active: true, present: true }]);
  assert.match(await tables(netns, [backend]), /-A PREROUTING -p tcp -j UNDERPASS_INBOUND[^]*-A UNDERPASS_INBOUND -p tcp .*--to-ports 15006/);
  await outbound.remove();
  assert.deepEqual(await inbound.state(), { active: true, present: true });
  await inbound.stop();
  assert.deepEqual(await inbound.state(), { active: false, present: true });
  await inbound.remove();
  if (backend === 'nft') assert.equal((await tables(netns, ['nft'])) + (await raw(netns)), before);
});
