/** Ports by name, appProtocol, number and sniffing: pilot's listeners and routes against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { rewrite, testScenario } from './testing/istiod.js';

testScenario({
  scenario: 'service-kinds',
  session: 'toolbox-v1-6d9f-sotw',
  types: [TYPE.listener, TYPE.route],
  // MongoDB is plain TCP here: the filter's statistics are all that it would add.
  istiod: (json) => rewrite(json, (object) => (object['name'] === 'envoy.filters.network.mongo_proxy' ? undefined : object)),
});
