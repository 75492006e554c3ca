/**
 * The ends of the logs of the agents' and the control plane's containers, by the API server. That needs, beside what reaching agents
 * does, `get` of pods/log in the agents' namespace, and `list` of pods and `get` of pods/log in the mesh's root namespace.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errorMessage } from '../common/errors.js';
import { resourceOf, resourcePath, type KubeClient } from '../common/kube/client.js';
import type { KubeObject } from '../common/kube/types.js';
import { redactText } from './envoy/config.js';
import { AGENT, AGENT_NAMESPACE, ROOT_NAMESPACE } from './install/rbac.js';
import { PILOT } from './install/pilot-objects.js';

/** Of one container, each of its current log and that of the run before. */
const MOST_LINES = 10_000;
const MOST_BYTES = 4 * 1024 * 1024;
/** Of all of them. */
const MOST_LOGS = 200;
const ANSWER_MS = 30_000;

interface LoggedPod extends KubeObject {
  spec?: { nodeName?: string; containers?: { name: string }[]; initContainers?: { name: string }[] };
  status?: { containerStatuses?: { name: string; restartCount?: number }[] };
}

/** @param node of agents, that one's alone @returns what could not be had; the rest is there */
export async function gatherLogs(client: KubeClient, root: string, node?: string): Promise<string[]> {
  const problems: string[] = [];
  let left = MOST_LOGS;
  for (const [namespace, selector] of [[AGENT_NAMESPACE, `app=${AGENT}`], [ROOT_NAMESPACE, `app in (${PILOT},istiod)`]] as const) {
    try {
      const { items = [] } = await client.request<{ items?: LoggedPod[] }>('GET', `${resourcePath(resourceOf('v1', 'Pod'), { namespace })}?${new URLSearchParams({ labelSelector: selector }).toString()}`);
      for (const pod of items) {
        if (namespace === AGENT_NAMESPACE && node !== undefined && pod.spec?.nodeName !== node) continue;
        for (const { container, previous } of logsOf(pod)) {
          if (left-- <= 0) {
            problems.push(`logs: more than ${MOST_LOGS} were asked for, the others are left out`);
            return problems;
          }
          problems.push(...(await gatherLog(client, join(root, 'logs'), { namespace, name: pod.metadata.name, container, previous })));
        }
      }
    } catch (error) {
      problems.push(`logs of namespace ${namespace}: ${errorMessage(error)}; it needs list of pods and get of pods/log there`);
    }
  }
  return problems;
}

function logsOf({ spec = {}, status = {} }: LoggedPod): { container: string; previous: boolean }[] {
  return [...(spec.initContainers ?? []), ...(spec.containers ?? [])].flatMap(({ name: container }) => {
    const restarts = status.containerStatuses?.find(({ name }) => name === container)?.restartCount ?? 0;
    return [{ container, previous: false }, ...(restarts > 0 ? [{ container, previous: true }] : [])];
  });
}

async function gatherLog(client: KubeClient, folder: string, { namespace, name, container, previous }: { namespace: string; name: string; container: string; previous: boolean }): Promise<string[]> {
  const query = new URLSearchParams({ container, tailLines: String(MOST_LINES), limitBytes: String(MOST_BYTES), timestamps: 'true', ...(previous ? { previous: 'true' } : {}) });
  try {
    const text = await bounded(client, `${resourcePath(resourceOf('v1', 'Pod'), { namespace, name })}/log?${query.toString()}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `${namespace}_${name}_${container}${previous ? '_previous' : ''}.log`.replace(/[^\w.-]/g, '_')), redactText(text));
    return [];
  } catch (error) {
    return [`log of pod ${namespace}/${name}, container ${container}${previous ? ', the run before' : ''}: ${errorMessage(error)}`];
  }
}

/** A server may give more than it was asked for. */
async function bounded(client: KubeClient, path: string): Promise<string> {
  const limit = AbortSignal.timeout(ANSWER_MS);
  const response = await client.stream(path, limit);
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of response) {
    parts.push(part as Buffer);
    bytes += (part as Buffer).length;
    // Breaking out of it ends the answer.
    if (bytes >= MOST_BYTES) break;
  }
  return Buffer.concat(parts).subarray(0, MOST_BYTES).toString('utf8');
}
