/** What an agent that is a pod of a DaemonSet does besides: it tells probes whether it is ready, and cleans up its node when it is uninstalled. */
import { rmSync, writeFileSync } from 'node:fs';
import { instanceHolder } from '../agent/index.js';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { isRefusal, KubeApiError, resourceOf, type KubeClient } from '../common/kube/client.js';
import type { KubeObject } from '../common/kube/types.js';
import type { Closable } from '../common/lifecycle.js';
import type { Logger } from '../common/log.js';
import { Backoff, sleep } from '../common/retry.js';

const DAEMON_SETS = resourceOf('apps/v1', 'DaemonSet');
const LOOK_MS = 1_000;
/** A part of the time that kubelet leaves a pod to end in. */
const ASK_MS = 10_000;

/**
 * A file that is there while something is so, and is written anew every second: the file of a process that hangs grows old.
 * A port would be the node's, where two agents can't both have it.
 */
export class ProbeFile implements Closable {
  readonly #timer: NodeJS.Timeout;

  constructor(readonly path: string, readonly isSo: () => boolean, readonly logger: Logger) {
    rmSync(path, { force: true });
    this.#look();
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
  }

  #look(): void {
    try {
      if (this.isSo()) writeFileSync(this.path, `${new Date().toISOString()}\n`, { mode: 0o644 });
      else rmSync(this.path, { force: true });
    } catch (error) {
      this.logger.warn({ file: this.path, reason: errorMessage(error) }, 'a file for probes can\'t be written');
    }
  }

  close(): void {
    clearInterval(this.#timer);
    rmSync(this.path, { force: true });
  }
}

/** Whether the agent is ready, or waits for another one of its instance to end: that one is only asked to end when its successor is ready. */
export function readiness(agent: { folder: string; isReady: boolean }): () => boolean {
  return () => {
    const holder = instanceHolder(agent.folder);
    return holder !== undefined && (holder.pid !== process.pid || agent.isReady);
  };
}

/** @throws UnderpassError `UNDERPASS_BAD_OPTION` unless it is namespace/name */
export function parseDaemonSet(text: string): { namespace: string; name: string } {
  const [namespace, name, ...more] = text.split('/');
  if (!namespace || !name || more.length > 0) throw new UnderpassError('UNDERPASS_BAD_OPTION', `--daemonset: found ${JSON.stringify(text)}, expected namespace/name`);
  return { namespace, name };
}

/**
 * Whether this DaemonSet is gone or about to go.
 * @returns undefined while the API server gives no answer, or does not let this agent ask: an upgrade must not take anything
 * away, and nobody may believe that this node is clean
 */
export async function isUninstalled(client: KubeClient, place: { namespace: string; name: string }, logger: Logger, askMs = ASK_MS): Promise<boolean | undefined> {
  const end = AbortSignal.timeout(askMs);
  const backoff = new Backoff();
  for (;;) {
    try {
      const { metadata } = await client.get<KubeObject>(DAEMON_SETS, place, end);
      return metadata.deletionTimestamp !== undefined;
    } catch (error) {
      // Also who does not know DaemonSets says 404: a proxy before the API server, or one that is starting.
      if (isRefusal(error, 404) && (error as KubeApiError).about.kind === DAEMON_SETS.plural && (error as KubeApiError).about.name === place.name) return true;
      const isFinal = error instanceof KubeApiError && error.status < 500 && ![404, 429].includes(error.status);
      if (isFinal || end.aborted) {
        logger.warn({ daemonset: `${place.namespace}/${place.name}`, reason: errorMessage(error) }, 'not known whether this agent is uninstalled: it leaves Envoy and the kernel at work');
        return undefined;
      }
      await sleep(backoff.next(), end).catch(() => undefined);
    }
  }
}
