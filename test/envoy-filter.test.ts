// EnvoyFilters with real traffic: Istio's documented recipes for local and global rate limits, and a Lua filter, on the side of servers and of clients.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { GatewayWorld, istioGateway, istioGatewayYaml, server } from './gateway-world.js';
import { MODES, type Mode } from './mesh/world.js';

/** In the form of Istio's sample; a path for each test, so that none counts another's requests. */
const LIMITS = `
domain: ratelimit
descriptors:
  - {key: PATH, value: /once-sidecar, rate_limit: {unit: day, requests_per_unit: 1}}
  - {key: PATH, value: /once-node, rate_limit: {unit: day, requests_per_unit: 1}}
  - {key: PATH, value: /twice-sidecar, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: PATH, value: /twice-node, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: PATH, value: /twice-edge-sidecar, rate_limit: {unit: day, requests_per_unit: 2}}
  - {key: PATH, value: /twice-edge-node, rate_limit: {unit: day, requests_per_unit: 2}}
`;
const SERVICE = `
apiVersion: v1
kind: ConfigMap
metadata: {name: ratelimit-config, namespace: outside}
data: {config.yaml: ${JSON.stringify(LIMITS)}}
---
apiVersion: v1
kind: Service
metadata: {name: ratelimit, namespace: outside, labels: {app: ratelimit}}
spec:
  ports: [{name: http-port, port: 8080}, {name: grpc-port, port: 8081}, {name: http-debug, port: 6070}]
  selector: {app: ratelimit}
---
apiVersion: v1
kind: Pod
metadata: {name: ratelimit, namespace: outside, labels: {app: ratelimit}}
spec:
  containers:
    - image: envoyproxy/ratelimit:9d8d70a8
      name: ratelimit
      command: ["/bin/ratelimit"]
      env: [{name: RUNTIME_ROOT, value: /data}, {name: RUNTIME_SUBDIRECTORY, value: ratelimit}]
      ports: [{containerPort: 8080}, {containerPort: 8081}, {containerPort: 6070}]
      volumeMounts: [{name: config-volume, mountPath: /data/ratelimit/config}]
  volumes: [{name: config-volume, configMap: {name: ratelimit-config}}]
`;

const INGRESS = istioGateway('ingress', '{name: http2, port: 80, targetPort: 8080}');
const world = new GatewayWorld('envoyfilter', [INGRESS], { outside: SERVICE });
const { mesh } = world;

const APPS = { SIDECAR_INBOUND: 'web', SIDECAR_OUTBOUND: 'client', GATEWAY: INGRESS.name };
type Side = keyof typeof APPS;
const appOf = (side: Side): string => APPS[side];
const envoyFilter = (name: string, app: string, patches: string): string => `
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: ${name}}
spec:
  workloadSelector: {labels: {app: ${app}}}
  configPatches: ${patches}
`;
const httpFilter = (side: Side, value: string): string => `
    - applyTo: HTTP_FILTER
      match: {context: ${side}, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}}
      patch:
        operation: INSERT_BEFORE
        value: ${value}`;

const bucket = (tokens: number): string => `
                stat_prefix: http_local_rate_limiter
                token_bucket: {max_tokens: ${tokens}, tokens_per_fill: ${tokens}, fill_interval: 86400s}
                filter_enabled: {runtime_key: local_rate_limit_enabled, default_value: {numerator: 100, denominator: HUNDRED}}
                filter_enforced: {runtime_key: local_rate_limit_enforced, default_value: {numerator: 100, denominator: HUNDRED}}
                response_headers_to_add: [{append: false, header: {key: x-local-rate-limit, value: 'true'}}]`;
const LOCAL = 'type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit';
const typedStruct = (value: string): string => `
              "@type": type.googleapis.com/udpa.type.v1.TypedStruct
              type_url: ${LOCAL}
              value: ${value}`;
/** The recipe "local rate limit of a service". */
const localPerWorkload = (side: Side, tokens: number): string => envoyFilter('filter-local-ratelimit-svc', appOf(side), httpFilter(side, `
          name: envoy.filters.http.local_ratelimit
          typed_config: ${typedStruct(bucket(tokens))}`));
