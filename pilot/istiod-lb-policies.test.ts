/** Consistent hashing, warm-up, locality failover and distribution: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'lb-policies', session: 'toolbox-v1-6d9f-hbone-delta' });
