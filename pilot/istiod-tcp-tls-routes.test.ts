/** TCP routes by weight, TLS routes by server name, gRPC, TLS modes of rules: pilot's answers against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({
  scenario: 'tcp-tls-routes',
  session: 'toolbox-v1-6d9f-sotw',
  // Subsets that are gone: the client has stopped to ask, the recording goes on to hold the last answers.
  absent: ({ type, name, step }) => type === TYPE.endpoint && step === 2 && /\|v[12]\|/.test(name),
});
