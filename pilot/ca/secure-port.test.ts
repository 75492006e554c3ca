/** ADS and certificates on the TLS port: who gets in as whom, what survives a change of certificates, and roots exchanged under traffic. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { createServer, connect, type TLSSocket } from 'node:tls';
import { after, before, test } from 'node:test';
import { credentials, Metadata, status as GrpcStatus, type ServiceError } from '@grpc/grpc-js';
import { CaIdentitySource } from '../../common/identity/ca-client.js';
import type { IssuedCertificate } from '../../common/identity/ca.js';
import { waitFor } from '../../common/retry.js';
import { AggregatedDiscoveryServiceClient } from '../../proto/generated/envoy/service/discovery/v3/ads.js';
import { DeltaDiscoveryRequest, type DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { SecretDiscoveryServiceClient } from '../../proto/generated/envoy/service/secret/v3/sds.js';
import { TYPE } from '../generate/resource.js';
import { serviceYaml } from '../testing/mesh.js';
import { bearer, createCertificate, securePilot, type SecurePilot } from './testing.js';

const WAIT = { everyMs: 10 };
const WEB = { namespace: 'shop', serviceAccount: 'web' };
const NODE = 'sidecar~10.0.0.9~web-1.shop~shop.svc.cluster.local';

let mesh: SecurePilot;

interface Stream {
  responses: DeltaDiscoveryResponse[];
  error?: Pick<ServiceError, 'code' | 'details'>;
  ended: boolean;
  ask(typeUrl: string): void;
  close(): void;
}

function ads(options: { node?: string; metadata?: Record<string, unknown>; token?: string; certificate?: IssuedCertificate }, of = mesh): Stream {
  const { certificate, token, node = NODE, metadata = {} } = options;
  const own = certificate ? [Buffer.from(certificate.privateKeyPem), Buffer.from(certificate.chainPem)] : [];
  const client = new AggregatedDiscoveryServiceClient(of.address, credentials.createSsl(Buffer.from(of.pilot.ca!.rootPem), ...own), { 'grpc.use_local_subchannel_pool': 1 });
  const call = client.deltaAggregatedResources(token === undefined ? new Metadata() : bearer(token));
  const stream: Stream = {
    responses: [],
    ended: false,
    ask: (typeUrl) => void call.write(DeltaDiscoveryRequest.fromPartial({ node: { id: node, metadata }, type_url: typeUrl })),
    close: () => {
      call.cancel();
      client.close();
    },
  };
  call.on('data', (response: DeltaDiscoveryResponse) => {
    stream.responses.push(response);
    call.write(DeltaDiscoveryRequest.fromPartial({ type_url: response.type_url, response_nonce: response.nonce }));
  });
  call.on('error', ({ code, details }: ServiceError) => {
    stream.error = { code, details };
    stream.ended = true;
  });
  call.on('end', () => (stream.ended = true));
  mesh.store.defer(stream.close);
  return stream;
}

async function outcome(stream: Stream): Promise<GrpcStatus> {
  stream.ask(TYPE.cluster);
  await waitFor('an answer', () => stream.responses.length > 0 || stream.ended, WAIT);
  return stream.error?.code ?? GrpcStatus.OK;
}

before(async () => {
  mesh = await securePilot(serviceYaml('shop', 'web', '10.96.0.1', []));
});
after(() => mesh.store.close());

test('ADS over TLS: by token and by certificate, each as its own namespace and account', async () => {
  const token = await mesh.issuer.issue(WEB);
  const certificate = await mesh.pilot.ca!.issue(WEB);
  for (const proof of [{ token }, { certificate }]) {
    assert.equal(await outcome(ads({ ...proof, metadata: { SERVICE_ACCOUNT: 'web' } })), GrpcStatus.OK);
    assert.equal(await outcome(ads({ ...proof, metadata: { SERVICE_ACCOUNT: 'db' } })), GrpcStatus.PERMISSION_DENIED);
    assert.equal(await outcome(ads({ ...proof, node: 'sidecar~10.0.0.9~web-1.other~other.svc.cluster.local' })), GrpcStatus.PERMISSION_DENIED);
    assert.equal(await outcome(ads({ ...proof, metadata: { NAMESPACE: 'other' } })), GrpcStatus.PERMISSION_DENIED);
  }
});

test('ADS over TLS: nobody without credentials, nor with wrong ones', async () => {
  for (const proof of [{}, { token: 'x' }, { token: await mesh.issuer.issue(WEB, { audience: 'other' }) }]) {
    const stream = ads(proof);
    assert.equal(await outcome(stream), GrpcStatus.UNAUTHENTICATED);
    assert.deepEqual([stream.error?.details, stream.responses], ['authentication failed', []]);
  }
});

test('a stream that has grown old ends without an error, and its client opens another', async () => {
  const young = await securePilot(serviceYaml('shop', 'web', '10.96.0.1', []), {}, { streamAgeMs: 300 });
  mesh.store.defer(() => young.store.close());
  const token = await young.issuer.issue(WEB);
  for (let round = 0; round < 2; round++) {
    const stream = ads({ token }, young);
    stream.ask(TYPE.cluster);
    await waitFor('its end', () => stream.ended, WAIT);
    assert.equal(stream.error, undefined);
  }
  await waitFor('nobody to be connected', () => young.pilot.status().ads.connections.length === 0, WAIT);
});

test('the plaintext port has no certificate service and no secrets', async () => {
  const { IstioCertificateServiceClient } = await import('../../proto/generated/istio/v1/auth/ca.js');
  const client = new IstioCertificateServiceClient(mesh.pilot.addresses[0]!, credentials.createInsecure());
  const error = await new Promise<ServiceError | null>((resolve) => client.createCertificate({ csr: '', validity_duration: 0n, metadata: undefined }, bearer('x'), (failure) => resolve(failure)));
  client.close();
  assert.equal(error?.code, GrpcStatus.UNIMPLEMENTED);
});

test("the TLS port's roots are given to callers that prove who they are, to no others", async () => {
  const client = new SecretDiscoveryServiceClient(mesh.address, credentials.createSsl(Buffer.from(mesh.pilot.ca!.rootPem)), { 'grpc.use_local_subchannel_pool': 1 });
  const stream = client.deltaSecrets();
  const [error] = (await once(stream, 'error')) as [ServiceError];
  client.close();
  assert.equal(error.code, GrpcStatus.UNAUTHENTICATED);
});

test('a client that subscribes to secrets without end is ended', async () => {
  const client = new SecretDiscoveryServiceClient(mesh.address, credentials.createSsl(Buffer.from(mesh.pilot.ca!.rootPem)), { 'grpc.use_local_subchannel_pool': 1 });
  const stream = client.deltaSecrets(bearer(await mesh.issuer.issue(WEB)));
  const ended = once(stream, 'error');
  stream.write(DeltaDiscoveryRequest.fromPartial({ type_url: TYPE.secret, resource_names_subscribe: Array.from({ length: 2_000 }, (_, index) => `name-${index}`) }));
  const [error] = (await ended) as [ServiceError];
  client.close();
  assert.equal(error.code, GrpcStatus.RESOURCE_EXHAUSTED);
});

/** One mutual handshake and an echo between two workloads that each have what their source gave them. */
async function talk(server: { certificate: IssuedCertificate; source: CaIdentitySource }, client: { certificate: IssuedCertificate; source: CaIdentitySource }): Promise<string> {
  const listener = createServer({ cert: server.certificate.chainPem, key: server.certificate.privateKeyPem, ca: server.source.rootPem, requestCert: true, rejectUnauthorized: true }, (socket: TLSSocket) => socket.end(socket.getPeerCertificate().subjectaltname ?? 'nobody'));
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  try {
    const { port } = listener.address() as AddressInfo;
    // A workload's certificate has a SPIFFE id in place of a host name; that it is verified by the roots is what counts here.
    const socket = connect({ host: '127.0.0.1', port, cert: client.certificate.chainPem, key: client.certificate.privateKeyPem, ca: client.source.rootPem, rejectUnauthorized: true, checkServerIdentity: () => undefined });
    let text = '';
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()));
    await new Promise<void>((resolve, reject) => socket.once('end', resolve).once('error', reject));
    assert.equal(socket.authorized, true);
    // With TLS 1.3 a client whose certificate is refused learns it by an end without a word.
    if (text === '') throw new Error('the server refused the client');
    return text;
  } finally {
    listener.close();
  }
}

