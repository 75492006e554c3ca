/**
 * One client connection of the fast path, step by step: a client, the node's Envoy and two servers are processes that send, close
 * and reset when the test says, so that every point of an exchange can be stopped at. Real sockets, real programs and tables; who
 * plays Envoy writes what Envoy writes (test/http-fast-path.test.ts has the real one).
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach } from 'node:test';
import { TAUGHT_MARK } from '../../agent/http/names.js';
import { className, ENVOY, type HttpClass, type HttpTable, type HttpTrace } from '../../agent/http/table.js';
import { KernelWorld } from '../../agent/dataplane/kernel-testing.js';
import { HttpEndingQueue } from '../../agent/dataplane/http-endings.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import type { HttpEnd } from '../../agent/dataplane/kernel-http-control.js';
import { Ends, type Answer } from './ends.js';

export const VIP = '10.96.0.9';
export let w: KernelWorld;
export let client: Ends, envoy: Ends, server: Ends;
export let tableId: number;
let table: HttpTable;
let makeTable: () => HttpTable;
export const ends: HttpEnd[] = [];
let beat: NodeJS.Timeout;
export let endings: HttpEndingQueue;
/** For a kernel side that took the place of the first. */
export let listen: () => void;

/** Two classes: /a to the first server's port 80, all else to its port 81. Class 2 is Envoy's. */
export function tableOf(traces: readonly (HttpTrace | undefined)[] = []): HttpTable {
  const classes: HttpClass[] = [0, 1].map((cluster) => ({ ...w.kernel.http.tables.takeName()!, ...(traces[cluster] && { trace: traces[cluster] }), splits: [{ until: 1, cluster, text: line('x-weight', '0', 32) }] }));
  const anyPath = { kind: 'any', value: '', inverted: false } as const;
  return {
    ports: [{ address: undefined, port: 80, routes: 0 }],
    routes: [{ name: '80', hosts: [{ host: 'shop', virtualHost: 0 }] }],
    virtualHosts: [{
      rules: [
        { path: { kind: 'prefix', value: '/a', inverted: false }, methods: undefined, headers: [], verdict: 0 },
        { path: { kind: 'exact', value: '/envoys', inverted: false }, methods: undefined, headers: [], verdict: ENVOY },
        { path: anyPath, methods: undefined, headers: [{ name: 'x-version', kind: 'exact', value: 'v2', inverted: false }], verdict: 1 },
        { path: anyPath, methods: undefined, headers: [], verdict: 1 },
      ],
      otherwise: ENVOY,
    }],
    classes,
    clusters: [80, 81].map((port) => ({
      name: `shop-${port}`, balance: 'least-request',
      endpoints: [{ address: w.world.pod(1).ipv4, port, policy: port === 80 ? 0 : 'open', weight: 1, teachable: true, text: line('x-endpoint', `${w.world.pod(1).ipv4}:${port}`, 160) }],
    })),
    policies: [{ rules: [{ path: { kind: 'prefix', value: '/a/secret', inverted: false }, methods: undefined, headers: [], verdict: 'envoy' }], otherwise: 'allowed' }],
    findings: [],
    classOf: () => undefined,
  };
}

export function line(name: string, value: string, length: number): string {
  return `${`${name}: ${value}`.padEnd(length - 2)}\r\n`;
}

