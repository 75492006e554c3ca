/** A pod that starts, is ready, is terminating and goes: pilot's answers against those of a recorded istiod. */
import { withoutHbone } from './testing/hbone.js';
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'pod-lifecycle', session: 'peer-v1-6d9f-hbone-delta', istiod: withoutHbone });
testScenario({ scenario: 'pod-lifecycle', session: 'ztunnel-node-1' });
