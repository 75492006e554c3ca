/** Helm and the chart, for tests that install it. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildDir, projectRoot } from '../../common/paths.js';
import { run, type RunResult } from '../../common/process.js';

export const HELM = join(buildDir, 'kube', 'helm');
export const CHART = join(projectRoot, 'deploy', 'helm', 'underpass');

/** @param folder for what Helm keeps */
export const helmOf = (folder: string) => (...args: string[]): Promise<RunResult> => run(HELM, args, { okCodes: [0, 1], timeoutMs: 280_000, env: { ...process.env, HELM_CACHE_HOME: folder, HELM_CONFIG_HOME: folder, HELM_DATA_HOME: folder } });

/** The chart for the API server that is built here, which does not say of which version it is. @returns its folder */
export function chartFor(folder: string): string {
  const chart = join(folder, 'chart');
  cpSync(CHART, chart, { recursive: true });
  writeFileSync(join(chart, 'Chart.yaml'), readFileSync(join(CHART, 'Chart.yaml'), 'utf8').replace(/^kubeVersion.*\n/m, ''));
  return chart;
}
