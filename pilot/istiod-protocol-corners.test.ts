/** One VirtualService that comes and goes: pilot's answers against those of a recorded istiod. */
import { isObject, testScenario } from './testing/istiod.js';

testScenario({
  scenario: 'protocol-corners',
  session: '0-all-at-once',
  istiod: (json) => {
    // The API server's own Service, which the recorded input does not have.
    if (isObject(json['table'])) delete json['table']['kubernetes.default.svc.cluster.local'];
    return json;
  },
});
