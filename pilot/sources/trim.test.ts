import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { KubeObject, Pod } from '../../common/kube/types.js';
import { mountedFile } from '../validation/checks/files.js';
import type { View } from '../validation/mesh-index.js';
import { trimmed } from './trim.js';

const metadata = { name: 'web-1', namespace: 'shop', labels: { app: 'web' }, annotations: { 'ambient.istio.io/redirection': 'enabled', 'kubectl.kubernetes.io/last-applied-configuration': '{}' }, ownerReferences: [{ apiVersion: 'apps/v1', kind: 'ReplicaSet', name: 'web', uid: 'u', controller: true }], managedFields: [{ manager: 'kubelet' }] };
const kept = { name: 'web-1', namespace: 'shop', labels: { app: 'web' }, annotations: { 'ambient.istio.io/redirection': 'enabled' }, ownerReferences: metadata.ownerReferences };

test('trimmed: of a Pod stays what the mesh reads of it', () => {
  const pod = {
    apiVersion: 'v1', kind: 'Pod', metadata,
    spec: {
      nodeName: 'node-1', serviceAccountName: 'web', subdomain: 'web', hostNetwork: false, tolerations: [{}], dnsPolicy: 'ClusterFirst',
      volumes: [{ name: 'kube-api-access-x', projected: { sources: [] } }, { name: 'tls', secret: { secretName: 'tls' } }, { name: 'scratch', emptyDir: {} }],
      containers: [{ name: 'app', image: 'web', env: [{ name: 'A', value: '1' }], ports: [{ name: 'http', containerPort: 8080 }], volumeMounts: [{ name: 'tls', mountPath: '/tls' }, { name: 'scratch', mountPath: '/tmp' }, { name: 'kube-api-access-x', mountPath: '/var/run' }], resources: {} }],
      initContainers: [{ name: 'init', image: 'init', command: ['true'] }],
    },
    status: { phase: 'Running', podIP: '10.0.0.1', podIPs: [{ ip: '10.0.0.1' }], hostIP: '192.168.0.1', containerStatuses: [{ name: 'app' }], conditions: [{ type: 'Initialized', status: 'True' }, { type: 'Ready', status: 'True', lastTransitionTime: 'then' }] },
  } as unknown as KubeObject;
  assert.deepEqual(trimmed(pod), {
    apiVersion: 'v1', kind: 'Pod', metadata: kept,
    spec: { nodeName: 'node-1', serviceAccountName: 'web', hostNetwork: false, subdomain: 'web', containers: [{ name: 'app', ports: [{ name: 'http', containerPort: 8080 }], volumeMounts: [{ name: 'tls', mountPath: '/tls' }] }], initContainers: [{ name: 'init' }], volumes: [{ name: 'tls', secret: { secretName: 'tls' } }] },
    status: { phase: 'Running', podIP: '10.0.0.1', podIPs: [{ ip: '10.0.0.1' }], hostIP: '192.168.0.1', conditions: [{ type: 'Ready', status: 'True' }] },
  });
});

test('trimmed: of a Node stay its labels, of others all but who changed which field; a wrong shape stays for the checks', () => {
  assert.deepEqual(trimmed({ apiVersion: 'v1', kind: 'Node', metadata, spec: { podCIDR: 'x' }, status: { images: [{}] } } as unknown as KubeObject), { apiVersion: 'v1', kind: 'Node', metadata: kept });
  assert.deepEqual(trimmed({ apiVersion: 'v1', kind: 'Service', metadata, spec: { ports: [] }, status: { loadBalancer: {} } } as unknown as KubeObject), { apiVersion: 'v1', kind: 'Service', metadata: kept, spec: { ports: [] }, status: { loadBalancer: {} } });
  for (const spec of [undefined, 'x', { containers: 'x' }, { containers: [null] }]) assert.deepEqual(trimmed({ apiVersion: 'v1', kind: 'Pod', metadata: { name: 'x' }, spec } as unknown as KubeObject), { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'x' }, spec });
});

test('trimmed: what is mounted within the volume of a Secret hides its files, and stays', () => {
  const volumes = [{ name: 'tls', secret: { secretName: 'tls' } }, { name: 'driver', csi: { driver: 'secrets-store.csi.k8s.io' } }, { name: 'scratch', emptyDir: {} }];
  const volumeMounts = [{ name: 'tls', mountPath: '/etc/tls' }, { name: 'driver', mountPath: '/etc/tls/ca' }, { name: 'scratch', mountPath: '/etc/tls-scratch' }];
  const pod = { apiVersion: 'v1', kind: 'Pod', metadata: kept, spec: { volumes, containers: [{ name: 'istio-proxy', volumeMounts }] } } as unknown as Pod;
  assert.deepEqual(trimmed(pod).spec.containers[0]!.volumeMounts, volumeMounts.slice(0, 2));
  const nothing = { of: () => [] } as unknown as View;
  for (const each of [pod, trimmed(pod)]) {
    assert.equal(mountedFile(nothing, each, '/etc/tls/ca/root.crt'), undefined);
    assert.equal(mountedFile(nothing, each, '/etc/tls/tls.crt')?.object, 'Secret shop/tls');
  }
});
