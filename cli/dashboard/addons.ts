/** Where Grafana, Prometheus and Jaeger are in a cluster: in the pods that bear the labels of Istio's samples and of their charts. */
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { isRefusal, KubeApiError, resourceOf, resourcePath, type KubeClient } from '../../common/kube/client.js';
import type { KubeObject } from '../../common/kube/types.js';

export const ADDONS = {
  grafana: { labels: ['app.kubernetes.io/name=grafana', 'app=grafana'], port: 3000 },
  prometheus: { labels: ['app.kubernetes.io/name=prometheus', 'app=prometheus'], port: 9090 },
  jaeger: { labels: ['app=jaeger', 'app.kubernetes.io/name=jaeger'], port: 16686 },
} as const;
export type Addon = keyof typeof ADDONS;

interface AddonPod extends KubeObject {
  status?: { phase?: string; conditions?: { type?: string; status?: string }[] };
}

/** @throws UnderpassError `UNDERPASS_NO_ADDON`, `UNDERPASS_NO_PERMISSION`, `UNDERPASS_API_SERVER_UNREACHABLE` */
export async function findAddon(client: KubeClient, addon: Addon, namespace: string | undefined): Promise<{ namespace: string; pod: string }> {
  const { labels } = ADDONS[addon];
  for (const label of labels) {
    const path = `${resourcePath(resourceOf('v1', 'Pod'), { namespace })}?${new URLSearchParams({ labelSelector: label })}`;
    const { items = [] } = await client.request<{ items?: AddonPod[] }>('GET', path).catch((cause: unknown) => {
      if (isRefusal(cause, 401, 403)) throw new UnderpassError('UNDERPASS_NO_PERMISSION', errorMessage(cause), { cause, hint: `it needs list of pods${namespace === undefined ? ' in all namespaces; -n names one' : ` in namespace ${namespace}`}` });
      if (cause instanceof KubeApiError) throw cause;
      throw new UnderpassError('UNDERPASS_API_SERVER_UNREACHABLE', `asking the API server ${client.server.url.host}: ${errorMessage(cause)}`, { cause });
    });
    const running = items.filter(({ status }) => status?.phase === 'Running');
    const isReady = ({ status }: AddonPod): boolean => status?.conditions?.some(({ type, status: is }) => type === 'Ready' && is === 'True') === true;
    const found = running.find(isReady) ?? running[0];
    if (found) return { namespace: found.metadata.namespace ?? 'default', pod: found.metadata.name };
  }
  throw new UnderpassError('UNDERPASS_NO_ADDON', `looking for ${addon} in ${namespace === undefined ? 'all namespaces' : `namespace ${namespace}`}: no pod with ${labels.join(' or ')} runs`, { hint: 'it is looked for by these labels; -n names another namespace' });
}
