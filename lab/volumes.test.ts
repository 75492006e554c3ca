import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Client, credentials } from '@grpc/grpc-js';
import { Secret } from '../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { DiscoveryRequest, type DiscoveryResponse } from '../proto/generated/envoy/service/discovery/v3/discovery.js';
import { SecretDiscoveryServiceService } from '../proto/generated/envoy/service/secret/v3/sds.js';
import { fileSecret } from '../common/identity/file-secrets.js';
import { waitFor } from '../common/retry.js';
import { Lab } from './lab.js';

const NAME = `up-lab-volumes-${process.pid}`;
const world = (secret: string): string => `
apiVersion: v1
kind: Secret
metadata: {name: certs, namespace: a}
stringData: {tls.crt: "${secret}", tls.key: key}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: a}
data: {one.txt: first, two.txt: second}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: a, annotations: {lab.underpass.io/hostnames: "www.example.com,*.example.org"}}
spec:
  containers:
    - name: main
      image: nginx
      ports: [{containerPort: 8080}]
      volumeMounts:
        - {name: certs, mountPath: /etc/certs, readOnly: true}
        - {name: settings, mountPath: /etc/app/settings}
        - {name: settings, mountPath: /etc/app/only.txt, subPath: two.txt}
        - {name: scratch, mountPath: /var/lib/istio/data}
        - {name: settings, mountPath: /no-such-root/settings}
        - {name: scratch, mountPath: /run}
  volumes:
    - {name: certs, secret: {secretName: certs}}
    - {name: settings, configMap: {name: settings}}
    - {name: scratch, emptyDir: {}}
---
apiVersion: v1
kind: Pod
metadata: {name: gateway, namespace: a}
spec:
  containers: [{name: istio-proxy, image: proxyv2, args: [proxy, router], volumeMounts: [{name: certs, mountPath: /etc/istio/ingressgateway-certs}]}]
  volumes: [{name: certs, secret: {secretName: certs}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: a}
spec: {containers: [{name: curl, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: lacking, namespace: a}
spec: {containers: [{name: curl, image: curl, volumeMounts: [{name: s, mountPath: /etc/s}]}], volumes: [{name: s, secret: {secretName: absent}}, {name: o, secret: {secretName: absent, optional: true}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: a}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web}}
spec: {containers: [{name: main, image: nginx, ports: [{containerPort: 8080}]}]}
`;

let directory: string;
let lab: Lab;
const problems: unknown[] = [];

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-volumes-'));
  writeFileSync(join(directory, 'world.yaml'), world('v1'));
  lab = await Lab.up({ name: NAME, sources: [directory], onProblem: (error) => problems.push(error) });
  await lab.whenReady();
});

after(async () => {
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

const sh = async (pod: string, script: string): Promise<string> => {
  const { code, stdout, stderr } = await lab.exec(pod, ['sh', '-ec', script]);
  assert.equal(code, 0, stderr);
  return stdout.trim();
};

test('volumes: Secrets and ConfigMaps are files where the pod mounts them, beside what the machine has there', async () => {
  assert.equal(await sh('a/reader', 'cat /etc/certs/tls.crt /etc/app/settings/one.txt /etc/app/only.txt; grep -c root: /etc/passwd; head -1 /etc/hosts'), 'v1firstsecond1\n127.0.0.1 localhost');
  await sh('a/reader', 'echo x > /var/lib/istio/data/y && test -e /var/lib/istio/data/y');
  assert.equal((await lab.exec('a/client', ['ls', '/etc/certs'])).code, 2, 'another pod sees none of it');
  assert.match(lab.problems().join('\n'), /a\/reader: the volume at \/no-such-root\/settings is left out/);
  assert.match(lab.problems().join('\n'), /the volume at \/run is left out/, "the pod's own files are there");
});

test('volumes: a changed Secret changes the files of a running pod, and what its gateway is served by path', async () => {
  const name = 'file-cert:/etc/istio/ingressgateway-certs/tls.crt~/etc/istio/ingressgateway-certs/tls.key';
  const client = new Client(`unix:${join(lab.names.podDir(lab.pod('a', 'gateway').uid), 'istio-proxy', 'sds.sock')}`, credentials.createInsecure());
  const { path, requestSerialize, responseDeserialize } = SecretDiscoveryServiceService.streamSecrets;
  const stream = client.makeBidiStreamRequest<DiscoveryRequest, DiscoveryResponse>(path, requestSerialize, responseDeserialize);
  const served: string[] = [];
  stream.on('data', ({ resources }: DiscoveryResponse) => {
    const { type } = Secret.decode(resources[0]?.value ?? Buffer.alloc(0));
    const chain = type?.$case === 'tls_certificate' ? type.value.certificate_chain?.specifier : undefined;
    served.push(chain?.$case === 'inline_string' ? chain.value : '');
  });
  stream.on('error', () => undefined);
  stream.write(DiscoveryRequest.fromPartial({ resource_names: [name] }));
  await waitFor('the certificate', () => served.length > 0);
  writeFileSync(join(directory, 'world.yaml'), world('v2'));
  await waitFor('the new content', async () => (await sh('a/reader', 'cat /etc/certs/tls.crt')) === 'v2');
  await waitFor('the new certificate', () => served.length > 1);
  client.close();
  assert.deepEqual(served, ['v1', 'v2']);
  const lacking = problems.map(String).filter((line) => line.includes('a/lacking'));
  assert.deepEqual(lacking, ['Error: pod a/lacking: its volume s needs Secret absent, which is not there'], 'said once, though objects changed since');
});

test('fileSecret: certificates and roots by path as Istio names them; what is not there is no secret', () => {
  const files: Record<string, string> = { '/c/tls.crt': 'C', '/c/tls.key': 'K', '/c/ca.crt': 'R' };
  const read = (path: string): string | undefined => files[path];
  assert.equal(fileSecret('file-cert:/c/tls.crt~/c/tls.key', read)?.type?.$case, 'tls_certificate');
  assert.equal(fileSecret('file-root:/c/ca.crt', read)?.type?.$case, 'validation_context');
  for (const name of ['file-cert:/c/tls.crt~/c/none', 'file-root:/c/none', 'file-other:/c/ca.crt', 'default'])
    assert.equal(fileSecret(name, read), undefined, name);
});

test('a Service of type LoadBalancer has an external address that pods reach, and says it in its status', async () => {
  const ip = lab.externalIp('a', 'web');
  assert.match(ip, /^172\.18\.255\./);
  assert.match(await sh('a/client', `curl -sS http://${ip}/`), /"pod":"web"/);
  assert.match(readFileSync(join(lab.objectsDir, 'services.yaml'), 'utf8'), new RegExp(`ingress:\\s+- ip: ${ip}`));
});

test('names by annotation: the lab answers them with the pod, wildcards too, and no others', async () => {
  for (const name of ['www.example.com', 'x.example.org']) assert.match(await sh('a/client', `curl -sS http://${name}:8080/`), /"pod":"reader"/);
  assert.equal((await lab.exec('a/client', ['curl', '-sS', 'http://other.example.com/'])).code, 6);
});
