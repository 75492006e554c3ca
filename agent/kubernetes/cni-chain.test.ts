import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { pino } from 'pino';
import { buildDir } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { CniChain, removeCniPlugin } from './cni-chain.js';
import { CniServer, parseCniRequest } from './cni-server.js';

const WAIT = { everyMs: 10 };
const PLUGIN_FILE = join(buildDir, 'underpass-cni');
const NETWORK = { cniVersion: '1.0.0', name: 'net', plugins: [{ type: 'bridge', bridge: 'cni0' }, { type: 'portmap' }] };
const silent = pino({ level: 'silent' });

function node(context: TestContext): { folder: string; chain: CniChain; file: (name: string) => string; plugins: (name?: string) => string[] } {
  const folder = mkdtempSync(join(tmpdir(), `up-cni-${process.pid}-`));
  mkdirSync(join(folder, 'net.d'));
  const chain = new CniChain({ configDir: join(folder, 'net.d'), binDir: join(folder, 'bin'), plugin: PLUGIN_FILE, socket: '/run/cni.sock', labelled: '/run/labelled', whenAway: 'wait-labelled', logger: silent, pollMs: 20 });
  const file = (name: string): string => join(folder, 'net.d', name);
  context.after(() => {
    chain.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const plugins = (name = '10-net.conflist'): string[] => (JSON.parse(readFileSync(file(name), 'utf8')) as typeof NETWORK).plugins.map(({ type }) => type);
  return { folder, chain, file, plugins };
}

test('CniChain: the plugin stands behind all others, the rest of the file is as it was', (context) => {
  const { folder, chain, file, plugins } = node(context);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  chain.start();
  assert.deepEqual(plugins(), ['bridge', 'portmap', 'underpass-cni']);
  assert.deepEqual(JSON.parse(readFileSync(file('10-net.conflist'), 'utf8')), { ...NETWORK, plugins: [...NETWORK.plugins, { type: 'underpass-cni', socket: '/run/cni.sock', labelled: '/run/labelled', whenAway: 'wait-labelled' }] });
  assert.deepEqual(readFileSync(join(folder, 'bin', 'underpass-cni')), readFileSync(PLUGIN_FILE));
  assert.equal(chain.problem, undefined);
});

test('CniChain: what a writing that was interrupted left is taken away, at the start and with the plugin', (context) => {
  const { folder, chain, file } = node(context);
  const dirs = { configDir: join(folder, 'net.d'), binDir: join(folder, 'bin') };
  mkdirSync(dirs.binDir);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  writeFileSync(file('.other.new'), '');
  for (const away of [() => chain.start(), () => removeCniPlugin(dirs)]) {
    for (const part of [file('.underpass-10-net.conflist.new'), file('.underpass-gone.conf.new'), join(dirs.binDir, 'underpass-cni.new')]) writeFileSync(part, '{"pl');
    away();
    assert.deepEqual(readdirSync(dirs.configDir).sort(), ['.other.new', '10-net.conflist']);
    assert.equal(existsSync(join(dirs.binDir, 'underpass-cni.new')), false);
  }
});

test('CniChain: whoever could read the configuration can do so with the plugin in it, and without it again', (context) => {
  const { folder, chain, file } = node(context);
  const mode = (name: string): string => (statSync(file(name)).mode & 0o777).toString(8);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  chmodSync(file('10-net.conflist'), 0o644);
  chain.start();
  assert.equal(mode('10-net.conflist'), '644');
  chain.close();
  removeCniPlugin({ configDir: join(folder, 'net.d'), binDir: join(folder, 'bin') });
  assert.equal(mode('10-net.conflist'), '644');
});

test('CniChain: a file that somebody else writes anew has the plugin again, and one that comes first by name has it instead', async (context) => {
  const { chain, file, plugins } = node(context);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  chain.start();
  writeFileSync(file('10-net.conflist'), JSON.stringify({ ...NETWORK, plugins: [{ type: 'calico' }] }));
  await waitFor('the repair', () => plugins().join() === 'calico,underpass-cni', WAIT);
  writeFileSync(file('05-other.conflist'), JSON.stringify(NETWORK));
  await waitFor('the move', () => plugins('05-other.conflist').includes('underpass-cni') && !plugins().includes('underpass-cni'), WAIT);
});

test('CniChain: what can\'t be read is left as it is and named, and taken up when it is right again', async (context) => {
  const { chain, file, plugins } = node(context);
  chain.start();
  assert.match(chain.problem ?? '', /net\.d: found no configuration/);
  writeFileSync(file('10-net.conflist'), '{"plugins": [');
  await waitFor('the problem', () => /10-net\.conflist: .*JSON/.test(chain.problem ?? ''), WAIT);
  assert.equal(readFileSync(file('10-net.conflist'), 'utf8'), '{"plugins": [');
  writeFileSync(file('10-net.conflist'), '{"bridge": "cni0"}');
  await waitFor('the problem', () => /10-net\.conflist: found neither "plugins" nor "type"/.test(chain.problem ?? ''), WAIT);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  await waitFor('the plugin', () => plugins().includes('underpass-cni') && chain.problem === undefined, WAIT);
});

test('CniChain: a single plugin gets a list of our own that comes before it by name, follows it, and goes when it is gone or a list is there', async (context) => {
  const { folder, chain, file, plugins } = node(context);
  const single = { cniVersion: '0.4.0', name: 'net', type: 'bridge', bridge: 'cni0' };
  const ours = '00-underpass.conflist';
  writeFileSync(file('10-net.conf'), JSON.stringify(single));
  chain.start();
  assert.deepEqual(JSON.parse(readFileSync(file(ours), 'utf8')), { cniVersion: '0.4.0', name: 'net', plugins: [single, { type: 'underpass-cni', socket: '/run/cni.sock', labelled: '/run/labelled', whenAway: 'wait-labelled' }] });
  assert.equal(readFileSync(file('10-net.conf'), 'utf8'), JSON.stringify(single), 'the network\'s own file is as it was');
  writeFileSync(file('10-net.conf'), JSON.stringify({ ...single, type: 'ptp' }));
  await waitFor('the new one', () => plugins(ours).join() === 'ptp,underpass-cni', WAIT);
  writeFileSync(file(ours), '{"plugins": []}');
  await waitFor('the repair', () => plugins(ours).join() === 'ptp,underpass-cni', WAIT);
  writeFileSync(file('05-other.conflist'), JSON.stringify(NETWORK));
  await waitFor('the list', () => plugins('05-other.conflist').includes('underpass-cni') && !existsSync(file(ours)), WAIT);
  rmSync(file('05-other.conflist'));
  await waitFor('the single one again', () => existsSync(file(ours)), WAIT);
  rmSync(file('10-net.conf'));
  await waitFor('the end', () => !existsSync(file(ours)) && /found no configuration/.test(chain.problem ?? ''), WAIT);
  writeFileSync(file('00-a.conf'), JSON.stringify(single));
  await waitFor('a name that comes before', () => existsSync(file('-underpass.conflist')) && !existsSync(file(ours)), WAIT);
  chain.close();
  removeCniPlugin({ configDir: join(folder, 'net.d'), binDir: join(folder, 'bin') });
  assert.deepEqual(readdirSync(join(folder, 'net.d')), ['00-a.conf']);
});

test('removeCniPlugin: every file is as it was without the plugin, and nothing is left', (context) => {
  const { folder, chain, file } = node(context);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  writeFileSync(file('99-broken.conflist'), 'x');
  chain.start();
  chain.close();
  for (let twice = 0; twice < 2; twice++) removeCniPlugin({ configDir: join(folder, 'net.d'), binDir: join(folder, 'bin') });
  assert.deepEqual(JSON.parse(readFileSync(file('10-net.conflist'), 'utf8')), NETWORK);
  assert.deepEqual([readdirSync(join(folder, 'bin')), readdirSync(join(folder, 'net.d')).sort()], [[], ['10-net.conflist', '99-broken.conflist']]);
});

const RESULT = { cniVersion: '1.0.0', ips: [{ address: '10.1.0.2/24' }, { address: 'fd00::2/64' }], note: 'a "brace" } in \\ a string' };

function plugin(folder: string, { command = 'ADD', namespace = 'shop', ...config }: Record<string, unknown> = {}): { code: number | null; answer: Record<string, unknown> | undefined } {
  const input = JSON.stringify({ name: 'net', cniVersion: '1.0.0', type: 'underpass-cni', socket: join(folder, 'cni.sock'), labelled: join(folder, 'labelled'), prevResult: RESULT, ...config });
  const { status, stdout } = spawnSync(PLUGIN_FILE, { input, encoding: 'utf8', timeout: 60_000, env: { CNI_COMMAND: String(command), CNI_CONTAINERID: 'c1', CNI_NETNS: '/run/netns/cni-1', CNI_IFNAME: 'eth0', CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=${String(namespace)};K8S_POD_NAME=web-1;K8S_POD_UID=u-1` } });
  return { code: status, answer: stdout.trim() === '' ? undefined : (JSON.parse(stdout) as Record<string, unknown>) };
}

test('the plugin: while no agent answers, pods of labelled namespaces wait and others go on; or all do the one or the other', (context) => {
  const { folder } = node(context);
  writeFileSync(join(folder, 'labelled'), 'shops\nshop\n');
  assert.deepEqual(plugin(folder, { namespace: 'other' }), { code: 0, answer: RESULT });
  const waits = plugin(folder);
  assert.deepEqual([waits.code, waits.answer?.code], [1, 11], 'an error by which kubelet tries again');
  assert.match(String(waits.answer?.msg), /no agent/);
  assert.equal(plugin(folder, { whenAway: 'go-on' }).code, 0);
  assert.equal(plugin(folder, { whenAway: 'wait', namespace: 'other' }).code, 1);
  rmSync(join(folder, 'labelled'));
  assert.equal(plugin(folder).code, 0, 'nobody has labelled anything yet');
});

test('the plugin: says what is wrong with its configuration, changes nothing at a pod\'s end, and tells its versions', (context) => {
  const { folder } = node(context);
  assert.match(String(plugin(folder, { prevResult: undefined }).answer?.msg), /prevResult/);
  assert.match(String(plugin(folder, { socket: undefined }).answer?.msg), /socket/);
  assert.deepEqual(plugin(folder, { command: 'DEL' }), { code: 0, answer: undefined });
  assert.ok((plugin(folder, { command: 'VERSION' }).answer?.supportedVersions as string[]).includes('1.0.0'));
});

test('the plugin and the agent: a pod starts when it is let, and not when it is refused', async (context) => {
  const { folder } = node(context);
  // Asked by a process of its own, since the plugin is waited for.
  const script = `
    import { CniServer } from ${JSON.stringify(new URL('./cni-server.js', import.meta.url).href)};
    import { pino } from 'pino';
    const server = await CniServer.listen(process.argv[1], async (pod) => { console.log(JSON.stringify(pod)); if (pod.namespace === 'closed') throw new Error('not today'); }, pino({ level: 'silent' }));
    console.log('listening');
    process.stdin.on('end', () => server.close()).resume();`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, join(folder, 'cni.sock')], { stdio: ['pipe', 'pipe', 'inherit'], cwd: buildDir });
  context.after(() => child.kill());
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await waitFor('the server', () => said.includes('listening'), WAIT);
  assert.deepEqual(plugin(folder), { code: 0, answer: RESULT });
  await waitFor('what it was told', () => said.includes('u-1'), WAIT);
  assert.deepEqual(JSON.parse(said.trim().split('\n')[1]!), { namespace: 'shop', name: 'web-1', uid: 'u-1', netns: '/run/netns/cni-1', ips: ['10.1.0.2', 'fd00::2'] });
  const refused = plugin(folder, { namespace: 'closed' });
  assert.deepEqual([refused.code, refused.answer?.code, refused.answer?.details], [1, 11, 'error: not today']);
});

test('CniServer: what is no request is answered with what was expected, and the socket is root\'s alone', async (context) => {
  const { folder } = node(context);
  const server = await CniServer.listen(join(folder, 'cni.sock'), () => Promise.resolve(), silent);
  context.after(() => server.close());
  const ask = (text: string): Promise<string> => new Promise((resolve, reject) => {
    let answer = '';
    const socket = connect(join(folder, 'cni.sock'), () => socket.end(text));
    socket.on('data', (chunk: Buffer) => (answer += chunk.toString())).on('close', () => resolve(answer.trim())).on('error', reject);
  });
  assert.match(await ask('nothing'), /^error: found no empty line, expected/);
  assert.equal(await ask('CNI_COMMAND=DEL\n\n{}'), 'ok');
  assert.throws(() => parseCniRequest('CNI_COMMAND=ADD\nCNI_NETNS=x\nCNI_ARGS=K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\n\n{}'), /CNI_NETNS: found "x", expected an absolute path/);
  assert.throws(() => parseCniRequest('CNI_COMMAND=ADD\nCNI_NETNS=/x\nCNI_ARGS=K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\n\n{}'), /prevResult\.ips: found none/);
  assert.equal(statSync(join(folder, 'cni.sock')).mode & 0o777, 0o600);
});

test('CniChain: what somebody does to the plugin is mended and told by the file, once; a start and another network are none of it', async (context) => {
  const { folder, chain, file, plugins } = node(context);
  const told: string[] = [];
  const hear = async (): Promise<void> => {
    for await (const part of chain.check().parts()) told.push(...part.map(({ kind, state, name }) => `${kind} ${state} ${name}`));
  };
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  chain.start();
  await hear();
  assert.deepEqual(told, []);
  writeFileSync(file('10-net.conflist'), JSON.stringify(NETWORK));
  await waitFor('the plugin to be back', () => plugins().includes('underpass-cni'), WAIT);
  writeFileSync(file('10-net.conflist'), JSON.stringify({ ...NETWORK, plugins: [{ type: 'underpass-cni' }, ...NETWORK.plugins] }));
  await waitFor('the plugin to be in its place', () => plugins().at(-1) === 'underpass-cni' && plugins().length === 3, WAIT);
  const binary = join(folder, 'bin', 'underpass-cni');
  rmSync(binary);
  await waitFor('the plugin itself to be back', () => existsSync(binary), WAIT);
  await waitFor('all to be told', async () => (await hear(), told.length === 3), WAIT);
  assert.deepEqual(told, [`cni missing ${file('10-net.conflist')}`, `cni wrong ${file('10-net.conflist')}`, `cni missing ${binary}`]);
  writeFileSync(file('05-other.conflist'), JSON.stringify({ ...NETWORK, name: 'other' }));
  await waitFor('it to stand in the other network', () => plugins('05-other.conflist').includes('underpass-cni'), WAIT);
  await hear();
  assert.equal(told.length, 3);
});
