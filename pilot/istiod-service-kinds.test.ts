/** Ports by name, appProtocol, number and sniffing, headless and dual-stack Services: pilot's answers against those of a recorded istiod. */
import { rewrite, testScenario } from './testing/istiod.js';

testScenario({
  scenario: 'service-kinds',
  session: 'toolbox-v1-6d9f-sotw',
  // MongoDB is plain TCP here: the filter's statistics are all that it would add.
  istiod: (json) => rewrite(json, (object) => (object['name'] === 'envoy.filters.network.mongo_proxy' ? undefined : object)),
});

testScenario({
  scenario: 'service-kinds',
  session: 'ztunnel-node-1',
  pilot: (json) => rewrite(json, (object) => {
    // WDS has no word for MongoDB's protocol; pilot's is TCP.
    if (object['service_port'] === 27_017) return { ...object, app_protocol: 0 };
    // Nor one for session affinity, which pilot's own agents hear of by an extension.
    return object['name'] === 'underpass.io/session-affinity' ? undefined : object;
  }),
});
