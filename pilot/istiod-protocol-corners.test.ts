/** One VirtualService that comes and goes: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'protocol-corners', session: '0-all-at-once' });
