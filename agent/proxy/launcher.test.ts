// Envoy by underpass-launcher: what survives whose death, and what peers of its socket can do.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import { logger } from '../../common/log.js';
import { buildDir, envoyBinary } from '../../common/paths.js';
import { isRunning, processStartTime } from '../../common/process-id.js';
import { run } from '../../common/process.js';
import { sleep, waitFor } from '../../common/retry.js';
import { TestLauncher } from '../testing/launcher.js';
import { echoServer, requests, type TestNetns } from '../testing/netns.js';
import { ProxyWorld, SERVICE_VIP } from '../testing/proxy-world.js';
import { launcherStarter } from './envoy-starter.js';
import { launch, launcherStatus } from './launcher-client.js';
import type { ProxyPod } from './node-proxy.js';

interface Answer {
  status: number;
}

/** A program in Envoy's place, for what concerns processes only. */
const STAND_IN = '#!/bin/sh\ncase "$1" in --exit) exit "$2";; --args) for a; do echo "[$a]"; done;; esac\nexec sleep 60\n';

/** What comes back for these bytes; undefined: closed without an answer. */
async function say(socketPath: string, bytes: string | Buffer, end = true): Promise<string | undefined> {
  const socket = connect(socketPath);
  let answer = '';
  socket.on('data', (data: Buffer) => (answer += data.toString()));
  socket.on('error', () => undefined);
  socket.write(bytes);
  if (end) socket.end();
  await new Promise((resolve) => socket.on('close', resolve));
  return answer || undefined;
}

