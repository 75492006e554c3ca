import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod } from '../../../common/kube/types.js';
import type { View } from '../mesh-index.js';
import { mountedFile } from './files.js';

test('a file of a pod is in the volume that is mounted deepest; a path of very many slashes holds nobody up', () => {
  const mounts: [string, string][] = [['all', '/etc/'], ['certs', '/etc/certs//'], ['long', `${'/'.repeat(1_000_000)}x`]];
  const pod = {
    apiVersion: 'v1', kind: 'Pod', metadata: { name: 'a', namespace: 'b' },
    spec: { containers: [{ name: 'a', image: 'a', volumeMounts: mounts.map(([name, mountPath]) => ({ name, mountPath })) }], volumes: mounts.map(([name]) => ({ name, secret: { secretName: name } })) },
  } as unknown as Pod;
  const view = { of: () => [] } as unknown as View;
  const found = ['/etc/certs/tls.crt', '/etc/other', '/srv/x'].map((path) => mountedFile(view, pod, path));
  assert.deepEqual(found.map((file) => file && [file.object, file.key]), [['Secret b/certs', 'tls.crt'], ['Secret b/all', 'other'], undefined]);
});
