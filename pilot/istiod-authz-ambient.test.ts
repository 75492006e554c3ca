/** AuthorizationPolicies as proxies without HTTP get them, over six steps: pilot's answers against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'authz-ambient', session: 'ztunnel-node-1' });
// Clusters and endpoints of pods in ambient mode are HBONE's, which sidecars of pilot do not speak.
testScenario({ scenario: 'authz-ambient', session: 'web-v1-6d9f-hbone-delta', types: [TYPE.listener] });
