/** Runs a NodeProxy as a process of its own, for tests that kill it: node proxy-process.js <options as JSON> <pods as JSON>. */
import { logger } from '../../common/log.js';
import { NodeProxy, type NodeProxyOptions, type ProxyPod } from '../proxy/node-proxy.js';

const [options, pods] = process.argv.slice(2).map((argument) => JSON.parse(argument) as unknown) as [Omit<NodeProxyOptions, 'logger'>, ProxyPod[]];
const proxy = new NodeProxy({ ...options, logger: logger('test') });
await proxy.start();
proxy.setPods(pods);
for (const pod of pods) await proxy.whenReady(pod.uid, AbortSignal.timeout(10_000));
process.stdout.write(`ready ${proxy.status().envoy.pid ?? 0} ${proxy.status().envoy.adopted}\n`);
