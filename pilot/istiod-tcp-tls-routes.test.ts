/** TCP routes by weight, TLS routes by server name, gRPC: pilot's listeners and routes against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'tcp-tls-routes', session: 'toolbox-v1-6d9f-sotw', types: [TYPE.listener, TYPE.route] });
