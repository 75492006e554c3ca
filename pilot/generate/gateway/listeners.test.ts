import assert from 'node:assert/strict';
import { test } from 'node:test';
import { unpack } from '../../../common/xds/any.js';
import { Listener } from '../../../proto/generated/envoy/config/listener/v3/listener.js';
import { parseProxy } from '../../model/proxy.js';
import { serviceYaml } from '../../testing/mesh.js';
import { testMesh } from '../../testing/model.js';
import { TYPE } from '../resource.js';

const proxy = parseProxy('router~10.0.0.8~ingress.shop~shop.svc.cluster.local', { LABELS: { istio: 'ingressgateway' } });
const gateway = (name: string, day: number, server: string): string => `\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: ${name}, namespace: shop, creationTimestamp: "2026-01-0${day}T00:00:00Z"}\nspec: {selector: {istio: ingressgateway}, servers: [${server}]}\n---`;
const PLAIN = '{port: {number: 8443, name: http, protocol: HTTP}, hosts: ["*"]}';
const TLS = '{port: {number: 8443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: front}}';
const NAMED = '{port: {number: 8443, name: named, protocol: HTTPS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: front}}';

/** Of each listener the chains: their server names, and whether TLS ends there. */
function chains(yaml: string): unknown[] {
  const { generators } = testMesh(serviceYaml('shop', 'a', '10.96.0.1', []) + yaml);
  return generators.get(TYPE.listener)!.all(proxy).map(({ name, body }) => [name, unpack(Listener, body)!.filter_chains.map((chain) => [chain.filter_chain_match?.server_names ?? [], chain.transport_socket !== undefined])]);
}

test('a port is plaintext or TLS, by the oldest Gateway: no listener that Envoy refuses for two chains of one match', () => {
  assert.deepEqual(chains(gateway('new', 2, TLS) + gateway('old', 1, PLAIN)), [['0.0.0.0_8443', [[[], false]]]]);
  assert.deepEqual(chains(gateway('new', 2, PLAIN) + gateway('old', 1, TLS)), [['0.0.0.0_8443', [[[], true]]]]);
  assert.deepEqual(chains(gateway('new', 2, NAMED) + gateway('old', 1, TLS)), [['0.0.0.0_8443', [[[], true], [['a.example'], true]]]]);
});
