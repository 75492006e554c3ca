/**
 * Probes of applications behind a sidecar go to the sidecar's agent, which asks the application in the kubelet's stead: with
 * STRICT mutual TLS the kubelet could not (istio/istio, pkg/kube/inject/app_probe.go).
 */
import type { InjectableContainer } from './pod.js';

interface Handler {
  httpGet?: { path?: string; port: number | string; scheme?: string };
  tcpSocket?: { port: number | string };
  grpc?: { port: number };
  timeoutSeconds?: number;
  [field: string]: unknown;
}

const KINDS = { readinessProbe: 'readyz', livenessProbe: 'livez', startupProbe: 'startupz' } as const;

/** The containers with their probes rewritten, and what the agent is to do for each: the value of ISTIO_KUBE_APP_PROBERS. */
export function rewriteProbes(containers: readonly InjectableContainer[], statusPort: number): { containers: InjectableContainer[]; probers: Record<string, unknown> } {
  const probers: Record<string, unknown> = {};
  const number = (container: InjectableContainer, port: number | string): number | string => container.ports?.find(({ name }) => name === port)?.containerPort ?? port;
  const rewritten = containers.map((container) => {
    const copy = { ...container };
    for (const [kind, word] of Object.entries(KINDS)) {
      const probe = container[kind] as Handler | undefined;
      if (!probe || (!probe.httpGet && !probe.tcpSocket && !probe.grpc)) continue;
      const { httpGet, tcpSocket, grpc, ...rest } = probe;
      const path = `/app-health/${container.name}/${word}`;
      if (httpGet?.port === statusPort && httpGet.path === path) continue;
      probers[path] = {
        ...(httpGet ? { httpGet: { ...httpGet, port: number(container, httpGet.port) } } : {}),
        ...(tcpSocket ? { tcpSocket: { ...tcpSocket, port: number(container, tcpSocket.port) } } : {}),
        ...(grpc ? { grpc } : {}),
        ...(probe.timeoutSeconds ? { timeoutSeconds: probe.timeoutSeconds } : {}),
      };
      copy[kind] = { ...rest, httpGet: { path, port: statusPort, scheme: 'HTTP' } };
    }
    return copy;
  });
  return { containers: rewritten, probers };
}
