/** Time-outs, retries, faults over six steps: pilot's listeners and routes against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'timeout-retry-fault', session: 'toolbox-v1-6d9f-hbone-delta', types: [TYPE.listener, TYPE.route] });
