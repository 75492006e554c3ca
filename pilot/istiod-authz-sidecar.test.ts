/** AuthorizationPolicies of a sidecar over five steps: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'authz-sidecar', session: 'httpbin-v1-6d9f-sotw' });
testScenario({ scenario: 'authz-sidecar', session: 'ztunnel-node-1' });
