// Debian's programs, each with the clients that it is used with: equal in every byte with and without acceleration, and
// probation's verdict where the program's nature makes it certain.
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { answerTo, expectedOf, sha256 } from './exchange.js';
import { ProgramsWorld, isClient, isListener, program, type PodNamed, type Side } from './world.js';

const world = new ProgramsWorld('services');
const NODE = { argv: [process.execPath, join(projectRoot, 'dist', 'test', 'programs', 'peer.js')], port: 9004 };
const SIZES = [0, 1, 16_384, 3_000_000];
/** More than probation asks for. */
const TIMES = 12;
/** Two connections each; a log-in takes a while. */
const SSH_TIMES = 5;
const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', '--'];

before(() => world.up());

async function startNode(side: Side): Promise<void> {
  if (!side.listens('server', NODE.port)) await side.start('server', [...NODE.argv, 'server', '0.0.0.0', String(NODE.port)], NODE.port);
}
after(() => world.down());

const fileHash = (path: string): string => sha256(readFileSync(path));

async function repeat(body: (index: number) => Promise<unknown>): Promise<void> {
  for (let index = 0; index < TIMES; index++) await body(index);
}

/** What probation came to, on the accelerated side. `again`: a program that blocks is named only if it lives for long enough to be looked at. */
async function verdicts(side: Side, client: [PodNamed, string], server: [PodNamed, number], again: () => Promise<unknown>): Promise<string[]> {
  return [
    (await side.untilDecided(`${client[1]} in ${client[0]}`, isClient(...client), again)) ?? '',
    (await side.untilDecided(`port ${server[1]} of ${server[0]}`, isListener(...server), again)) ?? '',
  ];
}

function nginxConfig(side: Side, port: number): string {
  for (const folder of ['nginx', 'nginx/files', 'nginx/temp']) mkdirSync(side.path(folder), { recursive: true });
  copyFileSync(world.payloadFile, side.path('nginx/files/payload'));
  return side.write('nginx.conf', `daemon off; master_process off; pid ${side.path('nginx/pid')}; user root;
events { worker_connections 256; }
http {
  access_log off; sendfile on; tcp_nopush on; client_max_body_size 100m;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${side.path(`nginx/temp/${name}`)};`).join(' ')}
  server { listen ${port}; location / { root ${side.path('nginx/files')}; dav_methods PUT; } }
}`);
}

async function startNginx(side: Side, pod: PodNamed = 'server'): Promise<void> {
  await side.start(pod, [program('nginx'), '-c', nginxConfig(side, 8080), '-e', 'stderr'], 8080);
}

test('nginx, which sends files, with curl and wget', async () => {
  const result = await world.both(async (side) => {
    await startNginx(side);
    const url = `http://${side.address('server')}:8080`;
    const curl = (from: string, to: string) => side.run('client', [program('curl'), '-sSf', '--max-time', '30', '-o', side.path(to), `${url}/${from}`]);
    const put = (name: string) => side.run('client', [program('curl'), '-sSf', '--max-time', '30', '-T', world.payloadFile, `${url}/${name}`]);
    const wget = (from: string, to: string) => side.run('client', [program('wget'), '-q', '-T', '30', '-t', '1', '-O', side.path(to), `${url}/${from}`]);
    const [curls, nginx] = await verdicts(side, ['client', 'curl'], ['server', 8080], () => curl('payload', 'first'));
    if (side.accelerated) assert.deepEqual([curls, nginx], ['event-driven', 'event-driven']);
    const short = await side.shortCircuited('client', () => repeat(async (index) => {
      await put(`put-${index}`);
      await curl('payload', `got-${index}`);
    }));
    assert.equal(short, side.accelerated ? 2 * TIMES : 0);
    const [wgets] = await verdicts(side, ['client', 'wget'], ['server', 8080], () => side.run('client', [program('wget'), '-q', '-T', '30', '-t', '1', '-w', '0.5', '-O', side.path('first'), `${url}/payload`, `${url}/payload`]));
    if (side.accelerated) assert.equal(wgets, 'blocking');
    await repeat((index) => wget('payload', `wgot-${index}`));
    return Array.from({ length: TIMES }, (_, index) => [`nginx/files/put-${index}`, `got-${index}`, `wgot-${index}`].map((name) => fileHash(side.path(name))));
  });
  assert.deepEqual(new Set(result.flat()), new Set([sha256(world.payload)]));
});

