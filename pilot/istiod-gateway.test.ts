/** A gateway's proxy: servers, route names, hosts and rewrites, and a certificate from a Secret or from files. */
import { testScenario } from './testing/istiod.js';

testScenario({ scenario: 'gateway-http-rewrite', session: 'router-sotw' });
testScenario({ scenario: 'gateway-http-rewrite', session: 'router-delta' });
testScenario({ scenario: 'gateway-https', session: 'router-sotw' });
testScenario({ scenario: 'gateway-api', session: 'cli-v1-6d9f-sotw' });