describe('underpass-launcher', () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-launcher-'));
  const socketPath = join(folder, 'launcher.sock');
  const envoyPath = join(folder, 'stand-in');
  let launcher: TestLauncher;
  before(async () => {
    writeFileSync(envoyPath, STAND_IN, { mode: 0o755 });
    launcher = await TestLauncher.start(socketPath, { envoyPath });
  });
  after(async () => {
    await launcher.kill();
    rmSync(folder, { recursive: true, force: true });
  });

  it('starts what its own option names, with arguments as they are, and tells how it ended', async () => {
    const id = await launch(socketPath, { adminSocketPath: '/nowhere', args: ['--args', 'a b', '$(id)', ''] });
    assert.equal(processStartTime(id.pid), id.startTime);
    // The launcher's own lines may come between.
    const said = (): string[] => launcher.output.split('\n').filter((line) => line.startsWith('['));
    await waitFor('its output in the launcher\'s own', () => said().length >= 4);
    assert.deepEqual(said(), ['[--args]', '[a b]', '[$(id)]', '[]'], launcher.output);
    assert.deepEqual((await launcherStatus(socketPath)).running.map(({ pid }) => pid), [id.pid]);
    process.kill(id.pid, 'SIGKILL');
    const other = await launch(socketPath, { adminSocketPath: '/nowhere', args: ['--exit', '3'] });
    await waitFor('both to end', async () => (await launcherStatus(socketPath)).ended.length === 2);
    const { ended } = await launcherStatus(socketPath);
    assert.equal(ended.find(({ pid }) => pid === id.pid)?.how, 'signal 9');
    assert.equal(ended.find(({ pid }) => pid === other.pid)?.how, 'exit 3');
  });

  it('puts the process into the cgroup that it is asked for, and says when it can not', async () => {
    const cgroup = join(cgroup2Root(), `underpass-launcher-test-${process.pid}`);
    await assert.rejects(launch(socketPath, { cgroupPath: cgroup, adminSocketPath: '/nowhere', args: [] }), { code: 'UNDERPASS_ENVOY_LAUNCHER', message: /joining the cgroup .*launcher-test.*: No such file/ });
    await run('mkdir', [cgroup]);
    try {
      const { pid } = await launch(socketPath, { cgroupPath: cgroup, adminSocketPath: '/nowhere', args: [] });
      assert.deepEqual(readFileSync(join(cgroup, 'cgroup.procs'), 'utf8').trim(), String(pid));
      process.kill(pid, 'SIGKILL');
      await waitFor('its end', async () => (await launcherStatus(socketPath)).running.length === 0);
    } finally {
      await removeCgroup(cgroup);
    }
  });

  it('says of a process that executes another file than a new one would that it is replaced', async () => {
    const own = join(folder, 'sleep');
    const other = join(folder, 'other.sock');
    copyFileSync('/bin/sleep', own);
    const second = await TestLauncher.start(other, { envoyPath: own });
    await launch(other, { adminSocketPath: '/nowhere', args: ['60'] });
    assert.deepEqual((await launcherStatus(other)).running.map(({ isCurrent }) => isCurrent), [true]);
    rmSync(own);
    copyFileSync('/bin/sleep', own);
    assert.deepEqual((await launcherStatus(other)).running.map(({ isCurrent }) => isCurrent), [false]);
    await second.kill();
  });

  it('keeps its socket to its user and sends other users away', async () => {
    assert.equal(statSync(socketPath).mode & 0o777, 0o600);
    // Somebody who got at the socket all the same.
    await run('chmod', ['0777', folder, socketPath]);
    const script = `const s = require('net').connect(${JSON.stringify(socketPath)}); let all = ''; s.on('data', (d) => all += d); s.on('error', () => {}); s.on('close', () => console.log(JSON.stringify(all))); s.end('status\\0');`;
    const as = (uid: string): Promise<string> => run(join(buildDir, 'underpass-exec'), ['--gid', uid, '--uid', uid, '--', process.execPath, '-e', script], { timeoutMs: 60_000 }).then(({ stdout }) => stdout.trim());
    assert.equal(await as('65534'), '""');
    assert.match(await as('0'), /^"ok/);
    assert.match(launcher.output, /a process of user 65534 was sent away/);
    await run('chmod', ['0600', socketPath]);
  });

  it('refuses what it does not know, what is too much and what never ends, and goes on', async () => {
    assert.match(await say(socketPath, 'stop\0') ?? '', /^error: stop: expected status or start/);
    assert.match(await say(socketPath, 'start\0/bin/sh\0--\0') ?? '', /^error: \/bin\/sh: expected cgroup=DIR/);
    assert.match(await say(socketPath, 'start\0admin=relative\0--\0') ?? '', /^error: admin=relative/);
    assert.match(await say(socketPath, `start\0admin=/${'x'.repeat(200)}\0--\0`) ?? '', /^error: admin=/);
    assert.match(await say(socketPath, 'start\0') ?? '', /^error: start without --/);
    assert.match(await say(socketPath, `start\0--\0${'a\0'.repeat(200)}`) ?? '', /^error: more than 128 words/);
    assert.equal(await say(socketPath, 'status'), undefined, 'a word without its end');
    assert.equal(await say(socketPath, ''), undefined);
    assert.equal(await say(socketPath, Buffer.alloc(40_000, 'a')), undefined, 'more than a request may hold');
    const began = performance.now();
    assert.equal(await say(socketPath, 'status\0', false), undefined, 'who never ends its request');
    assert.ok(performance.now() - began > 1_000);
    assert.deepEqual((await launcherStatus(socketPath)).running, []);
  });

  it('runs three at most', async () => {
    const three = [];
    for (let i = 0; i < 3; i++) three.push(await launch(socketPath, { adminSocketPath: '/nowhere', args: [] }));
    await assert.rejects(launch(socketPath, { adminSocketPath: '/nowhere', args: [] }), /3 Envoys run already/);
    for (const { pid } of three) process.kill(pid, 'SIGKILL');
    await waitFor('their end', async () => (await launcherStatus(socketPath)).running.length === 0);
  });

  it('leaves the socket to a launcher that answers, and takes what a dead one left', async () => {
    const second = await TestLauncher.start(socketPath, { envoyPath });
    assert.equal(await second.ended(), 1);
    assert.match(second.output, /Address already in use/);
    await launcher.kill();
    launcher = await TestLauncher.start(socketPath, { envoyPath });
    await waitFor('an answer', async () => (await launcherStatus(socketPath).catch(() => undefined)) !== undefined);
  });

  it('ends its processes when it dies, and by SIGTERM, when nobody takes over, after its grace', async () => {
    const first = await launch(socketPath, { adminSocketPath: '/nowhere', args: [] });
    await launcher.kill();
    await waitFor('the end of the process', () => !isRunning(first));
    launcher = await TestLauncher.start(socketPath, { envoyPath, options: ['--grace', '3', '--drain', '1'] });
    const second = await launch(socketPath, { adminSocketPath: '/nowhere', args: [] });
    launcher.process.kill('SIGTERM');
    await waitFor('the launcher to be ending', () => launcher.output.includes('ending; its Envoy stays'), { everyMs: 5 });
    assert.ok(isRunning(second));
    await assert.rejects(launch(socketPath, { adminSocketPath: '/nowhere', args: [] }), /this launcher is ending/);
    assert.equal(await launcher.ended(), 0);
    assert.ok(!isRunning(second));
    launcher = await TestLauncher.start(socketPath, { envoyPath });
  });
});

