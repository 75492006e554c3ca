/** A Sidecar that narrows what its namespace sees: pilot's answers against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({
  scenario: 'sidecar-scope',
  session: 'toolbox-v1-6d9f-sotw',
  // The client has stopped to ask for it; the recording just goes on to hold its last answer.
  absent: ({ type, name, step }) => type === TYPE.endpoint && step === 1 && name === 'outbound|80||b.scoped.svc.cluster.local',
});
