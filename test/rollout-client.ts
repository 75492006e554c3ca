// The program of a pod that is replaced: requests all the time, also during its grace period, as programs do that finish
// their work after SIGTERM. Writes what it saw, then ends.
//   node rollout-client.js <url> <folder>
import { writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface RolloutReport {
  before: number;
  /** Requests after SIGTERM, and how many of them came through Envoy. */
  after: number;
  afterProxied: number;
  failures: string[];
}

/** The lab gives a program two seconds. */
const GOES_ON_MS = 1_500;
const TIMEOUT_MS = 5_000;

const [url = '', folder = ''] = process.argv.slice(2);
const report: RolloutReport = { before: 0, after: 0, afterProxied: 0, failures: [] };
let terminated = 0;
process.once('SIGTERM', () => (terminated = performance.now()));

function one(agent: Agent | false): Promise<void> {
  return new Promise((resolve) => {
    const begun = terminated;
    const outgoing = request(url, { agent, timeout: TIMEOUT_MS }, (response) => {
      response.resume();
      response.once('end', () => {
        const proxied = response.headers['x-envoy-upstream-service-time'] !== undefined || response.headers.server?.includes('envoy') === true;
        // A kept connection from before the pod was enrolled goes its own way for ever: the next one is opened anew.
        if (agent && !proxied) agent.destroy();
        if (response.statusCode !== 200) report.failures.push(`status ${response.statusCode}`);
        else if (begun === 0) report.before++;
        else {
          report.after++;
          if (proxied) report.afterProxied++;
        }
        resolve();
      });
    });
    outgoing.once('timeout', () => outgoing.destroy(new Error('no answer')));
    outgoing.once('error', (error: NodeJS.ErrnoException) => {
      report.failures.push(`${begun === 0 ? 'before' : `${Math.round(performance.now() - begun)} ms after`} SIGTERM: ${error.code ?? error.message}`);
      resolve();
    });
    outgoing.end();
  });
}

async function worker(agent: Agent | false): Promise<void> {
  while (terminated === 0 || performance.now() - terminated < GOES_ON_MS) {
    await one(agent);
    await sleep(3);
  }
  if (agent) agent.destroy();
}

await Promise.all([worker(new Agent({ keepAlive: true, maxSockets: 1 })), worker(false), worker(false)]);
writeFileSync(join(folder, `${hostname()}.json`), JSON.stringify(report));