test('redis-server with redis-cli, redis-benchmark and a bulk load that does not block', async () => {
  await world.both(async (side) => {
    await side.start('server', [program('redis-server'), '--port', '6379', '--bind', '0.0.0.0', '--protected-mode', 'no', '--save', '', '--dir', side.folder, '--enable-debug-command', 'yes'], 6379);
    const at = ['-h', side.address('server'), '-p', '6379'];
    const cli = (args: string[], input?: string, pod: PodNamed = 'client') => side.run(pod, [program('redis-cli'), ...at, ...args], input === undefined ? {} : { input });
    const benchmark = () => side.run('client', [program('redis-benchmark'), ...at, '-q', '-t', 'set,get,lpush,lrange_100', '-n', '400', '-c', '10', '-d', '2000']);
    const [benchmarks, server] = await verdicts(side, ['client', 'redis-benchmark'], ['server', 6379], benchmark);
    // It asks for the server's settings on a connection that blocks.
    if (side.accelerated) assert.deepEqual([benchmarks, server], ['blocking', 'event-driven']);
    await benchmark();
    const [clis] = await verdicts(side, ['client', 'redis-cli'], ['server', 6379], () => cli(['-r', '3', '-i', '0.2', 'PING']));
    if (side.accelerated) assert.equal(clis, 'blocking');
    await cli(['FLUSHALL']);
    await repeat(async (index) => {
      await cli(['-x', 'SET', `key-${index}`], world.payloadFile);
      await side.run('client', [program('redis-cli'), ...at, '--raw', 'GET', `key-${index}`], { output: side.path(`redis-${index}`) });
      // redis-cli ends what it prints by a line feed.
      assert.equal(sha256(readFileSync(side.path(`redis-${index}`)).subarray(0, -1)), sha256(world.payload));
    });
    const commands = Array.from({ length: 500 }, (_, index) => `*3\r\n$3\r\nSET\r\n$${`bulk-${index}`.length}\r\nbulk-${index}\r\n$5000\r\n${String(index % 10).repeat(5000)}\r\n`).join('');
    const pipe = side.write('pipe', commands);
    const load = async () => assert.match(await cli(['--pipe'], pipe, 'client-2'), /errors: 0, replies: 500/);
    const [loads] = await verdicts(side, ['client-2', 'redis-cli'], ['server', 6379], load);
    if (side.accelerated) assert.equal(loads, 'event-driven');
    assert.equal(await side.shortCircuited('client-2', () => repeat(load)), side.accelerated ? TIMES : 0);
    return (await cli(['DEBUG', 'DIGEST'])).trim();
  });
});

test('PostgreSQL with psql: tables copied in and out', async () => {
  const result = await world.both(async (side) => {
    const data = side.path('pg');
    const unused = ['-c', 'fsync=off', '-c', 'unix_socket_directories=', '-c', 'listen_addresses=0.0.0.0'];
    await side.run('server', [...nobody, program('initdb'), '-D', data, '-U', 'postgres', '-A', 'trust', '-N', '--no-locale', '-E', 'UTF8'], { env: { HOME: side.folder } });
    side.write('pg/pg_hba.conf', 'host all all 0.0.0.0/0 trust\n');
    await side.start('server', [...nobody, program('postgres'), '-D', data, ...unused], 5432);
    const lines = side.write('lines', `${world.payload.toString('base64').replace(/.{76}/g, '$&\n')}\n`);
    const psql = (sql: string, output?: string) => side.run('client', [
      program('psql'), '-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', `host=${side.address('server')} user=postgres dbname=postgres sslmode=disable gssencmode=disable`, '-c', sql,
    ], output === undefined ? {} : { output });
    const [client, listener] = await verdicts(side, ['client', 'psql'], ['server', 5432], () => psql('select pg_sleep(0.05)'));
    if (side.accelerated) assert.deepEqual([client, listener], ['event-driven', 'event-driven']);
    const copies: string[] = [];
    const short = await side.shortCircuited('client', async () => {
      await psql('create table t (n serial, line text)');
      await repeat(async (index) => {
        await psql(`\\copy t (line) from '${lines}'`);
        await psql(`\\copy (select line from t order by n) to stdout`, side.path(`copy-${index}`));
        copies.push(fileHash(side.path(`copy-${index}`)));
        await psql('truncate t restart identity');
      });
    });
    assert.equal(short, side.accelerated ? 1 + 3 * TIMES : 0);
    return { copies: [...new Set(copies)], expected: fileHash(lines) };
  });
  assert.deepEqual(result.copies, [result.expected]);
});

