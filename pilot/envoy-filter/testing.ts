/** A small mesh with EnvoyFilters, and what its proxies get. */
import assert from 'node:assert/strict';
import { unpack } from '../../common/xds/any.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { TYPE, type Resource } from '../generate/resource.js';
import type { Proxy } from '../model/proxy.js';
import { podYaml, serviceYaml } from '../testing/mesh.js';
import { testProxy, type TestMesh } from '../testing/model.js';

export const web = { name: 'web-1', ip: '10.0.0.1', labels: { app: 'web' }, port: 8080 };
export const WORLD = podYaml('shop', web) + serviceYaml('shop', 'web', '10.96.0.1', [web], 'name: http, port: 80, targetPort: 8080') + podYaml('shop', { name: 'client', ip: '10.0.0.9', labels: { app: 'client' } });
export const server = testProxy('10.0.0.1', 'web-1.shop', { app: 'web' }, { ISTIO_VERSION: '1.27.0' });
export const client = testProxy('10.0.0.9', 'client.shop', { app: 'client' }, { ISTIO_VERSION: '1.27.0' });

export const filter = (patches: string, more = '', namespace = 'shop', name = 'x'): string => `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: ${name}, namespace: ${namespace}}
spec:
  ${more}
  configPatches:
${patches.replace(/^/gm, '    ')}
---`;

export const find = (mesh: TestMesh, type: string, proxy: Proxy, name: string): Resource => {
  const generator = mesh.generators.get(type)!;
  return (generator.wildcard ? generator.all(proxy).find((resource) => resource.name === name) : generator.one(proxy, name)) ?? assert.fail(`no ${name}`);
};

export function managers(mesh: TestMesh, proxy: Proxy, name: string, port?: number): HttpConnectionManager[] {
  const listener = Listener.decode(find(mesh, TYPE.listener, proxy, name).body.value);
  const chains = listener.filter_chains.filter((chain) => port === undefined || chain.filter_chain_match?.destination_port === port);
  return chains.flatMap(({ filters }) => filters).flatMap((item) => (item.config_type?.$case === 'typed_config' ? (unpack(HttpConnectionManager, item.config_type.value) ?? []) : []));
}
export const filterNames = (mesh: TestMesh, proxy: Proxy, name: string, port?: number): string[] => [...new Set(managers(mesh, proxy, name, port).map(({ http_filters }) => http_filters.map((item) => item.name).join(' ')))];
