/** The collector of collector.ts in the namespace `outside` of a MeshWorld, and what it got. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { projectRoot } from '../../common/paths.js';
import type { MeshWorld } from '../mesh/world.js';
import type { CollectedLog, CollectedSpan } from './collector.js';

export const COLLECTOR = `apiVersion: v1
kind: Pod
metadata: {name: collector, namespace: outside, labels: {app: collector}}
spec: {containers: [{name: collector, image: node, command: [node, ${join(projectRoot, 'dist/test/collector/collector.js')}], ports: [{containerPort: 9000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: collector, namespace: outside}
spec:
  selector: {app: collector}
  ports: [{name: http-zipkin, port: 9411}, {name: grpc-otlp, port: 4317}, {name: http-otlp, port: 4318}, {name: grpc-als, port: 9001}, {name: http-control, port: 9000}]
`;
const HOST = 'collector.outside.svc.cluster.local';
/** Of MeshConfig's extensionProviders. */
export const TRACERS = `{name: zipkin, zipkin: {service: ${HOST}, port: 9411}}, {name: otlp-grpc, opentelemetry: {service: ${HOST}, port: 4317}}, {name: otlp-http, opentelemetry: {service: ${HOST}, port: 4318, http: {path: /v1/traces, timeout: 5s}}}`;

export const meshConfig = (text: string): string => `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
${text.split('\n').map((line) => `    ${line}`).join('\n')}
`;

type World = Pick<MeshWorld, 'lab'>;

const curl = async (world: World, method: string, path: string): Promise<string> => (await world.lab.exec('outside/client', ['curl', '-s', '-m', '10', '-X', method, `http://collector.outside:9000${path}`])).stdout;

export const collected = async (world: World): Promise<CollectedSpan[]> => JSON.parse(await curl(world, 'GET', '/spans')) as CollectedSpan[];
export const collectedLogs = async (world: World): Promise<CollectedLog[]> => JSON.parse(await curl(world, 'GET', '/logs')) as CollectedLog[];
export const forget = (world: World): Promise<unknown> => curl(world, 'DELETE', '/');
export const answerAs = (world: World, how: 'ok' | 'refused' | 'never'): Promise<unknown> => curl(world, 'PUT', `/answer?as=${how}`);

/** Of the traces that have this tag, once there are as many spans, and no more come for as long as Envoy may hold them back. */
export async function settledSpans(world: World, wanted: (span: CollectedSpan) => boolean, count: number, timeoutMs = 120_000): Promise<CollectedSpan[]> {
  const deadline = performance.now() + timeoutMs;
  for (let before = -1, since = performance.now(); ; await sleep(250)) {
    const found = (await collected(world)).filter(wanted);
    if (found.length !== before) [before, since] = [found.length, performance.now()];
    else if ((found.length >= count && performance.now() - since > 6_500) || performance.now() > deadline) return found;
  }
}