/** Of some routes alone: the filter does nothing by itself, a virtual host says how much. */
const localPerRoute = (side: Side, vhost: string, tokens: number): string => envoyFilter('filter-local-ratelimit-route', appOf(side), `${httpFilter(side, `
          name: envoy.filters.http.local_ratelimit
          typed_config: ${typedStruct('{stat_prefix: http_local_rate_limiter}')}`)}
    - applyTo: HTTP_ROUTE
      match: {context: ${side}, routeConfiguration: {vhost: {name: "${vhost}", route: {action: ANY}}}}
      patch:
        operation: MERGE
        value:
          typed_per_filter_config:
            envoy.filters.http.local_ratelimit: ${typedStruct(bucket(tokens))}`);
/** The recipe "global rate limit": the filter asks the service, the virtual hosts say what about. */
const global = (side: Side, vhost = ''): string => envoyFilter('filter-ratelimit', appOf(side), httpFilter(side, `
          name: envoy.filters.http.ratelimit
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
            domain: ratelimit
            failure_mode_deny: true
            timeout: 10s
            rate_limit_service:
              grpc_service: {envoy_grpc: {cluster_name: outbound|8081||ratelimit.outside.svc.cluster.local, authority: ratelimit.outside.svc.cluster.local}}
              transport_api_version: V3`)) + envoyFilter('filter-ratelimit-svc', appOf(side), `
    - applyTo: VIRTUAL_HOST
      match: {context: ${side}${vhost && `, routeConfiguration: {vhost: {name: "${vhost}", route: {action: ANY}}}`}}
      patch:
        operation: MERGE
        value:
          rate_limits: [{actions: [{request_headers: {header_name: ":path", descriptor_key: PATH}}]}]`);

const status = async (mode: Mode | 'outside', url: string): Promise<number> => (await mesh.curl(mode, url)).status;
const statuses = async (mode: Mode | 'outside', url: string, count: number): Promise<number[]> => {
  const found: number[] = [];
  for (let i = 0; i < count; i++) found.push(await status(mode, url));
  return found;
};
/** Until an answer shows that the filter works: what is acknowledged is in force a moment later. */
const limited = (mode: Mode | 'outside', url: string): Promise<boolean | void> => waitFor(`a limit on ${url}`, async () => (await status(mode, url)) === 429, { timeoutMs: 120_000, everyMs: 20 });
const fixed = async (yaml: string, mode: Mode): Promise<void> => {
  await mesh.apply(mode, yaml);
  assert.deepEqual(await mesh.nacks(), []);
};

for (const mode of MODES) {
  test(`local rate limit of a workload: each of its proxies lets so many requests through, then answers 429, to callers in the mesh and outside (${mode})`, async () => {
    await fixed(localPerWorkload('SIDECAR_INBOUND', 4), mode);
    for (const from of [mode, 'outside'] as const) {
      const url = `http://web.${mode}/`;
      await limited(from, url);
      // Two servers with four each are empty after a while, whichever is chosen; another workload is not limited.
      await waitFor('both to be empty', async () => (await statuses(from, url, 10)).every((code) => code === 429), { timeoutMs: 120_000, everyMs: 20 });
      assert.equal((await mesh.curl(from, url)).headers['x-local-rate-limit'], 'true');
      assert.deepEqual(await statuses(from, `http://other.${mode}/`, 5), [200, 200, 200, 200, 200]);
    }
    await mesh.clear(mode);
    for (const from of [mode, 'outside'] as const) await waitFor('the end of the limit', async () => (await status(from, `http://web.${mode}/`)) === 200, { timeoutMs: 120_000, everyMs: 20 });
  });

  test(`global rate limit at the servers: all of them share what the service counts (${mode})`, async () => {
    await fixed(global('SIDECAR_INBOUND'), mode);
    const path = `/twice-${mode}`;
    for (const from of [mode, 'outside'] as const) {
      // Connections that a client had pooled to the servers go on without the filter for one more answer.
      await waitFor('the limit', async () => (await statuses(from, `http://web.${mode}${path}`, 4)).every((code) => code === 429), { timeoutMs: 120_000, everyMs: 20 });
      assert.deepEqual(await statuses(from, `http://web.${mode}/unlimited`, 4), [200, 200, 200, 200]);
    }
  });

  test(`a patch of the servers' own routes alone has its effect (${mode})`, async () => {
    await fixed(envoyFilter('answers', 'web', `
    - applyTo: VIRTUAL_HOST
      match: {context: SIDECAR_INBOUND}
      patch: {operation: MERGE, value: {response_headers_to_add: [{header: {key: x-from-server, value: 'yes'}}]}}`), mode);
    for (const from of [mode, 'outside'] as const) await waitFor('the header', async () => (await mesh.curl(from, `http://web.${mode}/`)).headers['x-from-server'] === 'yes', { timeoutMs: 120_000, everyMs: 20 });
    await mesh.clear(mode);
  });
}

