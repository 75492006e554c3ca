/** What the pages may ask for. */
import { readFile, stat } from 'node:fs/promises';
import type { About } from '../../common/dashboard-views.js';
import type { Collector } from './collector.js';
import type { DashboardOptions } from './server.js';

const MAX_REPORT_BYTES = 8 << 20;

export function dashboardRoutes(collector: Collector, about: About): DashboardOptions['api'] {
  return {
    '/api/about': async () => ({ body: about }),
    '/api/graph': async () => ({ body: await collector.graph() }),
    '/api/nodes': async () => ({ body: await collector.nodes() }),
    '/api/objects': async () => ({ body: await collector.objects() }),
    '/api/object': async (query) => {
      const name = query.get('name') ?? '';
      const object = await collector.object(name);
      return object ? { body: object } : { status: 404, body: { message: `${name}: nothing of it is in any resource of the nodes` } };
    },
    '/api/report': async () => {
      if (about.report === undefined) return { status: 404, body: { message: 'there is no report: `underpass bench --html FILE` writes one, and --report FILE shows it' } };
      const { size } = await stat(about.report);
      if (size > MAX_REPORT_BYTES) return { status: 404, body: { message: `${about.report}: ${size} bytes, which is no report of the benchmark` } };
      return { contentType: 'text/plain; charset=utf-8', body: await readFile(about.report, 'utf8') };
    },
  };
}
