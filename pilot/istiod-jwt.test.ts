/** RequestAuthentication with keys in it, and a policy on its claims: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'jwt', session: 'api-v1-6d9f-hbone-delta' });
