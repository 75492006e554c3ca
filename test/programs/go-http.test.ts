// Go's net/http through the HTTP fast path: all of it is Envoy's, as with any program that may splice, until a label says that it
// doesn't; then most of it is fast, as with other programs that don't block.
import { GO_PROGRAMS } from '../http/programs/battery.js';
import { testEach } from '../http/programs/each.js';

testEach('http-go', GO_PROGRAMS);
