/** Connection pools and outlier detection: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'circuit-breaker', session: 'fortio-v1-6d9f-sotw' });
