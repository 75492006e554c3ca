/** Every kind of match, and what routes do: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'match-kinds', session: 'toolbox-v1-6d9f-sotw' });
