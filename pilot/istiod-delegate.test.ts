/** Delegated VirtualServices: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'delegate', session: 'toolbox-v1-6d9f-sotw' });
