/** The parts of the HTTP fast path that belong to an agent, put together. */
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { HttpEndingQueue, type HttpEndings } from '../dataplane/http-endings.js';
import { HttpOrphans } from '../dataplane/http-orphans.js';
import type { HttpEnd, HttpUpstreams, KernelHttpControl } from '../dataplane/kernel-http-control.js';
import type { HttpTables, HttpTablesStatus } from '../dataplane/kernel-http.js';
import type { HttpRequests } from '../dataplane/kernel-http-totals.js';
import type { KernelPod } from '../dataplane/kernel.js';
import { FastPath, type FastPathStatus } from './fast-path.js';
import { endpointKey } from '../proxy/pool-renewal.js';
import { explainHttp, isClusterOf, type ExplainedHttp } from './explain-http.js';
import type { HttpTable } from './table.js';
import { TaughtTables, type TableStore } from './taught-tables.js';

/** Envoy's own time for connections that are idle, which it is not to count by itself; and how often such are looked for. */
const IDLE_MS = 3_600_000;
const IDLE_EVERY_MS = 300_000;

export interface HttpKernel {
  readonly control: KernelHttpControl;
  readonly tables: TableStore & Pick<HttpTables, 'status'> & { readonly outliers: Pick<HttpTables['outliers'], 'status' | 'ejection'> };
  readonly totals: HttpRequests;
  /** Of an agent with maps of another layout. */
  readonly former?: { orphans(): bigint[] } | undefined;
}

export interface AgentFastPathOptions {
  kernel: HttpKernel;
  pods(): readonly KernelPod[];
  netnsPath(uid: string): string;
  proxyPid(): number | undefined;
  problem(): string | undefined;
  requestIds(uid: string): boolean;
  on: boolean;
  logger: Logger;
}

export interface AgentFastPathStatus extends FastPathStatus {
  endings: HttpEndings;
  /** Upstream connections that were ended since their client was gone. */
  upstreamsEnded: number;
  upstreams: HttpUpstreams;
  tables: HttpTablesStatus;
}

export class AgentFastPath implements Closable {
  readonly tables: TaughtTables;
  readonly repeater: FastPath<HttpTable>;
  readonly #kernel: HttpKernel;
  readonly #endings: HttpEndingQueue;
  readonly #orphans: HttpOrphans;
  readonly #idleTimer: NodeJS.Timeout;

  constructor({ kernel, pods, netnsPath, proxyPid, problem, requestIds, on, logger }: AgentFastPathOptions) {
    this.#kernel = kernel;
    this.tables = new TaughtTables(kernel.tables);
    this.#endings = new HttpEndingQueue({
      netnsPathOf: (cookie) => {
        const uid = pods().find(({ netnsCookie }) => netnsCookie === cookie)?.uid;
        return uid === undefined ? undefined : netnsPath(uid);
      },
      proxyPid, logger,
    });
    kernel.control.listen(this.#endings.end, ({ monitor, reason }) => {
      const { address, port, ...ejection } = kernel.tables.outliers.ejection(monitor) ?? {};
      if (address !== undefined) logger.warn({ ...ejection, endpoint: endpointKey(address, port!), reason }, 'an endpoint is ejected: no request is drawn for it for a while');
    });
    const end = (what: string, ends: () => HttpEnd[]): void => {
      try {
        for (const each of ends()) this.#endings.end(each);
      } catch (error) {
        logger.warn({ reason: errorMessage(error) }, `connections ${what} can not be looked for: they stay`);
      }
    };
    // Those that a former agent did not come to, too.
    end('that are to end', () => kernel.control.untoldEnds(true));
    this.#idleTimer = setInterval(() => {
      end('that are idle', () => {
        kernel.control.forgetGone();
        return kernel.control.idleClients(IDLE_MS);
      });
    }, IDLE_EVERY_MS);
    this.#orphans = new HttpOrphans({ orphans: () => [...kernel.control.orphans(), ...(kernel.former?.orphans() ?? [])], pods, netnsPath, proxyPid, logger });
    this.repeater = new FastPath({ kernel: kernel.control, pods, tables: this.tables, problem, requestIds, onLost: () => end('that are to end', () => kernel.control.untoldEnds()), on, logger });
  }

  get status(): AgentFastPathStatus {
    return { ...this.repeater.status, endings: { ...this.#endings.count }, upstreamsEnded: this.#orphans.ended, upstreams: this.#kernel.control.upstreams(), tables: this.#kernel.tables.status };
  }

  /** @param hostnames of the services at these addresses */
  explain(uid: string, addresses: readonly string[], port: number, hostnames: readonly string[]): ExplainedHttp {
    const { classKey, reason } = this.repeater.stateOf(uid);
    const table = classKey === undefined ? undefined : this.tables.table(classKey);
    const ejected = this.#kernel.tables.outliers.status.clusters.filter((each) => each.class === classKey && isClusterOf(each.cluster, port, hostnames)).flatMap(({ cluster, ejected: endpoints }) => endpoints.map((each) => ({ cluster, ...each })));
    return { isLive: reason === undefined, ...(reason === undefined ? {} : { reason }), routes: table ? explainHttp(table, addresses, port, hostnames) : [], ejected };
  }

  async close(): Promise<void> {
    this.repeater.close();
    clearInterval(this.#idleTimer);
    await this.#orphans.close();
  }
}
