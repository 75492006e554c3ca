/** A service that grows to many endpoints, shrinks to none and grows again: pilot's answers against those of a recorded istiod. */
import { TYPE } from './generate/resource.js';
import { rewrite, testScenario, type Json, type JsonObject, type Compared } from './testing/istiod.js';

/** istiod remembers the service accounts of a service that has lost all its endpoints; pilot's clusters name those that it has. */
const forgetful = (json: JsonObject, { type, step }: Compared): Json => (type === TYPE.cluster && step >= 3 ? rewrite(json, (object) => ('match_subject_alt_names' in object ? { ...object, match_subject_alt_names: [] } : object)) : json);

testScenario({ scenario: 'scale-out', session: 'c-v1-6d9f-hbone-delta', istiod: forgetful, pilot: forgetful });
testScenario({ scenario: 'scale-out', session: 'ztunnel-node-1' });
