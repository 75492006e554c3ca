/** Agents that were left behind by a lab's end: nobody holds the instance and the lab whose pods it served is gone. */
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { cleanup, instanceHolder, realCleanupParts } from '../agent/index.js';
import { errorMessage } from '../common/errors.js';
import { defaultBpffsDir } from '../common/paths.js';
import { rootLogger } from '../common/log.js';
import { liveHolder } from '../lab/lock.js';

const FILE = 'serves.json';

interface Serves {
  labSocket: string;
  bpffsDir: string;
}

/** Written beside the agent's state, so that a later clean-up knows what it belonged to. */
export function recordServes(folder: string, serves: Serves): void {
  writeFileSync(join(folder, FILE), JSON.stringify(serves), { mode: 0o600 });
}

/** The socket of the lab that this instance's agent served; undefined when none did, or it can't be read. */
export function servedLab(folder: string): string | undefined {
  try {
    return (JSON.parse(readFileSync(join(folder, FILE), 'utf8')) as Partial<Serves>).labSocket;
  } catch {
    return undefined;
  }
}

export interface OrphanReport {
  instance: string;
  /** Set when it could not be removed whole. */
  problem?: string;
}

/** Removes what such agents left at work: Envoy, pins, mounts, rules, cgroups. Instances with an agent, or a lab, stay. */
export async function cleanOrphanedAgents(runDir: string): Promise<OrphanReport[]> {
  const reports: OrphanReport[] = [];
  for (const instance of existsSync(runDir) ? readdirSync(runDir) : []) {
    const folder = join(runDir, instance);
    const file = join(folder, FILE);
    if (instance === 'lab' || !existsSync(file) || instanceHolder(folder)) continue;
    try {
      const { labSocket, bpffsDir = defaultBpffsDir } = JSON.parse(readFileSync(file, 'utf8')) as Partial<Serves>;
      if (labSocket !== undefined && liveHolder(dirname(labSocket))) continue;
      await cleanup({ runDir, bpffsDir, instance, logger: rootLogger.child({}, { level: 'warn' }) }, realCleanupParts);
      reports.push({ instance });
    } catch (error) {
      reports.push({ instance, problem: errorMessage(error) });
    }
  }
  return reports;
}
