/** All programs at once for a while, some of them rude, with another route every few seconds; and what is left of it when they are gone. */
import { setTimeout as sleep } from 'node:timers/promises';
import { waitFor } from '../../../common/retry.js';
import { tcpSockets } from '../../../native/index.js';
import { wasFast } from './plan.js';
import { ended, type HttpPrograms } from './world.js';

export interface Soaked {
  seconds: number;
  requests: number;
  fast: number;
  wrong: string[];
  routeChanges: number;
  /** Connections of the clients that end in the middle of exchanges aren't counted, but they were there. */
  rudeRequests: number;
  /** Of the kernel's maps, while it ran at most, and in the end. */
  entries: { most: Record<string, number>; left: Record<string, number> };
  /** Connections at each server, Envoy's pool, in the end. */
  serversConnections: Record<string, number>;
  counters: Record<string, number>;
  fastPath: { cutDrains: number; lostEnds: number; upstreamsEnded: number; endings: unknown };
}

const PLAN = 150;
const CHANGE_EVERY_MS = 3_000;
const LEFT_TIMEOUT_MS = 20_000;

/** Which of two servers `both` is, by weight. */
const route = (node: number): string => `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: both, namespace: fast}
spec: {host: both, subsets: [{name: node, labels: {version: node}}, {name: asyncio, labels: {version: asyncio}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: both, namespace: fast}
spec:
  hosts: [both]
  http: [{route: [{destination: {host: both, subset: node}, weight: ${node}}, {destination: {host: both, subset: asyncio}, weight: ${100 - node}}]}]
`;
const WEIGHTS = [100, 50, 0, 90];

/** @param say is told how it stands, every now and then */
export async function soak(programs: HttpPrograms, seconds: number, say: (text: string) => void = () => undefined): Promise<Soaked> {
  const { world, battery } = programs;
  await world.apply('mesh', route(50));
  await programs.live();
  const before = await programs.counters();
  const until = performance.now() + seconds * 1_000;
  const soaked: Soaked = { seconds, requests: 0, fast: 0, wrong: [], routeChanges: 0, rudeRequests: 0, entries: { most: {}, left: {} }, serversConnections: {}, counters: {}, fastPath: { cutDrains: 0, lostEnds: 0, upstreamsEnded: 0, endings: {} } };
  const loop = async (body: (turn: number) => Promise<void>): Promise<void> => {
    for (let turn = 0; performance.now() < until; turn++) await body(turn);
  };
  const clients = Object.entries(battery.clients).map(([client, { proxy }], index) => loop(async (turn) => {
    const servers = proxy ? ['node', 'nginx', 'asyncio'] : ['both', 'nginx', 'both', 'gunicorn-gevent', 'both', 'threads'];
    const server = servers[(turn + index) % servers.length]!;
    const plan = programs.plan(server === 'threads' ? 30 : PLAN);
    const { reports, wrong } = await programs.work(client, server, plan);
    soaked.requests += plan.length;
    soaked.fast += reports.filter(wasFast).length;
    soaked.wrong.push(...wrong.map((text) => `${client} with ${server}: ${text}`));
  }));
  const wrk = loop(async () => {
    const { right, wrong, errors, fast, said } = await programs.wrk('both', 2);
    soaked.requests += right + wrong + errors;
    soaked.fast += fast;
    if (wrong + errors > 0) soaked.wrong.push(`wrk: ${wrong} wrong, ${errors} errors: ${said}`);
  });
  const rude = loop(async (turn) => {
    const plan = programs.plan(PLAN);
    await programs.run('c-rude', programs.argv('rude', `http://${['both', 'nginx'][turn % 2]}`, programs.planFile(plan), 4));
    soaked.rudeRequests += plan.length;
  });
  const changes = loop(async (turn) => {
    await sleep(CHANGE_EVERY_MS);
    await world.apply('mesh', route(WEIGHTS[turn % WEIGHTS.length]!));
    soaked.routeChanges++;
    for (const [map, count] of Object.entries(await programs.entries())) soaked.entries.most[map] = Math.max(count, soaked.entries.most[map] ?? 0);
    if (turn % 10 === 9) say(`${soaked.requests} requests, ${soaked.fast} of them fast, ${soaked.wrong.length} wrong; ${JSON.stringify(soaked.entries.most)}`);
  });
  await Promise.all([...clients, wrk, rude, changes]);
  await programs.live();
  for (const child of programs.proxies) await ended(child);
  await waitFor('nothing to be left in the kernel', async () => {
    soaked.entries.left = await programs.entries();
    return Object.values(soaked.entries.left).every((count) => count === 0);
  }, { timeoutMs: LEFT_TIMEOUT_MS, everyMs: 200 }).catch(() => undefined);
  for (const name of Object.keys(battery.servers)) {
    soaked.serversConnections[name] = (await tcpSockets(world.lab.pod('fast', `s-${name}`).netns)).filter(({ listening, localPort }) => !listening && localPort === 8080).length;
  }
  const after = await programs.counters();
  for (const [name, value] of Object.entries(after)) if (name.startsWith('http_') && value !== before[name]) soaked.counters[name] = value - (before[name] ?? 0);
  const { cutDrains, lostEnds, upstreamsEnded, endings } = await programs.fastPath();
  soaked.fastPath = { cutDrains, lostEnds, upstreamsEnded, endings };
  return soaked;
}
