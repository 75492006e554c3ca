import assert from 'node:assert/strict';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { credentials } from '@grpc/grpc-js';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { test } from 'node:test';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import {
  DeltaDiscoveryRequest,
  DiscoveryRequest,
  type DeltaDiscoveryResponse,
  type DiscoveryResponse,
} from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { SecretDiscoveryServiceClient } from '../../proto/generated/envoy/service/secret/v3/sds.js';
import { typeUrl, unpack } from '../xds/any.js';
import { CertificateAuthority, spiffeId } from './ca.js';
import { SdsServer } from './sds-server.js';

test('CertificateAuthority.issue: a SPIFFE leaf of 24 h that its root verifies, and a key that fits it', async () => {
  const ca = await CertificateAuthority.create();
  const issued = await ca.issue({ namespace: 'shop', serviceAccount: 'web' });
  const leaf = new X509Certificate(issued.chainPem);
  const root = new X509Certificate(ca.rootPem);
  assert.equal(leaf.subjectAltName, 'URI:spiffe://cluster.local/ns/shop/sa/web');
  assert.ok(leaf.verify(root.publicKey));
  assert.ok(leaf.checkPrivateKey(createPrivateKey(issued.privateKeyPem)));
  assert.equal(leaf.ca, false);
  assert.equal(root.ca, true);
  const hours = (issued.notAfter.getTime() - Date.now()) / 3_600_000;
  assert.ok(hours > 23.9 && hours <= 24, `${hours} h`);
});

test('CertificateAuthority.issue: another root does not verify it', async () => {
  const [one, other] = await Promise.all([CertificateAuthority.create(), CertificateAuthority.create()]);
  const leaf = new X509Certificate((await one.issue({ namespace: 'a', serviceAccount: 'b' })).chainPem);
  assert.equal(leaf.verify(new X509Certificate(other.rootPem).publicKey), false);
});

async function withServer(
  work: (client: SecretDiscoveryServiceClient, server: SdsServer, ca: CertificateAuthority) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'underpass-sds-'));
  const socketPath = join(directory, 'sds.sock');
  const ca = await CertificateAuthority.create();
  const server = await SdsServer.listen({
    socketPath,
    source: { rootPem: ca.rootPem, issue: () => ca.issue({ namespace: 'shop', serviceAccount: 'web' }) },
  });
  const client = new SecretDiscoveryServiceClient(`unix:${socketPath}`, credentials.createInsecure());
  try {
    await work(client, server, ca);
  } finally {
    client.close();
    server.close();
    assert.equal(existsSync(socketPath), false);
    rmSync(directory, { recursive: true });
  }
}

test('SdsServer: state of the world: gives what is asked for, keeps still after the ACK, pushes on renewal', async () => {
  await withServer(async (client, server, ca) => {
    const stream = client.streamSecrets();
    const responses: DiscoveryResponse[] = [];
    stream.on('data', (response: DiscoveryResponse) => responses.push(response));
    stream.on('error', () => undefined);
    const ask = (nonce: string): void =>
      void stream.write(
        DiscoveryRequest.fromPartial({ resource_names: ['default', 'ROOTCA'], response_nonce: nonce, type_url: typeUrl(Secret) }),
      );
    ask('');
    const first = ((await once(stream, 'data')) as [DiscoveryResponse])[0];
    const secrets = first.resources.map((any) => unpack(Secret, any));
    assert.deepEqual(
      secrets.map((secret) => secret?.name),
      ['default', 'ROOTCA'],
    );
    const root = secrets[1]?.type;
    assert.ok(root?.$case === 'validation_context');
    assert.equal(root.value.trusted_ca?.specifier?.value, ca.rootPem);
    const spiffe = spiffeId({ trustDomain: 'cluster.local', namespace: 'shop', serviceAccount: 'web' });
    assert.equal(new X509Certificate(server.certificate.chainPem).subjectAltName, `URI:${spiffe}`);
    ask(first.nonce);
    await new Promise((done) => setTimeout(done, 50));
    assert.equal(responses.length, 1, 'an ACK is not answered');
    const pushed = once(stream, 'data') as Promise<[DiscoveryResponse]>;
    await server.renew();
    const second = (await pushed)[0];
    assert.notEqual(second.version_info, first.version_info);
    assert.notDeepEqual(second.resources[0]?.value, first.resources[0]?.value);
    stream.end();
  });
});

test('SdsServer: delta: an unknown name is told as removed', async () => {
  await withServer(async (client) => {
    const stream = client.deltaSecrets();
    stream.on('error', () => undefined);
    stream.write(
      DeltaDiscoveryRequest.fromPartial({ resource_names_subscribe: ['default', 'no-such'], type_url: typeUrl(Secret) }),
    );
    const response = ((await once(stream, 'data')) as [DeltaDiscoveryResponse])[0];
    assert.deepEqual(
      response.resources.map(({ name }) => name),
      ['default'],
    );
    assert.deepEqual(response.removed_resources, ['no-such']);
    stream.end();
  });
});
