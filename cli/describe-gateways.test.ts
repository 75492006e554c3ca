import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { KubeClient } from '../common/kube/client.js';
import { gatewaysSelecting, gatewaysTo } from './describe-gateways.js';

const OBJECTS: Readonly<Record<string, unknown>> = {
  '/apis/networking.istio.io/v1/virtualservices': { items: [
    { metadata: { name: 'web', namespace: 'shop' }, spec: { gateways: ['mesh', 'public', 'edge/shared'], http: [{ route: [{ destination: { host: 'web' } }] }] } },
    { metadata: { name: 'mirrored', namespace: 'edge' }, spec: { gateways: ['shared'], http: [{ route: [{ destination: { host: 'other' } }], mirror: { host: 'web.shop.svc.cluster.local' } }] } },
    { metadata: { name: 'inside', namespace: 'shop' }, spec: { http: [{ route: [{ destination: { host: 'web' } }] }] } },
    { metadata: { name: 'elsewhere', namespace: 'edge' }, spec: { gateways: ['shared'], http: [{ route: [{ destination: { host: 'web' } }] }] } },
  ] },
  '/apis/gateway.networking.k8s.io/v1/httproutes': { items: [
    { metadata: { name: 'r', namespace: 'edge' }, spec: { parentRefs: [{ name: 'g' }, { kind: 'Service', name: 'web' }], rules: [{ backendRefs: [{ name: 'web', namespace: 'shop' }] }] } },
  ] },
  '/apis/networking.istio.io/v1/gateways': { items: [
    { metadata: { name: 'public', namespace: 'shop' }, spec: { selector: { istio: 'ingress' } } }, { metadata: { name: 'all', namespace: 'shop' }, spec: {} }, { metadata: { name: 'other', namespace: 'shop' }, spec: { selector: { istio: 'egress' } } },
  ] },
  '/api/v1/namespaces/edge/pods/proxy-1': { metadata: { name: 'proxy-1', labels: { istio: 'ingress', app: 'x' } } },
};

test('describe in a cluster: Gateways lead to a service by VirtualServices and routes that name it, in full or short in their own namespace; a kind that may not be read is named', async () => {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url!, 'http://server');
    const found = OBJECTS[pathname];
    if (pathname.endsWith('/grpcroutes')) response.writeHead(403).end(JSON.stringify({ kind: 'Status', message: 'grpcroutes is forbidden' }));
    else response.writeHead(found ? 200 : 404).end(JSON.stringify(found ?? { kind: 'Status', message: 'not found' }));
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = new KubeClient({ url: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), credentials: () => Promise.resolve({ headers: {} }) } as unknown as ConstructorParameters<typeof KubeClient>[0]);
  try {
    const { gateways, problems } = await gatewaysTo(client, new Set(['web.shop.svc.cluster.local']));
    assert.deepEqual(gateways.map(({ gateway, by }) => `${gateway} by ${by}`), ['Gateway shop/public by VirtualService shop/web', 'Gateway edge/shared by VirtualService shop/web', 'Gateway edge/shared by VirtualService edge/mirrored', 'Gateway edge/g by HTTPRoute edge/r']);
    assert.equal(problems.length, 1);
    assert.match(problems[0]!, /^which GRPCRoutes lead here is not known: .*403 grpcroutes is forbidden/);
    assert.deepEqual(await gatewaysSelecting(client, { namespace: 'edge', name: 'proxy-1' }), ['Gateway shop/public']);
  } finally {
    client.close();
    server.closeAllConnections();
    server.close();
  }
});
