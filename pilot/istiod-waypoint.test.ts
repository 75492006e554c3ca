/** A waypoint that a namespace begins and ceases to use, over six steps: what WDS and a sidecar's stream say of it, against a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { testScenario, type Compared } from './testing/istiod.js';

testScenario({ scenario: 'waypoint', session: 'ztunnel-node-1' });
/** A waypoint takes HBONE for what it is the waypoint of; the proxies of istiod's clients open tunnels to its other ports, too. */
const isWaypoints = ({ type, name }: Compared): boolean => type === TYPE.endpoint && name.endsWith('||waypoint.wayp.svc.cluster.local');
testScenario({ scenario: 'waypoint', session: 'client-v1-6d9f-hbone-delta', absent: isWaypoints, extra: isWaypoints });