test('roots are exchanged: in every phase old and new certificates work with each other, roots are pushed, and no ADS stream ends', async () => {
  const ca = mesh.pilot.ca!;
  const oldRoot = ca.rootPem;
  const token = await mesh.issuer.issue(WEB);
  const stream = ads({ token });
  assert.equal(await outcome(stream), GrpcStatus.OK);
  const sources = [1, 2].map(() => new CaIdentitySource({ address: mesh.address.replace('127.0.0.1', 'localhost'), rootPem: oldRoot, token: () => token }));
  let pushed = 0;
  for (const source of sources) {
    mesh.store.add(source);
    source.onRootChange(() => pushed++);
  }
  const [a, b] = sources as [CaIdentitySource, CaIdentitySource];
  const both = async (what: string): Promise<void> => void (await waitFor(what, () => sources.every(({ rootPem }) => rootPem === ca.rootPem), WAIT));
  const old = [await a.issue(), await b.issue()] as const;
  const expected = 'URI:spiffe://cluster.local/ns/shop/sa/web';
  assert.equal(await talk({ certificate: old[0], source: a }, { certificate: old[1], source: b }), expected);

  await ca.introduceRoot();
  await both('both roots');
  assert.ok(pushed >= 2, 'it was pushed, no certificate was asked for');
  assert.equal(ca.rootPem.split('BEGIN CERTIFICATE').length - 1, 2);
  assert.equal(await talk({ certificate: old[0], source: a }, { certificate: await b.issue(), source: b }), expected);

  await ca.switchRoot();
  await both('the same roots, the new one first');
  const renewed = await a.issue();
  assert.equal(await talk({ certificate: renewed, source: a }, { certificate: old[1], source: b }), expected);
  assert.equal(await talk({ certificate: old[1], source: b }, { certificate: renewed, source: a }), expected);

  const last = await b.issue();
  await ca.retireRoot();
  await both('the new root alone');
  assert.ok(!ca.rootPem.includes(oldRoot.trim()));
  assert.equal(await talk({ certificate: renewed, source: a }, { certificate: last, source: b }), expected);
  await assert.rejects(talk({ certificate: old[1], source: b }, { certificate: renewed, source: a }), /self-signed|unable to|issuer/, 'the client refuses what the old root signed');
  await assert.rejects(talk({ certificate: renewed, source: a }, { certificate: old[1], source: b }), /refused|ECONNRESET|alert/, 'the server too');

  // The port itself has a certificate of the new root by now; certificates of the old one open no door.
  await waitFor('a certificate by the new root', async () => (await createCertificate({ csr: 'x' }, { address: mesh.address, rootPem: ca.rootPem, metadata: bearer(token) })).error?.code === GrpcStatus.INVALID_ARGUMENT, WAIT);
  const refused = await createCertificate({ csr: 'x' }, { address: mesh.address, rootPem: ca.rootPem, certificate: old[0] });
  assert.equal(refused.error?.code, GrpcStatus.UNAUTHENTICATED);
  const answers = stream.responses.length;
  stream.ask(TYPE.listener);
  await waitFor('an answer on the first stream', () => stream.responses.length > answers, WAIT);
  assert.equal(stream.ended, false);
});

test('CaIdentitySource: a refusal is heard at once, a CA that is away is asked again', async () => {
  const bad = new CaIdentitySource({ address: mesh.address.replace('127.0.0.1', 'localhost'), rootPem: mesh.pilot.ca!.rootPem, token: () => 'wrong' });
  await assert.rejects(bad.issue(), /UNAUTHENTICATED/);
  bad.close();
  const heard: unknown[] = [];
  const away = new CaIdentitySource({ address: 'localhost:1', rootPem: mesh.pilot.ca!.rootPem, backoff: { initialMs: 5, maxMs: 10, factor: 1, jitter: 0 }, onError: (error) => heard.push(error) });
  const failed = assert.rejects(away.issue());
  await waitFor('three attempts', () => heard.length >= 3, WAIT);
  away.close();
  await failed;
});
