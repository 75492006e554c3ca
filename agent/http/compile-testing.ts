/** What the tests of the compiler share: recorded or hand-made resources as its input. */
import { foldCluster, isFoldedCluster } from '../proxy/fold-clusters.js';
import { foldAssignment, socketEndpoints } from '../proxy/fold-endpoints.js';
import { endpointKey } from '../proxy/pool-renewal.js';
import { Recording } from '../testing/recording.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { edsServiceName } from '../xds/resource-types.js';
import type { SidecarState } from '../xds/sidecar-stream.js';
import { compileTable, type CompileInput, type LocalPod } from './compile.js';
import type { ClusterView } from './compile-cluster.js';
import type { Finding, HttpTable } from './table.js';

export const ZIPKIN = { name: 'envoy.tracers.zipkin', typed_config: { '@type': 'type.googleapis.com/envoy.config.trace.v3.ZipkinConfig', collector_cluster: 'zipkin', collector_endpoint: '/api/v2/spans', collector_endpoint_version: 'HTTP_JSON' } };
export const OTEL = { name: 'envoy.tracers.opentelemetry', typed_config: { '@type': 'type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig', service_name: 'a', grpc_service: { envoy_grpc: { cluster_name: 'otel' } } } };

export const HEADERS = { weight: 'x-up-w', endpoint: 'x-up-e' };
export const CALLER = { identity: 'spiffe://cluster.local/ns/default/sa/client', addresses: ['10.244.0.9'] };

/** Names in order, never the same twice. */
export function names(most = Infinity): CompileInput['takeName'] {
  let next = 0;
  return () => (next < most ? { index: next, generation: ++next } : undefined);
}

export function recorded(scenario: string, step = Infinity, session = 0): SidecarState {
  const recording = Recording.open(scenario);
  if (!recording) throw new Error(`no recording ${scenario}`);
  return recording.state(recording.sidecars[session]!, step);
}

export function clusterViews({ clusters, endpoints }: SidecarState): Map<string, ClusterView> {
  const extensions = stockExtensions();
  return new Map([...clusters].flatMap(([name, { message }]) => {
    if (!isFoldedCluster(name)) return [];
    const assignment = endpoints.get(edsServiceName(message) ?? '')?.message;
    return [[name, { cluster: foldCluster(message, extensions), assignment: assignment && foldAssignment(assignment) }]];
  }));
}

/** @param changes beside this, all endpoints are on this node, event-driven and open */
export function inputOf(state: SidecarState, changes: Partial<CompileInput> = {}): CompileInput {
  const clusters = changes.clusters ?? clusterViews(state);
  const targets = [...clusters.values()].flatMap(({ assignment }) => socketEndpoints(assignment));
  return {
    listeners: [...state.listeners.values()],
    routes: new Map([...state.routes].map(([name, { message }]) => [name, message])),
    clusters, caller: CALLER, headers: HEADERS, takeName: names(),
    local: new Map(targets.map(({ address }): [string, LocalPod] => [address, {}])),
    teachable: new Set(targets.map(({ address, port }) => endpointKey(address, port))),
    ...changes,
  };
}

export function compiled(state: SidecarState, changes?: Partial<CompileInput>): HttpTable {
  return compileTable(inputOf(state, changes));
}

/** What is said of names that contain `part`. */
export function found({ findings }: HttpTable, part: string): Finding[] {
  return findings.filter(({ name }) => name.includes(part));
}
