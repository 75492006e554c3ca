/** Loaded into an agent before its own code (`node --import`): its self-test runs programs with the fault that UNDERPASS_TEST_FAULT names, a bit of enum http_fault. */
import { realParts } from '../../agent/real-parts.js';
import { selfTest } from '../../agent/dataplane/self-test.js';

realParts.selfTest = (logger) => selfTest(logger, { faults: Number(process.env['UNDERPASS_TEST_FAULT']) });
