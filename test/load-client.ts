// Runs inside a pod: sends requests until its input ends, then tells how they went. Each request has a path of its own and
// the answer has to name it, so that an answer that went to the wrong client counts as a failure.
//   node load-client.js '{"url": "http://nginx/", "keepAlive": 4, "fresh": 2}'   a line of input: a report so far
import { Agent, request } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

export interface LoadOptions {
  url: string;
  /** Workers that keep their connection. */
  keepAlive: number;
  /** Workers that open a connection for each request. */
  fresh: number;
  headers?: Record<string, string>;
  /** Pause of each worker between two requests. */
  pauseMs?: number;
}

export interface LoadReport {
  requests: number;
  failures: Record<string, number>;
  /** By the x-version header. */
  versions: Record<string, number>;
  /** Kept connections that were opened. */
  connections: number;
  /** Of new connections: whether the answer came through Envoy. */
  fresh: { direct: number; proxied: number };
  kept: { direct: number; proxied: number };
}

const TIMEOUT_MS = 30_000;

async function main(options: LoadOptions): Promise<void> {
  const report: LoadReport = { requests: 0, failures: {}, versions: {}, connections: 0, fresh: { direct: 0, proxied: 0 }, kept: { direct: 0, proxied: 0 } };
  const count = (table: Record<string, number>, key: string): void => void (table[key] = (table[key] ?? 0) + 1);
  let ended = false;
  const one = (agent: Agent | false, path: string): Promise<void> =>
    new Promise((resolve) => {
      const fail = (reason: string): void => {
        count(report.failures, reason);
        resolve();
      };
      const url = new URL(path, options.url);
      const outgoing = request(url, { agent, headers: options.headers ?? {}, timeout: TIMEOUT_MS }, (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => (body += chunk));
        response.once('error', (error) => fail(`answer: ${error.message}`));
        response.once('end', () => {
          report.requests++;
          if (response.statusCode !== 200) return fail(`status ${response.statusCode}: ${body.slice(0, 400)}`);
          if (!body.includes(`"path":"${path}"`)) return fail(`answer to another request: ${body.slice(0, 120)}`);
          const way = response.headers['x-envoy-upstream-service-time'] !== undefined || response.headers.server?.includes('envoy') ? 'proxied' : 'direct';
          report[agent ? 'kept' : 'fresh'][way]++;
          count(report.versions, String(response.headers['x-version']));
          resolve();
        });
      });
      outgoing.once('timeout', () => outgoing.destroy(new Error(`no answer within ${TIMEOUT_MS} ms`)));
      outgoing.once('error', (error: NodeJS.ErrnoException) => fail(error.code ?? error.message));
      outgoing.end();
    });
  const worker = async (number: number, keep: boolean): Promise<void> => {
    const agent = keep ? new Agent({ keepAlive: true, maxSockets: 1 }) : false;
    if (agent) {
      const connect = agent.createConnection.bind(agent);
      agent.createConnection = ((...args: Parameters<typeof connect>) => {
        report.connections++;
        return connect(...args);
      }) as typeof connect;
    }
    for (let sent = 0; !ended; sent++) {
      await one(agent, `/r${process.pid}-${number}-${sent}`);
      await sleep(options.pauseMs ?? 2);
    }
    if (agent) agent.destroy();
  };
  const workers = Array.from({ length: options.keepAlive + options.fresh }, (_, number) => worker(number, number < options.keepAlive));
  const input = createInterface({ input: process.stdin });
  input.on('line', () => console.log(JSON.stringify(report)));
  input.once('close', () => (ended = true));
  await Promise.all(workers);
  console.log(JSON.stringify(report));
}

await main(JSON.parse(process.argv[2] ?? '{}') as LoadOptions);
