/**
 * What a proxy's listeners say of tracing, access logs and metrics: MeshConfig's settings, over them the Telemetry of the root
 * namespace, of the workload's namespace, and of the workload, each field the most specific one that says it.
 */
import type { Model } from '../model/model.js';
import type { Proxy } from '../model/proxy.js';
import { accessLogSettings, type AccessLogSettings } from './access-logs.js';
import { telemetries, type Side } from './layers.js';
import type { MetricsSettings } from './metrics.js';
import { tracingSettings, type TracingSettings } from './tracing.js';

/** One side of a proxy: towards its workload (SERVER), or from it (CLIENT), as which a gateway counts. */
export interface SideSettings {
  tracing: TracingSettings | undefined;
  accessLogs: readonly AccessLogSettings[];
  /** Undefined: nothing is counted, or the proxy can't. */
  metrics: MetricsSettings | undefined;
}

/** Istio's built-in provider of this name needs no definition. */
const PROMETHEUS = 'prometheus';

/** A waypoint tells both ends of what passes it. */
function metrics({ mesh }: Model, { type, canCount }: Proxy, side: Side): MetricsSettings | undefined {
  if (!canCount || !mesh.defaultMetricsProviders.includes(PROMETHEUS)) return undefined;
  return { reporter: side === 'CLIENT' ? 'source' : type === 'waypoint' ? 'waypoint' : 'destination', overrides: {} };
}

export function settingsFor(model: Model, proxy: Proxy): Record<Side, SideSettings> {
  const layers = telemetries(model, proxy);
  const side = (which: Side): SideSettings => ({ tracing: tracingSettings(model, proxy, layers, which), accessLogs: accessLogSettings(model, layers, which), metrics: metrics(model, proxy, which) });
  return { CLIENT: side('CLIENT'), SERVER: side('SERVER') };
}
