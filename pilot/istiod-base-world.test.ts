/** All kinds of Services in a sidecar, an ambient and a plain namespace over six steps: pilot's answers against those of a recorded istiod. */
import { rewrite, testScenario, type Json } from './testing/istiod.js';

/** The mesh of the recording writes access logs, and tells its own version of Envoy what to put into them. */
const withoutLogs = (json: Json): Json => rewrite(json, (object) => ('access_log' in object ? { ...object, access_log: [] } : object));

testScenario({ scenario: 'base-world', session: 'nginx-v1-7c5d-hbone-delta', istiod: withoutLogs, pilot: withoutLogs });
testScenario({ scenario: 'base-world', session: 'ztunnel-node-1' });
