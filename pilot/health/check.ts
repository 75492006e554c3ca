/** How a Service asks for its endpoints to be checked by their node's Envoy: an annotation, read with its errors named. */
import type { MeshPort, MeshService } from '../model/types.js';
import { parseDurationMs } from '../../common/kube/schema.js';

/** E.g. `http /healthz`, `tcp`, `http /ready port=admin interval=2s timeout=500ms unhealthy=3 healthy=1`. */
export const HEALTH_CHECK_ANNOTATION = 'underpass.io/health-check';

export interface HealthCheckSpec {
  kind: 'http' | 'tcp';
  /** Of an HTTP check. */
  path: string;
  port: MeshPort;
  intervalMs: number;
  timeoutMs: number;
  /** Failures in a row until an endpoint counts as unhealthy, and successes until it is healthy again. */
  unhealthyThreshold: number;
  healthyThreshold: number;
}

const MIN_INTERVAL_MS = 100;

/** @returns the check, undefined when none is asked for, or what is wrong with the annotation */
export function readHealthCheck(service: MeshService): HealthCheckSpec | string | undefined {
  const written = service.object.metadata.annotations?.[HEALTH_CHECK_ANNOTATION];
  if (written === undefined) return undefined;
  const [kind, ...words] = written.trim().split(/\s+/);
  if (kind !== 'http' && kind !== 'tcp') return `found ${JSON.stringify(kind)}, expected "http PATH" or "tcp"`;
  const path = kind === 'http' ? words.shift() : '';
  if (kind === 'http' && !path?.startsWith('/')) return `found ${JSON.stringify(path ?? '')}, expected a path after http`;
  const [first] = service.ports;
  if (!first) return 'the service has no TCP port to check';
  const spec: HealthCheckSpec = { kind, path: path ?? '', port: first, intervalMs: 5_000, timeoutMs: 1_000, unhealthyThreshold: 3, healthyThreshold: 1 };
  for (const word of words) {
    const [key, value = ''] = word.split('=', 2) as [string, string?];
    if (key === 'port') {
      const port = service.ports.find(({ name, port: number }) => name === value || String(number) === value);
      if (!port) return `port=${value}: expected a port of the service: ${service.ports.map(({ name, port: number }) => name || number).join(', ')}`;
      spec.port = port;
    } else if (key === 'interval' || key === 'timeout') {
      const ms = parseDurationMs(value);
      if (ms === undefined || ms < MIN_INTERVAL_MS) return `${word}: expected a duration of at least ${MIN_INTERVAL_MS} ms`;
      spec[key === 'interval' ? 'intervalMs' : 'timeoutMs'] = ms;
    } else if (key === 'unhealthy' || key === 'healthy') {
      const count = Number(value);
      if (!Number.isInteger(count) || count < 1 || count > 100) return `${word}: expected a whole number from 1 to 100`;
      spec[key === 'unhealthy' ? 'unhealthyThreshold' : 'healthyThreshold'] = count;
    } else return `found ${JSON.stringify(word)}, expected port=, interval=, timeout=, unhealthy= or healthy=`;
  }
  return spec;
}