export const request = (path: string, more = '', body = ''): string => `GET ${path} HTTP/1.1\r\nHost: shop\r\n${more}\r\n${body}`;
export const answer = (body: string, more = ''): string => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n${more}\r\n${body}`;
export const DRAWN = 192;

/**
 * The sockets and programs, for the tests of one file.
 * @param act whether connections that are to end are ended, as the agent does
 * @param tables makes the client's table, of one class for each of the server's ports 80 and 81
 * @param rodata of the programs
 * @param more.pinned the kernel side outlives whoever opened it
 */
export function exchanges(act: () => boolean = () => true, tables: () => HttpTable = tableOf, rodata: Record<string, number> = {}, more: { pinned?: boolean; maxEntries?: Record<string, number> } = {}): void {
  makeTable = tables;
  before(async () => {
    w = await KernelWorld.create('http', { ...more, pods: 2, http: true, rodata });
    w.put({ capture: true, acceleration: 'l7' }, [w.world.pod(0)]);
    await w.kernel.httpPrograms?.want();
    w.put({ acceleration: 'force' }, [w.world.pod(1)]);
    client = new Ends(w.world, w.world.pod(0));
    envoy = new Ends(w.world, w.world.pod(0), w.world.proxyCgroup);
    server = new Ends(w.world, w.world.pod(1));
    await envoy.do('listen', 'listener', '127.0.0.1', 15001);
    for (const port of [80, 81]) await server.do('listen', `listener${port}`, w.world.pod(1).ipv4, port);
    table = makeTable();
    tableId = w.kernel.http.tables.write('class', table);
    endings = new HttpEndingQueue({ netnsPathOf: (cookie) => w.world.pods.find(({ netnsCookie }) => netnsCookie === cookie)?.netns, proxyPid: () => envoy.pid, logger: logger('test.endings') });
    listen = () => w.kernel.http.control.listen((end) => {
      ends.push(end);
      if (act()) endings.end(end);
    });
    listen();
    startBeat();
    // The client's program is on probation first.
    await waitFor("the end of the client's probation", async () => {
      await connection();
      await client.do('send', 'c', 'x');
      await envoy.do('receive', 'd', 1);
      await closeAll();
      return w.kernel.probation().some(({ verdict }) => verdict === 'event-driven');
    }, { everyMs: 20 });
  });
  after(async () => {
    clearInterval(beat);
    for (const each of [client, envoy, server]) await each?.close();
    await w?.close();
  });
  beforeEach(async () => {
    await closeAll();
    ends.length = 0;
    w.kernel.http.control.setPod(w.world.pod(0).netnsCookie, { table: tableId, state: 'live' });
  });
}

/** However long this process has no turn. */
export function startBeat(): void {
  const tick = (): void => w.kernel.http.control.beat(true, w.kernel.http.control.lostEnds(), 3_600_000);
  tick();
  beat = setInterval(tick, 200);
}

/** This was the last one. */
export function stopBeat(): void {
  clearInterval(beat);
  w.kernel.http.control.beat(true, w.kernel.http.control.lostEnds());
}

/** The same routes as new classes. */
export async function anew(): Promise<void> {
  table = makeTable();
  tableId = w.kernel.http.tables.write('class', table);
  w.kernel.http.control.setPod(w.world.pod(0).netnsCookie, { table: tableId, state: 'live' });
}

export async function connection(): Promise<number> {
  const { port, error } = await client.do('connect', 'c', VIP, 80);
  assert.equal(error, undefined);
  await envoy.do('accept', 'd', 'listener');
  return port!;
}

const opened = new Set<string>();
export async function closeAll(): Promise<void> {
  await client.do('close', 'c').catch(() => undefined);
  await envoy.do('close', 'd').catch(() => undefined);
  for (const name of opened) {
    await envoy.do('close', `u${name}`).catch(() => undefined);
    await server.do('close', `s${name}`).catch(() => undefined);
  }
  opened.clear();
}

/** Envoy's connection to a server, and the server's end of it. */
export async function upstream(port: number, mark: number | null = TAUGHT_MARK, name = `${port}`): Promise<void> {
  const { error } = await envoy.do('connect', `u${name}`, w.world.pod(1).ipv4, port, ...(mark === null ? [] : [mark]));
  assert.equal(error, undefined);
  await server.do('accept', `s${name}`, `listener${port}`);
  opened.add(name);
}

export function lesson(of: number, clientPort: number): string {
  const { netnsCookie } = w.world.pod(0);
  return `${className(table.classes[of]!)}-${netnsCookie.toString(16).padStart(16, '0')}-${clientPort}`;
}

export const text = ({ data = '' }: Answer): string => data;

/** The first exchange of a class: by Envoy, which teaches. */
export async function taught(path: string, port: number, clientPort: number, options: { mark?: number | null; lesson?: string; connect?: boolean } = {}): Promise<void> {
  if (options.connect !== false) await upstream(port, options.mark === undefined ? TAUGHT_MARK : options.mark);
  const sent = request(path);
  await client.do('send', 'c', sent);
  const atEnvoy = text(await envoy.do('receive', 'd', sent.length + DRAWN));
  assert.match(atEnvoy, /^GET [^\r]+\r\nx-weight: 0 *\r\nx-endpoint: [\d.:]+ *\r\nHost: shop\r\n\r\n$/);
  const passedOn = `GET ${path} HTTP/1.1\r\nhost: shop\r\nx-request-id: 1\r\nx-underpass-lesson: ${options.lesson ?? lesson(port - 80, clientPort)}\r\nx-last: 1\r\n\r\n`;
  await envoy.do('send', `u${port}`, passedOn);
  const atServer = text(await server.do('receive', `s${port}`, passedOn.length));
  assert.doesNotMatch(atServer, /lesson/);
  assert.match(atServer, /^GET [^\r]+\r\nhost: shop\r\nx-request-id: 1 +\r\nx-last: 1\r\n\r\n$/);
  await server.do('send', `s${port}`, answer('taught'));
  assert.equal(text(await envoy.do('receive', `u${port}`, answer('taught').length)), answer('taught'));
  await envoy.do('send', 'd', answer('taught'));
  assert.equal(text(await client.do('receive', 'c', answer('taught').length)), answer('taught'));
}

/** An exchange that the kernel carries: Envoy has no part in it. */
export async function fast(path: string, port: number, body = 'fast'): Promise<void> {
  const { counters } = await w.counted(async () => {
    await client.do('send', 'c', request(path));
    assert.equal(text(await server.do('receive', `s${port}`, request(path).length)), request(path));
    await server.do('send', `s${port}`, answer(body));
    assert.equal(text(await client.do('receive', 'c', answer(body).length)), answer(body));
  });
  assert.deepEqual([counters['http_requests_fast'], counters['http_answers_fast']], [1, 1], JSON.stringify(counters));
}

/** A request that has to be at Envoy; answers whether the kernel told it of its draw. */
export async function byEnvoy(sent: string, back: string | null = answer('by Envoy')): Promise<boolean> {
  await client.do('send', 'c', sent);
  const got = text(await envoy.do('receive', 'd', sent.length));
  const isDrawn = got.includes('\r\nx-weight: 0 ');
  const all = isDrawn ? got + text(await envoy.do('receive', 'd', DRAWN)) : got;
  assert.equal(isDrawn ? all.slice(0, sent.indexOf('\r\n') + 2) + all.slice(sent.indexOf('\r\n') + 2 + DRAWN) : all, sent);
  if (back === null) return isDrawn;
  await envoy.do('send', 'd', back);
  assert.equal(text(await client.do('receive', 'c', back.length)), back);
  return isDrawn;
}

/** Waits until the kernel has counted so many of these. */
export async function untilEnded(count: number): Promise<void> {
  await waitFor(`${count} ends`, () => ends.length >= count, { everyMs: 10 });
  assert.equal(ends.length, count);
}
