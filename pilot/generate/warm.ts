/**
 * Makes the parts that all clients' configuration is put together from, in slices: made by the first client's request they
 * would hold up the event loop for seconds in a large mesh.
 */
import { setImmediate } from 'node:timers/promises';
import type { Model } from '../model/model.js';
import { parseProxy } from '../model/proxy.js';
import type { Generators } from './generator.js';
import { clusterName } from './names.js';
import { TYPE, type Resource } from './resource.js';
import { prepareVirtualHost } from './routes.js';

const SLICE_MS = 8;

export interface WarmOptions {
  signal: AbortSignal;
  /** Told of each resource, to make what else is kept with it. */
  made(resource: Resource): void;
  failed(error: unknown): void;
}

/**
 * Of the view that clients of most namespaces share. Never rejects: what can't be made beforehand fails for the client that
 * asks for it, and only for that.
 */
export async function warm(model: Model, generators: Generators, { signal, made, failed }: WarmOptions): Promise<void> {
  try {
    await make(model, generators, signal, made);
  } catch (error) {
    failed(error);
  }
}

async function make(model: Model, generators: Generators, signal: AbortSignal, made: WarmOptions['made']): Promise<void> {
  const proxy = parseProxy('sidecar~127.0.0.1~none.-~-.svc.cluster.local');
  const [clusters, endpoints] = [generators.get(TYPE.cluster), generators.get(TYPE.endpoint)];
  let end = performance.now() + SLICE_MS;
  const breathe = async (): Promise<void> => {
    if (performance.now() < end) return;
    await setImmediate();
    end = performance.now() + SLICE_MS;
  };
  // A change in the middle makes another scope: what is asked for below is always the newest.
  for (const { host } of [...model.scopeOf(proxy).services]) {
    if (signal.aborted) return;
    const scope = model.scopeOf(proxy);
    const service = scope.service(host);
    if (!service) continue;
    for (const resource of clusters?.prepare?.(proxy, service) ?? []) made(resource);
    const subsets = ['', ...(scope.rule(host)?.object.spec.subsets ?? []).map(({ name }) => name)];
    for (const { port } of service.ports) {
      if (service.resolution === 'EDS') {
        for (const subset of subsets) {
          const resource = endpoints?.one(proxy, clusterName(port, subset, host));
          if (resource) made(resource);
        }
      }
      prepareVirtualHost(scope, service, port);
    }
    await breathe();
  }
  // Put together once, they are there for all who see the same.
  if (signal.aborted) return;
  const listeners = generators.get(TYPE.listener)?.all(proxy) ?? [];
  await setImmediate();
  for (const { name } of listeners) {
    const port = /^0\.0\.0\.0_(\d+)$/.exec(name)?.[1];
    if (port === undefined) continue;
    generators.get(TYPE.route)?.one(proxy, port);
    await setImmediate();
  }
  clusters?.all(proxy);
}
