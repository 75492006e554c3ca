/**
 * What a proxy's listeners say of tracing, access logs and metrics: MeshConfig's settings, over them the Telemetry of the root
 * namespace, of the workload's namespace, and of the workload, each field the most specific one that says it.
 */
import type { Telemetry } from '../../common/kube/types.js';
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { accessLogSettings, type AccessLogSettings } from './access-logs.js';
import { telemetries, type Side } from './layers.js';
import { forAgents, metricOverrides, type MetricsNote } from './metric-overrides.js';
import type { MetricsSettings } from './metrics.js';
import { tracingSettings, type TracingSettings } from './tracing.js';

/** One side of a proxy: towards its workload (SERVER), or from it (CLIENT), as which a gateway counts. */
export interface SideSettings {
  tracing: TracingSettings | undefined;
  accessLogs: readonly AccessLogSettings[];
  /** Undefined: nothing is counted, or the proxy can't. */
  metrics: MetricsSettings | undefined;
  metricsNote: MetricsNote | undefined;
}

/** A waypoint tells both ends of what passes it. */
function metrics({ mesh }: Model, { type, canCount }: Proxy, layers: readonly Telemetry[], side: Side): MetricsSettings | undefined {
  const overrides = canCount ? metricOverrides(mesh, layers, side) : undefined;
  return overrides && { reporter: side === 'CLIENT' ? 'source' : type === 'waypoint' ? 'waypoint' : 'destination', overrides };
}

/** For a node's agent, which counts for its pods. */
function metricsNote({ mesh }: Model, { type, canCount }: Proxy, layers: readonly Telemetry[], side: Side): MetricsNote | undefined {
  if (canCount || type !== 'sidecar') return undefined;
  const note = forAgents(metricOverrides(mesh, layers, side));
  return Object.keys(note).length > 0 ? note : undefined;
}

export function settingsFor(model: Model, proxy: Proxy): Record<Side, SideSettings> {
  const layers = telemetries(model, proxy);
  const side = (which: Side): SideSettings => ({ tracing: tracingSettings(model, proxy, layers, which), accessLogs: accessLogSettings(model, layers, which), metrics: metrics(model, proxy, layers, which), metricsNote: metricsNote(model, proxy, layers, which) });
  return { CLIENT: side('CLIENT'), SERVER: side('SERVER') };
}
