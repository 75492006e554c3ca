/** Every kind of match, and what routes do: pilot's listeners and routes against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'match-kinds', session: 'toolbox-v1-6d9f-sotw', types: [TYPE.listener, TYPE.route] });
