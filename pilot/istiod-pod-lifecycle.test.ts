/** A pod that starts, is ready, is terminating and goes: pilot's answers against those of a recorded istiod. */
import { testScenario, type Compared } from './testing/istiod.js';

/** A pod that is captured before it is ready: istiod sends nothing then, and the endpoint as a tunnel's when it is ready. */
const isCaptured = ({ name, step }: Compared): boolean => step === 3 && name === 'outbound|80||web.lifes.svc.cluster.local';

testScenario({ scenario: 'pod-lifecycle', session: 'peer-v1-6d9f-hbone-delta', absent: isCaptured, extra: isCaptured });
testScenario({ scenario: 'pod-lifecycle', session: 'ztunnel-node-1' });
