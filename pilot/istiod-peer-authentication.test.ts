/** PeerAuthentications of every scope over five steps: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

for (const session of ['httpbin-v1-6d9f-hbone-delta', 'toolbox-v1-6d9f-hbone-delta', 'ztunnel-node-1']) testScenario({ scenario: 'peer-authentication', session });
