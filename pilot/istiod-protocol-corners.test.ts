/** One VirtualService that comes and goes: pilot's listeners and routes against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'protocol-corners', session: '0-all-at-once', types: [TYPE.listener, TYPE.route] });
