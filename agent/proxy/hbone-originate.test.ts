import assert from 'node:assert/strict';
import { test } from 'node:test';
import { tunnelHeaders } from './hbone-originate.js';

test('baggage of a tunnel: a Deployment\'s pod says the Deployment, another itself; labels say the service and its revision', () => {
  const of = (name: string, labels: Record<string, string>) => tunnelHeaders({ name, namespace: 'shop', labels }, 'Far').baggage;
  assert.equal(of('my-web-5d8-x2x4z', { 'pod-template-hash': '5d8', version: 'v2' }), 'k8s.cluster.name=Far,k8s.namespace.name=shop,k8s.deployment.name=my-web,service.name=my-web,service.version=v2');
  assert.equal(of('my-web-5d8-x2x4z', { 'pod-template-hash': '5d8', app: 'web' }), 'k8s.cluster.name=Far,k8s.namespace.name=shop,k8s.deployment.name=my-web,service.name=web,service.version=latest');
  assert.equal(of('alice', { 'pod-template-hash': '5d8' }), 'k8s.cluster.name=Far,k8s.namespace.name=shop,k8s.pod.name=alice,service.name=alice,service.version=latest');
});
