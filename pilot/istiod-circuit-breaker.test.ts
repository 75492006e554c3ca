/** TODO */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'circuit-breaker', session: 'fortio-v1-6d9f-sotw' });
