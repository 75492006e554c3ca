/**
 * Real HTTP programs with one another through the fast path: each answer is what its own request asked for, whatever lengths,
 * chunks and methods come on a connection one after the other; between programs that don't block most go without Envoy.
 */
import { PROGRAMS } from './programs/battery.js';
import { testEach } from './programs/each.js';

testEach('http-programs', PROGRAMS);
