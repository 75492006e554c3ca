/** Time-outs, retries, faults over six steps: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'timeout-retry-fault', session: 'toolbox-v1-6d9f-hbone-delta' });
