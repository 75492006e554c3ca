/** The shared Envoy's own admin interface, as far as the agent's passes it on: what it has and counts, and its log levels. */
import type { EnvoyAdmin } from '../proxy/envoy-admin.js';
import type { AdminAnswer, AdminRoutes } from './server.js';

const READ = ['/certs', '/clusters', '/config_dump', '/listeners', '/memory', '/server_info', '/stats', '/stats/prometheus'] as const;
/** Without parameters it says the levels, and Envoy wants a POST for that too. */
const CHANGE = ['/logging'] as const;

/**
 * `/v1/envoy?path=/config_dump%3Finclude_eds`: what is passed on is a path of a fixed list, with its query. Envoy itself redacts
 * private keys there. The answer is passed on as it comes, since it may be long.
 */
export function envoyRoutes(admin: EnvoyAdmin): { routes: AdminRoutes; changes: AdminRoutes } {
  return {
    routes: { '/v1/envoy': (query) => passOn(admin, 'GET', query.get('path') ?? '', READ) },
    changes: { '/v1/envoy': (query) => passOn(admin, 'POST', query.get('path') ?? '', CHANGE) },
  };
}

async function passOn(admin: EnvoyAdmin, method: 'GET' | 'POST', wanted: string, allowed: readonly string[]): Promise<AdminAnswer> {
  if (!allowed.includes(wanted.split('?', 1)[0]!) || !/^[\x21-\x7e]*$/.test(wanted)) return { status: 400, body: { message: `path=${wanted.slice(0, 100)}: expected ${allowed.join(', ')}, with a query or without` } };
  return { contentType: 'application/octet-stream', pieces: await admin.stream(method, wanted) };
}
