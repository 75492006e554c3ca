/** `make soak`: see soak.ts; writes docs/results/soak.md. */
import { writeFileSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { projectRoot } from '../../../common/paths.js';
import { soak } from './soak.js';
import { HttpPrograms } from './world.js';

const seconds = Number(process.argv[2] || 600);
if (!(seconds >= 1)) throw new Error(`soak: seconds have to be a number from 1 on, not ${process.argv[2]}`);

const programs = new HttpPrograms('soak');
try {
  await programs.up();
  const soaked = await soak(programs, seconds, (text) => console.log(text));
  for (const text of soaked.wrong.slice(0, 50)) console.log(text);
  const row = (name: string, value: unknown): string => `| ${name} | ${typeof value === 'number' ? value.toLocaleString('en') : String(value)} |`;
  const list = (of: Record<string, unknown>): string => Object.entries(of).map(([name, value]) => `\`${name}\` ${String(value)}`).join(', ');
  const leaked = Object.values(soaked.entries.left).some((count) => count !== 0);
  writeFileSync(join(projectRoot, 'docs', 'results', 'soak.md'), `# Real programs through the HTTP fast path, for a while
\`make soak SOAK_SECONDS=${seconds}\`, ${new Date().toISOString().slice(0, 10)}, Linux ${release()}. curl, Node's http and fetch, Python's http.client and asyncio, wrk, nginx and HAProxy as proxies, all at once, with servers in Node, asyncio, nginx, gunicorn (gevent) and a threaded one; each answer compared with its request; another route three seconds after the one before was in force; a client that goes away in the middle of its exchanges.

| | |
|---|---|
${[row('requests whose answers were compared', soaked.requests), row('of these without Envoy', soaked.fast), row('wrong, failed or late', soaked.wrong.length), row('requests of the client that goes away', soaked.rudeRequests), row('changes of the route', soaked.routeChanges), row('entries of the kernel\'s maps, at most', list(soaked.entries.most)), row('and when the clients were gone', list(soaked.entries.left)), row('connections at the servers in the end', list(soaked.serversConnections)), row('ends that the ring buffer had no room for', soaked.fastPath.lostEnds), row('changes that did not wait for all that was under way', soaked.fastPath.cutDrains), row('upstream connections ended as their client was gone', soaked.fastPath.upstreamsEnded), row('connections ended by the agent', list(soaked.fastPath.endings as Record<string, unknown>))].join('\n')}

The kernel's counters: ${list(soaked.counters)}.

What they say of requests that were not fast: \`http_switched_off\`, the agent had no turn for a second; \`http_pod_off\`, routes were being changed; \`http_body\`, chunked or long ones; \`http_not_learnt\`, the first ones of a connection to each server after each change. And of connections that are Envoy's for good: \`http_lost_doubt\`, heads that the client that goes away did not send whole; \`http_lost_close\`, an answer of Envoy's with \`Connection: close\`, which is what fetch asks for with each HEAD, and what Envoy says where a listener changes, as when two classes of pods are told of a change more than 400 ms after one another; \`http_lost_answer\`, an answer of Envoy's whose end can't be told. The former two were one counter once: in a traced run of 40 s (39,416 requests) all 221 of it were answers with \`Connection: close\`, none had a head in pieces or another doubt.
`);
  console.log(`${soaked.requests} requests, ${soaked.fast} of them fast, ${soaked.wrong.length} wrong, left: ${JSON.stringify(soaked.entries.left)}`);
  if (soaked.wrong.length > 0 || leaked) process.exitCode = 1;
} finally {
  await programs.down();
}
