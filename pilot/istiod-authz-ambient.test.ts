/** AuthorizationPolicies as proxies without HTTP get them, over six steps: pilot's answers against those of a recorded istiod. */
import { rewrite, testScenario, type Compared, type Json, type JsonObject } from './testing/istiod.js';

testScenario({ scenario: 'authz-ambient', session: 'ztunnel-node-1' });
/** Where a tunnel ended a rule about the caller's address finds none in the connection: pilot looks into filter state. */
const byPeerAddress = (json: JsonObject, { name }: Compared): Json =>
  name === 'main_internal' ? rewrite(json, (object) => (object['$case'] === 'direct_remote_ip' ? { $case: 'filter_state', value: { key: 'underpass.peer_address', matcher: { $case: 'address_match', value: { ranges: [object['value'] as Json] } } } } : object)) : json;

testScenario({ scenario: 'authz-ambient', session: 'web-v1-6d9f-hbone-delta', istiod: byPeerAddress });
