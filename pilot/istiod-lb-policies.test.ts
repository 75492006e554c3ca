/** TODO */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'lb-policies', session: 'toolbox-v1-6d9f-hbone-delta' });
