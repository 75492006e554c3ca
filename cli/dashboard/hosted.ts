/** The dashboard of one node, served by its agent itself: the same pages and the same server as those of `underpass dashboard`. */
import { askAgent, type AdminAnswer, type AdminRoutes } from '../../agent/client.js';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { Backoff, sleep } from '../../common/retry.js';
import { VERSION } from '../../common/version.js';
import { Collector } from './collector.js';
import { dashboardFiles } from './files.js';
import { dashboardRoutes } from './routes.js';
import { DashboardServer } from './server.js';

const EVERY_MS = 1_000;
const RETRY = { initialMs: 500, maxMs: 5_000, factor: 2, jitter: 0.2 };

export interface HostedOptions {
  /** Of 127.0.0.1; 0: any that is free. */
  port: number;
  node: string;
  /** The agent's own, whose answers are what is shown. */
  adminSocket: string;
  logger: Logger;
}

export class HostedDashboard implements Closable {
  readonly #options: HostedOptions;
  readonly #abort = new AbortController();
  readonly #collector: Collector;
  #server: DashboardServer | undefined;
  #problem = 'not yet';
  readonly #listening: Promise<void>;

  constructor(options: HostedOptions) {
    const { node, adminSocket } = (this.#options = options);
    this.#collector = new Collector({ everyMs: EVERY_MS, agents: [{ node, place: `socket ${adminSocket}`, ask: (path, ask) => askAgent(adminSocket, path, ask) }] });
    this.#listening = this.#listen();
  }

  /** The address has the token: it is told on the admin socket, which is root's, and nowhere else. */
  readonly routes: AdminRoutes = {
    '/v1/dashboard': (): AdminAnswer => (this.#server ? { body: { address: this.#server.address } } : { status: 503, body: { message: `--dashboard-port ${this.#options.port}: nobody is served there: ${this.#problem}` } }),
  };

  async close(): Promise<void> {
    this.#abort.abort();
    await this.#listening;
    await this.#server?.close();
    await this.#collector.close();
  }

  /** A port that somebody else has is no reason to leave a node without its agent. */
  async #listen(): Promise<void> {
    const { port, node, logger } = this.#options;
    const backoff = new Backoff(RETRY);
    while (!this.#abort.signal.aborted) {
      try {
        const about = { version: VERSION, place: `the agent of node ${node}`, everySeconds: EVERY_MS / 1_000 };
        this.#server = await DashboardServer.listen({ port, files: dashboardFiles(), api: dashboardRoutes(this.#collector, about) });
        logger.info({ address: this.#server.origin }, 'the dashboard is served, to who has its token: `underpass dashboard --of-agent`');
        return;
      } catch (error) {
        const problem = errorMessage(error);
        if (problem !== this.#problem) logger.warn({ port, reason: problem }, '--dashboard-port: nobody can be served there; it is tried again');
        this.#problem = problem;
      }
      await sleep(backoff.next(), this.#abort.signal).catch(() => undefined);
    }
  }
}
