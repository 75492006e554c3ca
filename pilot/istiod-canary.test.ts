/** Weights and subsets over seven steps: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'canary', session: 'toolbox-v1-6d9f-sotw' });