for (const mode of MODES) {
  test(`global rate limit at an ingress gateway: of the host that is named all requests count, of others none (servers in mode ${mode})`, async () => {
    const route = (host: string): string => `---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${host}, namespace: ${mode}}\nspec: {hosts: [${host}.example.com], gateways: [edge/edge], http: [{route: [{destination: {host: web, port: {number: 80}}}]}]}\n`;
    const filters = global('GATEWAY', 'limited.example.com:80').replaceAll('metadata: {name:', 'metadata: {namespace: edge, name:');
    await mesh.clear(mode);
    // The two hosts have routes of their own, else they would share a virtual host.
    await mesh.apply('mesh', istioGatewayYaml(INGRESS, 'edge', server('"*"')) + route('limited') + route('free') + filters);
    await world.noNacks();
    const asked = async (host: string): Promise<number> => (await world.request(INGRESS, `http://${host}.example.com/twice-edge-${mode}`)).status;
    await waitFor('the limit', async () => (await asked('limited')) === 429, { timeoutMs: 120_000, everyMs: 20 });
    const { headers } = await world.request(INGRESS, `http://limited.example.com/twice-edge-${mode}`);
    assert.equal(headers['x-envoy-ratelimited'], 'true');
    assert.deepEqual([await asked('free'), await asked('free'), await asked('free'), await asked('limited')], [200, 200, 200, 429]);
    assert.equal((await world.request(INGRESS, 'http://limited.example.com/unlimited')).status, 200);
    await mesh.clear('mesh');
  });

  test(`local rate limit of one route: the client's proxy counts the requests to that host alone (${mode})`, async () => {
    await fixed(localPerRoute('SIDECAR_OUTBOUND', `web.${mode}.svc.cluster.local:80`, 3), mode);
    await limited(mode, 'http://web/');
    assert.deepEqual(await statuses(mode, 'http://web/', 3), [429, 429, 429]);
    assert.deepEqual(await statuses(mode, 'http://other/', 5), [200, 200, 200, 200, 200]);
  });

  test(`global rate limit at the client: the service is asked over gRPC (${mode})`, async () => {
    await fixed(global('SIDECAR_OUTBOUND'), mode);
    const path = `/once-${mode}`;
    await limited(mode, `http://web${path}`);
    const { status: refused, headers } = await mesh.curl(mode, `http://web${path}`);
    assert.deepEqual([refused, headers['x-envoy-ratelimited']], [429, 'true']);
    assert.deepEqual(await statuses(mode, 'http://web/unlimited', 4), [200, 200, 200, 200]);
  });

  test(`Lua at the client: a script reads the request and writes the answer (${mode})`, async () => {
    const script = `
            function envoy_on_request(handle)
              handle:headers():add("x-lua", "from " .. handle:headers():get(":path"))
            end
            function envoy_on_response(handle)
              handle:headers():add("x-lua-answer", handle:headers():get(":status"))
            end`;
    await fixed(envoyFilter('lua', 'client', httpFilter('SIDECAR_OUTBOUND', `{name: envoy.filters.http.lua, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, default_source_code: {inline_string: ${JSON.stringify(script)}}}}`)), mode);
    await waitFor('the script', async () => (await mesh.curl(mode, 'http://web/')).headers['x-lua-answer'] === '200', { timeoutMs: 120_000, everyMs: 20 });
    assert.equal((await mesh.curl(mode, 'http://web/x')).body['headers']['x-lua'], 'from /x');
    await mesh.clear(mode);
  });
}
