/** What tells two states of a service apart: a change that leaves these the same is one of endpoints alone. */
import type { Model } from './model.js';
import { takesMtls } from './peer-authentication.js';
import { isTunnelled } from './pods.js';
import type { MeshService } from './types.js';

/** All that clients' clusters, listeners and routes are made from, but for the endpoints. */
export function shapeOf(service: MeshService | undefined): string {
  if (!service) return '';
  const { object: _object, exportTo, ...shape } = service;
  return JSON.stringify({ ...shape, exportTo: exportTo === 'all' ? exportTo : [...exportTo] });
}

/** What of the endpoints clients' clusters and listeners depend on. */
export function identityOf(model: Model, services: readonly MeshService[]): string {
  return JSON.stringify(
    services.map((service) => {
      const endpoints = model.endpoints(service);
      const accounts = [...new Set(endpoints.map(({ serviceAccount }) => serviceAccount ?? ''))].sort();
      // A headless service's cluster and listeners know its endpoints one by one; so do clusters that resolve names.
      const headless = service.headless ? [service.ports.map(({ name }) => endpoints.every((endpoint) => takesMtls(model, endpoint, endpoint.ports.get(name) ?? 0))), ...endpoints.map(({ address }) => address).sort()] : [];
      const named = service.resolution.startsWith('DNS') ? endpoints.map(({ pod: _pod, ports, ...endpoint }) => ({ ...endpoint, ports: [...ports] })) : [];
      return [service.key, accounts, headless, named, endpoints.some(isTunnelled)];
    }),
  );
}
