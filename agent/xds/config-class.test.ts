import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { classKey, sidecarNode, type ClassPod } from './config-class.js';

const pod: ClassPod = { name: 'web-1', namespace: 'shop', serviceAccount: 'web', labels: { app: 'web', version: 'v1' }, ips: ['fd00::1', '10.0.0.1'] };

describe('classKey', () => {
  it('is the same for pods that differ in name, address and roll-out labels, and for any order of labels', () => {
    const other: ClassPod = { ...pod, name: 'web-2', ips: ['10.0.0.2', 'fd00::2'], labels: { version: 'v1', app: 'web', 'pod-template-hash': 'x', 'controller-revision-hash': 'y', 'underpass.io/mode': 'node' } };
    assert.equal(classKey(other), classKey(pod));
  });

  it('differs with the families of addresses that the pod has', () => {
    const keys = [pod.ips, ['10.0.0.2'], ['fd00::2']].map((ips) => classKey({ ...pod, ips }));
    assert.equal(new Set(keys).size, keys.length);
  });

  it('differs with namespace, service account and every other label', () => {
    const keys = [pod, { ...pod, namespace: 'other' }, { ...pod, serviceAccount: 'other' }, { ...pod, labels: { app: 'web', version: 'v2' } }, { ...pod, labels: { app: 'web' } }].map(classKey);
    assert.equal(new Set(keys).size, keys.length);
  });
});

describe('sidecarNode', () => {
  it('has the id and metadata of a sidecar in that pod, with its IPv4 address', () => {
    const node = sidecarNode(pod, { nodeName: 'node-1' });
    assert.equal(node.id, 'sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local');
    const { NAMESPACE, NAME, LABELS, SERVICE_ACCOUNT, NODE_NAME, CLUSTER_ID } = node.metadata as Record<string, unknown>;
    assert.deepEqual({ NAMESPACE, NAME, LABELS, SERVICE_ACCOUNT, NODE_NAME, CLUSTER_ID }, {
      NAMESPACE: 'shop', NAME: 'web-1', LABELS: { app: 'web', version: 'v1' }, SERVICE_ACCOUNT: 'web', NODE_NAME: 'node-1', CLUSTER_ID: 'Kubernetes',
    });
  });
});
