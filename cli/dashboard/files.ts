/** The pages: what `dashboard/` has as it is, and what the compiler made of its modules. Nothing else is ever read. */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import { projectRoot } from '../../common/paths.js';
import type { DashboardFile } from './server.js';

const AS_IS: Readonly<Record<string, { name: string; type: string }>> = {
  '/': { name: 'index.html', type: 'text/html; charset=utf-8' },
  '/style.css': { name: 'style.css', type: 'text/css; charset=utf-8' },
  '/icon.svg': { name: 'icon.svg', type: 'image/svg+xml' },
};

/** @throws UnderpassError `UNDERPASS_COMMAND_LEFT_OUT` where the pages are not */
export function dashboardFiles(): ReadonlyMap<string, DashboardFile> {
  const [written, compiled] = [join(projectRoot, 'dashboard'), join(projectRoot, 'dist', 'dashboard')];
  if (![written, compiled].every((folder) => existsSync(folder))) {
    throw new UnderpassError('UNDERPASS_COMMAND_LEFT_OUT', `underpass dashboard: its pages are not in ${written} and ${compiled}`, { hint: 'in a checkout `make build` makes them' });
  }
  const files = new Map(Object.entries(AS_IS).map(([path, { name, type }]): [string, DashboardFile] => [path, { path: join(written, name), type }]));
  for (const name of readdirSync(compiled)) if (/^[a-z-]+\.js$/.test(name)) files.set(`/${name}`, { path: join(compiled, name), type: 'text/javascript; charset=utf-8' });
  return files;
}
