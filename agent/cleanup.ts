/** Takes back everything that an instance's agents ever pinned, mounted, attached or wrote, also after a crash. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorMessage } from '../common/errors.js';
import type { Logger } from '../common/log.js';
import { cgroup2Root, removeCgroup } from '../common/cgroup.js';
import { instanceCgroup, instancePaths } from './instance.js';
import { InstanceLock } from './admin/lock.js';
import { PinnedNamespaces } from './dataplane/namespaces.js';

export interface CleanupParts {
  cleanKernel(options: { bpffsDir: string; instance: string }): void | Promise<void>;
  /** Ends the Envoy whose state is in this folder; resolves when it is gone. */
  stopEnvoy(folder: string): Promise<void>;
}

export interface CleanupOptions {
  runDir?: string;
  bpffsDir?: string;
  instance?: string;
  /** Callers of these pods are told that mutual TLS is over, and have heard of it; nobody is told by default. */
  withdrawAnnouncements?: (uids: ReadonlySet<string>) => Promise<void>;
  logger: Logger;
}

/**
 * New connections go their plain way first, then Envoy ends. Goes on after a failure and reports all of them at the end.
 * @throws UnderpassError `UNDERPASS_AGENT_HELD` when an agent runs, `UNDERPASS_CLEANUP` naming what is left
 */
export async function cleanup(options: CleanupOptions, parts: CleanupParts): Promise<void> {
  const paths = instancePaths(options);
  const hadFolder = existsSync(paths.folder);
  const lock = InstanceLock.acquire(paths.folder, paths.instance, 'underpass agent --cleanup');
  const failures: string[] = [];
  const step = async (what: string, action: () => void | Promise<void>): Promise<void> => {
    try {
      await action();
    } catch (error) {
      failures.push(`${what}: ${errorMessage(error)}`);
    }
  };
  try {
    const { withdrawAnnouncements } = options;
    if (withdrawAnnouncements && existsSync(paths.netnsFolder)) await step('labels and annotations of pods', () => withdrawAnnouncements(new Set(new PinnedNamespaces(paths.netnsFolder).pinned())));
    await step('BPF links and maps', () => parts.cleanKernel({ bpffsDir: paths.bpffsDir, instance: paths.instance }));
    if (existsSync(paths.netnsFolder)) {
      const namespaces = new PinnedNamespaces(paths.netnsFolder);
      for (const uid of namespaces.pinned()) await step(`iptables rules of pod ${uid}`, async () => {
        await namespaces.inboundRules(namespaces.path(uid)).remove();
        await namespaces.rules(namespaces.path(uid)).remove();
      });
      if (hadFolder) await step('Envoy', () => parts.stopEnvoy(paths.folder));
      for (const uid of namespaces.pinned()) await step(`pinned namespace of pod ${uid}`, () => namespaces.unpin(uid));
    } else if (hadFolder) await step('Envoy', () => parts.stopEnvoy(paths.folder));
    await step('cgroup', () => removeCgroup(instanceCgroup(paths.instance)));
    await step('run-time folder', () => {
      for (const name of readdirSync(paths.folder)) if (!name.startsWith('agent.lock')) rmSync(join(paths.folder, name), { recursive: true, force: true });
    });
  } finally {
    lock.close();
    if (failures.length === 0) rmSync(paths.folder, { recursive: true, force: true });
  }
  if (failures.length > 0) {
    throw new UnderpassError('UNDERPASS_CLEANUP', `cleaning up instance ${paths.instance}: ${failures.join('; ')}`);
  }
  options.logger.info({ instance: paths.instance, cgroup2: cgroup2Root() }, 'nothing of this instance is left');
}
