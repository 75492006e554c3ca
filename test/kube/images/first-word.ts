// The program of a pod that sends a request as the first thing that it does, and tells what came of it.
//   node first-word.js URL
import { get } from 'node:http';

const begun = performance.now();
const say = (what: object): void => console.log(JSON.stringify(what));
get(process.argv[2] ?? '', { timeout: 10_000 }, (response) => {
  response.resume();
  say({ status: response.statusCode, proxied: response.headers['x-envoy-upstream-service-time'] !== undefined, ms: Math.round(performance.now() - begun) });
}).on('timeout', () => say({ error: 'no answer' })).on('error', (error) => say({ error: error.message }));
// The pod goes on, as a server would.
setInterval(() => undefined, 1 << 30);
