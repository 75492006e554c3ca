/** Pilot as it reads a real API server: with the service account and the rights that the manifest in deploy/ gives it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import { projectRoot } from '../../common/paths.js';
import { Pilot, type PilotOptions } from '../../pilot/index.js';
import type { KubeCluster } from './cluster.js';

export const PILOT_USER = 'system:serviceaccount:istio-system:istiod';

export interface KubePilot {
  pilot: Pilot;
  /** All that was logged, a line an entry. */
  log: string[];
}

/** The namespace istio-system, pilot's account and its rights. @returns a kubeconfig with a token of that account */
export async function pilotKubeconfig(cluster: KubeCluster): Promise<string> {
  await cluster.namespace('istio-system');
  await cluster.apply(readFileSync(join(projectRoot, 'deploy', 'pilot-rbac.yaml'), 'utf8'));
  return cluster.kubeconfigOf('istio-system', 'istiod');
}

export async function startPilot(kubeconfig: string, options: Partial<PilotOptions> = {}): Promise<KubePilot> {
  const log: string[] = [];
  const logger = pino({ level: 'info' }, { write: (line: string) => void log.push(line) });
  const apiServer = parseKubeconfig(kubeconfig, { place: 'of the test' });
  const pilot = new Pilot({ sources: [], apiServer, listen: ['127.0.0.1:0'], logger, debounce: { quietMs: 20 }, ...options });
  await pilot.start();
  return { pilot, log };
}