describe('NodeProxy with a launcher', () => {
  const world = new ProxyWorld();
  const launcherSocket = join(world.folder, 'launcher.sock');
  let launcher: TestLauncher;
  let a: { pod: ProxyPod; netns: TestNetns };

  before(async () => {
    launcher = await TestLauncher.start(launcherSocket);
    await world.start({ launcherSocket });
    a = await world.pod('pod-a');
    await a.netns.serve(echoServer(80));
    world.running.setPods([a.pod]);
    await world.ready(a.pod);
    await world.settled();
  });
  after(async () => {
    await world.close();
    await launcher.kill();
  });
  async function statuses(): Promise<number[]> {
    const answers = await a.netns.script<Answer[]>(requests([{ url: `http://${SERVICE_VIP}/`, headers: { host: 'web' } }]));
    return answers.map((answer) => answer.status);
  }

  it('has its Envoy from the launcher', async () => {
    assert.deepEqual((await launcherStatus(launcherSocket)).running.map(({ pid }) => pid), [world.running.status().envoy.pid]);
    assert.deepEqual(await statuses(), [200]);
  });

  it('is asked again where it closed before it was asked, as when the agent was at something else for too long', async () => {
    const logs: string[] = [];
    const real = join(world.folder, 'between.sock');
    let closed = 0;
    // Between agent and launcher: the first request to start is closed unread.
    const between = createServer({ allowHalfOpen: true }, (client) => {
      client.once('data', (data: Buffer) => {
        if (data.toString().startsWith('start') && closed++ === 0) return client.destroy();
        const server = connect(launcherSocket);
        server.on('error', () => client.destroy());
        client.on('error', () => server.destroy());
        server.pipe(client);
        server.end(data);
      });
    });
    between.listen(real);
    await once(between, 'listening');
    const keep = (await launcherStatus(launcherSocket)).running;
    const warn = (_: object, message: string): void => void logs.push(message);
    const starter = launcherStarter({ socketPath: real, cgroupPath: undefined, adminSocketPath: '/nowhere', logger: { ...logger('test'), warn } as never });
    const started = await starter.start(['--version'], { keep, note: () => undefined });
    assert.equal(await started.ended, 'exit 0');
    assert.deepEqual(logs, ["Envoy's launcher is asked again"]);
    assert.deepEqual((await launcherStatus(launcherSocket)).running, keep, 'who is to be kept is');
    between.close();
  });

  it('leaves Envoy running when the agent is killed, and the next agent adopts it', async () => {
    const { pid } = world.running.status().envoy;
    await world.running.stop({ keepEnvoy: true });
    const options = { nodeName: 'node-1', runDir: join(world.folder, 'run'), discoveryAddress: world.controlPlane.address, envoyPath: envoyBinary(), concurrency: 1, launcherSocket };
    const child = spawn(process.execPath, [join(import.meta.dirname, '..', 'testing', 'proxy-process.js'), JSON.stringify(options), JSON.stringify([a.pod])], { stdio: ['ignore', 'pipe', 'inherit'] });
    let line = '';
    for await (line of createInterface({ input: child.stdout })) if (line.startsWith('ready')) break;
    assert.equal(line, `ready ${pid} true`);
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
    assert.deepEqual(await statuses(), [200]);
    const next = await world.startProxy({ launcherSocket });
    assert.deepEqual([next.status().envoy.pid, next.status().envoy.adopted], [pid, true]);
    next.setPods([a.pod]);
    await world.ready(a.pod);
  });

  it('starts Envoy again by the next launcher when the launcher died, with all that it had', async () => {
    const { pid } = world.running.status().envoy;
    await launcher.kill();
    await waitFor('the end of its Envoy', () => processStartTime(pid as number) === undefined);
    await sleep(500);
    launcher = await TestLauncher.start(launcherSocket);
    await waitFor('another Envoy', () => world.running.status().envoy.pid !== pid && world.running.status().envoy.connected);
    await world.ready(a.pod);
    assert.deepEqual(await statuses(), [200]);
    assert.deepEqual((await launcherStatus(launcherSocket)).running.map((item) => item.pid), [world.running.status().envoy.pid]);
  });

  it('drains what nobody took over, and then ends it: clients are told to close while their requests are answered', async () => {
    await world.running.stop({ keepEnvoy: true });
    await launcher.kill();
    launcher = await TestLauncher.start(launcherSocket, { options: ['--grace', '1', '--drain', '4'] });
    const next = await world.startProxy({ launcherSocket });
    next.setPods([a.pod]);
    await world.ready(a.pod);
    await world.settled();
    const { pid = 0 } = next.status().envoy;
    // A connection that is kept, asked ten times a second until something else is said than at first.
    const said = await a.netns.script<string[]>(`const http = require('http'); const agent = new http.Agent({ keepAlive: true, maxSockets: 1 }); const said = [];
      const heard = (what) => { said.push(what); if (said.length === 1) console.log(); if (what === '200 undefined') setTimeout(call, 100); else { console.log(JSON.stringify(said)); process.exit(0); } };
      const call = () => http.get({ host: '${SERVICE_VIP}', agent, headers: { host: 'web' } }, (res) => res.resume().on('end', () => heard(res.statusCode + ' ' + res.headers.connection))).on('error', (e) => heard(e.message)); call();`, {
      onOutput: async () => {
        await next.stop({ keepEnvoy: true });
        launcher.process.kill('SIGTERM');
      },
    });
    assert.equal(said[0], '200 undefined');
    assert.ok(said.includes('200 close'), String(said));
    assert.deepEqual(said.filter((line) => !line.startsWith('200 ')), []);
    assert.equal(await launcher.ended(), 0);
    assert.match(launcher.output, /nobody took over from Envoy \d+: it drains for 4 s/);
    assert.equal(processStartTime(pid), undefined);
  });
});
