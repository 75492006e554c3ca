/** PeerAuthentications of every scope over five steps: pilot's answers against those of a recorded istiod. */
import { testScenario } from './testing/istiod.js';

/** A pod in ambient mode: its cluster and endpoint are HBONE's, which sidecars of pilot do not speak. */
const isAmbient = ({ name }: { name: string }): boolean => name === 'outbound|80||amb.mtls.svc.cluster.local';

for (const session of ['httpbin-v1-6d9f-hbone-delta', 'toolbox-v1-6d9f-hbone-delta', 'ztunnel-node-1']) testScenario({ scenario: 'peer-authentication', session, absent: isAmbient, extra: isAmbient });
