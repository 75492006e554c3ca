// A real Envoy with sockets in a folder, for the fuzz tests.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { envoyBinary } from '../../common/paths.js';

const START_TIMEOUT_MS = 20_000;

export const typed = (type: string, rest: object): object => ({ '@type': `type.googleapis.com/envoy.extensions.${type}`, ...rest });

/** A filter of HTTP that runs a script. */
export const lua = (script: string): object => ({ name: 'lua', typed_config: typed('filters.http.lua.v3.Lua', { default_source_code: { inline_string: script } }) });

/** @param options of the connection manager @param action what its one route does */
export function listener(path: string, name: string, action: object, filters: readonly object[] = [], options: object = {}): object {
  return {
    name,
    address: { pipe: { path } },
    filter_chains: [{
      filters: [{
        name: 'http',
        typed_config: typed('filters.network.http_connection_manager.v3.HttpConnectionManager', {
          stat_prefix: name, codec_type: 'HTTP1', generate_request_id: false,
          route_config: { virtual_hosts: [{ name: 'all', domains: ['*'], routes: [{ match: { prefix: '/' }, ...action }] }] },
          http_filters: [...filters, { name: 'router', typed_config: typed('filters.http.router.v3.Router', {}) }],
          ...options,
        }),
      }],
    }],
  };
}

/** A server behind a socket; each of its connections belongs to one client's. */
export const cluster = (path: string, name: string): object => ({
  name, connect_timeout: '5s', connection_pool_per_downstream_connection: true,
  load_assignment: { cluster_name: name, endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path } } } }] }] },
});

/** @returns when its listeners listen at their sockets. @throws Error with the end of Envoy's log if it does not come up. */
export async function startEnvoy(folder: string, name: string, resources: { listeners: readonly object[]; clusters: readonly object[] }, sockets: readonly string[]): Promise<ChildProcess> {
  const [config, log] = [join(folder, `${name}.json`), join(folder, `${name}.log`)];
  writeFileSync(config, JSON.stringify({ static_resources: resources }));
  const child = spawn(envoyBinary(), ['-c', config, '--concurrency', '1', '--use-dynamic-base-id', '--log-level', 'warn', '--log-path', log], { stdio: 'ignore' });
  for (const end = Date.now() + START_TIMEOUT_MS; !(await Promise.all(sockets.map(accepts))).every(Boolean); await sleep(50)) {
    if (Date.now() > end || child.exitCode !== null) throw new Error(`Envoy did not come up: ${existsSync(log) ? readFileSync(log, 'utf8').slice(-2000) : ''}`);
  }
  return child;
}

/** A socket is there before anybody listens at it. */
function accepts(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path, () => resolve(true)).on('error', () => resolve(false)).on('connect', () => socket.destroy());
  });
}

export async function stopEnvoy(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill();
  await once(child, 'exit');
}
