import { UnderpassError } from '../common/errors.js';
import type { CleanupParts } from './cleanup.js';
import type { AgentParts } from './parts.js';

const absent = (what: string): never => {
  throw new UnderpassError('UNDERPASS_NOT_BUILT', `${what} is not part of this build`);
};

export const realParts: AgentParts = {
  openKernel: async () => absent('the kernel side'),
  selfTest: async () => absent('the self-test'),
  createProxy: () => absent('the proxy'),
};

export const realCleanupParts: CleanupParts = { cleanKernel: () => undefined, stopEnvoy: () => Promise.resolve() };
