/** The parts that a real node is made of. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { errorCode } from '../common/errors.js';
import { envoyBinary } from '../common/paths.js';
import { isRunning, type ProcessId } from '../common/process-id.js';
import { waitFor } from '../common/retry.js';
import type { CleanupParts } from './cleanup.js';
import { removeLinks } from './dataplane/bpffs.js';
import { Kernel } from './dataplane/kernel.js';
import { selfTest } from './dataplane/self-test.js';
import { removeSelfTestLeftovers } from './dataplane/self-test-leftovers.js';
import type { AgentParts } from './parts.js';
import { NodeProxy } from './proxy/node-proxy.js';

export const realParts: AgentParts = {
  openKernel: (options) => Kernel.open(options),
  detachKernel: ({ bpffsDir, instance }) => removeLinks(bpffsDir, instance),
  selfTest: async (logger) => {
    await removeSelfTestLeftovers();
    return selfTest(logger);
  },
  createProxy: (options) => new NodeProxy({ ...options, envoyPath: envoyBinary() }),
};

export const realCleanupParts: CleanupParts = {
  cleanKernel: async (options) => {
    Kernel.cleanup(options);
    await removeSelfTestLeftovers();
  },
  stopEnvoy: async (folder) => {
    let state: ProcessId;
    try {
      state = JSON.parse(readFileSync(join(folder, 'envoy.state.json'), 'utf8')) as ProcessId;
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return;
      throw error;
    }
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      if (!isRunning(state)) return;
      process.kill(state.pid, signal);
      await waitFor(`Envoy ${state.pid} to end`, () => !isRunning(state), { timeoutMs: 5_000, everyMs: 20 }).catch(() => undefined);
    }
  },
};
