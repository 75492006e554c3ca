/** A waypoint that a namespace begins and ceases to use, over six steps: what WDS and a sidecar's stream say of it, against a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { rewrite, testScenario, type Compared } from './testing/istiod.js';

testScenario({ scenario: 'waypoint', session: 'ztunnel-node-1' });
/** A waypoint takes HBONE for what it is the waypoint of; the proxies of istiod's clients open tunnels to its other ports, too. */
const isWaypoints = ({ type, name }: Compared): boolean => type === TYPE.endpoint && name.endsWith('||waypoint.wayp.svc.cluster.local');
testScenario({ scenario: 'waypoint', session: 'client-v1-6d9f-hbone-delta', absent: isWaypoints, extra: isWaypoints });

/** Neither tunnels in tunnels, which lead to other networks, nor what only istiod's own Envoy reads. */
const ofOtherNetworks = ({ name }: Compared): boolean => name === 'outer_connect_originate';
testScenario({
  scenario: 'waypoint', session: 'waypoint-delta', types: [TYPE.cluster, TYPE.endpoint], absent: ofOtherNetworks,
  pilot: (json) => rewrite(json, (object) => {
    // Which transport socket an endpoint has is told elsewhere, too: there a waypoint's cluster has but one.
    delete object['envoy.transport_socket_match'];
    return object;
  }),
  istiod: (json, { name }) => (name === 'connect_originate' ? rewrite(json, (object, path) => (path.at(-1) === 'match_typed_subject_alt_names' && JSON.stringify(object).includes('/ns/wayp/sa/') ? undefined : object)) : json),
});