test('netcat: half-closing clients of a server in Node, and a netcat that serves one connection', async () => {
  await world.both(async (side) => {
    const NC = program('nc.openbsd');
    const answer = side.write('answer', answerTo(world.payload));
    await startNode(side);
    const asks = async (index: number): Promise<void> => {
      await side.run('client', [NC, '-N', side.address('server'), String(NODE.port)], { input: world.payloadFile, output: side.path(`nc-${index}`) });
      assert.equal(fileHash(side.path(`nc-${index}`)), fileHash(answer));
    };
    const [client] = await verdicts(side, ['client', 'nc.openbsd'], ['server', NODE.port], () => asks(0));
    if (side.accelerated) assert.equal(client, 'event-driven');
    assert.equal(await side.shortCircuited('client', () => repeat(asks)), side.accelerated ? TIMES : 0);
    // A netcat that listens ends when its client has closed its half, whatever it still has to send: this client closes last.
    const serves = async (index: number): Promise<void> => {
      const server = side.run('server', [NC, '-l', '-N', '0.0.0.0', '7001'], { input: answer, output: side.path(`nc-server-${index}`) });
      await side.listening('server', 7001);
      await side.run('client', [NC, side.address('server'), '7001'], { input: world.payloadFile, output: side.path(`nc-client-${index}`) });
      await server;
      assert.equal(fileHash(side.path(`nc-client-${index}`)), fileHash(answer));
    };
    const [, listener] = await verdicts(side, ['client', 'nc.openbsd'], ['server', 7001], () => serves(0));
    if (side.accelerated) assert.equal(listener, 'event-driven');
    assert.equal(await side.shortCircuited('client', () => repeat(serves)), side.accelerated ? TIMES : 0);
  });
});

