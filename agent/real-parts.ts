/** The parts that a real node is made of. */
import { envoyBinary } from '../common/paths.js';
import type { CleanupParts } from './cleanup.js';
import { removeLinks } from './dataplane/bpffs.js';
import { Kernel } from './dataplane/kernel.js';
import { selfTest } from './dataplane/self-test.js';
import { removeSelfTestLeftovers } from './dataplane/self-test-leftovers.js';
import type { AgentParts } from './parts.js';
import { stopEnvoy } from './proxy/envoy-process.js';
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
  stopEnvoy,
};