test('ssh: a file each way through commands, and by sftp', async () => {
  await world.both(async (side) => {
    const key = (name: string) => side.run('server', [...nobody, program('ssh-keygen'), '-q', '-t', 'ed25519', '-N', '', '-f', side.path(name)]);
    await key('host');
    await key('user');
    const passwd = side.write('passwd', `root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:${side.folder}:/bin/sh\n`);
    const config = side.write('sshd_config', `Port 2222\nHostKey ${side.path('host')}\nAuthorizedKeysFile ${side.path('user.pub')}\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nMaxStartups 100\nSubsystem sftp internal-sftp\n`);
    const shadow = side.write('shadow', 'nobody:*:19000:0:99999:7:::\n');
    // Nobody may log in here: in the mount namespace of its own that each program of a pod has.
    const asNobody = (argv: string[]) => ['sh', '-c', 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/shadow && shift 2 && exec "$@"', 'sh', passwd, shadow, ...nobody, ...argv];
    await side.start('server', asNobody([program('sshd'), '-D', '-e', '-f', config]), 2222);
    const options = ['-F', 'none', '-i', side.path('user'), '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR', '-o', 'BatchMode=yes'];
    const ssh = (command: string, files: { input?: string; output?: string }) =>
      side.run('client', asNobody([program('ssh'), ...options, '-p', '2222', `nobody@${side.address('server')}`, command]), files);
    for (let index = 0; index < SSH_TIMES; index++) {
      await ssh(`cat >${side.path(`ssh-up-${index}`)}`, { input: world.payloadFile });
      await ssh(`cat ${world.payloadFile}`, { output: side.path(`ssh-down-${index}`) });
    }
    const batch = side.write('batch', `put ${world.payloadFile} ${side.path('sftp-up')}\nget ${world.payloadFile} ${side.path('sftp-down')}\n`);
    await side.run('client', asNobody([program('sftp'), '-S', program('ssh'), ...options, '-P', '2222', '-b', batch, `nobody@${side.address('server')}`]));
    const files = [...Array.from({ length: SSH_TIMES }, (_, index) => [`ssh-up-${index}`, `ssh-down-${index}`]).flat(), 'sftp-up', 'sftp-down'];
    assert.deepEqual(new Set(files.map((name) => fileHash(side.path(name)))), new Set([sha256(world.payload)]));
    // Both begin with sockets that block, and are asked to log in by them.
    if (side.accelerated) assert.deepEqual(await verdicts(side, ['client', 'ssh'], ['server', 2222], () => ssh('true', {})), ['blocking', 'blocking']);
  });
});

test('rsync with its daemon: a folder pushed and pulled', async () => {
  await world.both(async (side) => {
    const [source, stored] = [side.path('rsync-source'), side.path('rsync-stored')];
    for (const folder of [source, stored]) mkdirSync(folder);
    for (let index = 0; index < 20; index++) side.write(`rsync-source/${index}`, world.payload.subarray(index * 1000, index * 1000 + (index % 5) * 150_000));
    const config = side.write('rsyncd.conf', `port = 8730\nuse chroot = no\nuid = root\ngid = root\npid file = ${side.path('rsync.pid')}\n[stored]\npath = ${stored}\nread only = no\n`);
    await side.start('server', [program('rsync'), '--daemon', '--no-detach', `--config=${config}`, '--log-file=/dev/null'], 8730);
    const remote = `rsync://${side.address('server')}:8730/stored/`;
    await repeat(async (index) => {
      const pulled = side.path(`rsync-pulled-${index}`);
      await side.run('client', [program('rsync'), '-a', '--delete', '--ignore-times', `${source}/`, remote]);
      await side.run('client', [program('rsync'), '-a', remote, `${pulled}/`]);
      for (let file = 0; file < 20; file++) {
        assert.deepEqual([stored, pulled].map((folder) => fileHash(join(folder, String(file)))), Array(2).fill(fileHash(join(source, String(file)))));
      }
      rmSync(pulled, { recursive: true });
    });
    const again = () => side.run('client', [program('rsync'), remote], {});
    if (side.accelerated) assert.deepEqual(await verdicts(side, ['client', 'rsync'], ['server', 8730], again), ['blocking', 'event-driven']);
  });
});

for (const splicing of [true, false]) {
  // A client that says nothing before it closes its half may be dropped by HAProxy itself, which has not reached its server.
  const sizes = SIZES.filter((size) => size > 0);
  test(`HAProxy ${splicing ? 'that splices' : 'without splicing, in a pod whose label says so'}, between Node and Node`, async () => {
    await world.both(async (side) => {
      const pod = splicing ? 'proxy' : 'proxy-cleared';
      await startNode(side);
      const config = side.write('haproxy.cfg', `global
  ${splicing ? '' : 'nosplice'}
defaults
  mode tcp
  ${splicing ? 'option splice-auto\n  option splice-request\n  option splice-response' : ''}
  timeout connect 10s
  timeout client 30s
  timeout server 30s
listen tcp
  bind 0.0.0.0:9100
  server node ${side.address('server')}:${NODE.port}
`);
      const proxy = await side.start(pod, [program('haproxy'), '-db', '-f', config], 9100);
      const at = { address: side.address(pod), port: 9100 };
      const warm = () => side.exchange('client', NODE.argv, at, [1], TIMES, 0.1);
      const found = [
        await side.untilDecided('Node', isClient('client', 'node'), warm), await side.untilDecided('HAProxy as a server', isListener(pod, 9100), warm),
        await side.untilDecided('HAProxy as a client', isClient(pod, 'haproxy'), warm), await side.untilDecided('its server', isListener('server', NODE.port), warm),
      ];
      const itself = splicing ? 'spliced' : 'event-driven';
      if (side.accelerated) assert.deepEqual(found, ['event-driven', itself, itself, 'event-driven']);
      const short = await side.shortCircuited(pod, async () => assert.deepEqual(await side.exchange('client', NODE.argv, at, sizes, 10), expectedOf(world.payload, sizes, 10)));
      assert.equal(short, side.accelerated && !splicing ? 2 * 10 * sizes.length : 0);
      await side.stop(proxy);
    });
  });
}
