/** A real Envoy whose certificate comes from the CA service by way of the agent's SDS: roots exchanged while a connection stays open. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect, type TLSSocket } from 'node:tls';
import { CaIdentitySource } from '../../common/identity/ca-client.js';
import type { IssuedCertificate } from '../../common/identity/ca.js';
import { SdsServer } from '../../common/identity/sds-server.js';
import { envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { freePort } from '../testing/free-port.js';
import { securePilot } from './testing.js';

const WAIT = { everyMs: 50 };
const type = (name: string): string => `type.googleapis.com/${name}`;

function bootstrap(sdsSocket: string, port: number): unknown {
  const sds = (name: string) => ({ name, sds_config: { resource_api_version: 'V3', api_config_source: { api_type: 'DELTA_GRPC', transport_api_version: 'V3', grpc_services: [{ envoy_grpc: { cluster_name: 'sds-grpc' } }] } } });
  const tls = { '@type': type('envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext'), require_client_certificate: true, common_tls_context: { tls_certificate_sds_secret_configs: [sds('default')], validation_context_sds_secret_config: sds('ROOTCA') } };
  const manager = {
    '@type': type('envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager'),
    stat_prefix: 'in',
    route_config: { virtual_hosts: [{ name: 'all', domains: ['*'], routes: [{ match: { prefix: '/' }, direct_response: { status: 200, body: { inline_string: 'ok' } } }] }] },
    http_filters: [{ name: 'envoy.filters.http.router', typed_config: { '@type': type('envoy.extensions.filters.http.router.v3.Router') } }],
  };
  const http2 = { 'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': { '@type': type('envoy.extensions.upstreams.http.v3.HttpProtocolOptions'), explicit_http_config: { http2_protocol_options: {} } } };
  return {
    node: { id: 'web', cluster: 'web' },
    static_resources: {
      clusters: [{ name: 'sds-grpc', type: 'STATIC', typed_extension_protocol_options: http2, load_assignment: { cluster_name: 'sds-grpc', endpoints: [{ lb_endpoints: [{ endpoint: { address: { pipe: { path: sdsSocket } } } }] }] } }],
      listeners: [{ name: 'in', address: { socket_address: { address: '127.0.0.1', port_value: port } }, filter_chains: [{ transport_socket: { name: 'tls', typed_config: tls }, filters: [{ name: 'http', typed_config: manager }] }] }],
    },
  };
}

async function get(socket: TLSSocket): Promise<string> {
  const answered = new Promise<string>((resolve, reject) => {
    let text = '';
    const take = (chunk: Buffer): void => {
      text += chunk.toString();
      if (text.endsWith('ok')) done(() => resolve(text.split('\r\n')[0]!));
    };
    const fail = (): void => done(() => reject(new Error('the connection was refused')));
    const done = (call: () => void): void => {
      socket.off('data', take).off('error', fail).off('close', fail);
      call();
    };
    socket.on('data', take).on('error', fail).on('close', fail);
  });
  socket.write('GET / HTTP/1.1\r\nhost: web\r\n\r\n');
  return answered;
}

test('Envoy serves with certificates of the CA and follows an exchange of roots without dropping a connection', async () => {
  const mesh = await securePilot('');
  const { store } = mesh;
  try {
    const ca = mesh.pilot.ca!;
    const token = await mesh.issuer.issue({ namespace: 'shop', serviceAccount: 'web' });
    const source = new CaIdentitySource({ address: mesh.address.replace('127.0.0.1', 'localhost'), rootPem: ca.rootPem, token: () => token });
    store.add(source);
    const socketPath = join(mesh.folder, 'sds.sock');
    const sds = await SdsServer.listen({ socketPath, source });
    store.add(sds);
    const port = await freePort();
    writeFileSync(join(mesh.folder, 'envoy.json'), JSON.stringify(bootstrap(socketPath, port)));
    const envoy = spawn(envoyBinary(), ['-c', join(mesh.folder, 'envoy.json'), '--concurrency', '1', '--disable-hot-restart', '--log-level', 'error'], { stdio: ['ignore', 'ignore', 'inherit'] });
    store.defer(async () => {
      if (envoy.exitCode !== null) return;
      envoy.kill('SIGKILL');
      await once(envoy, 'exit');
    });
    const open = async (certificate: IssuedCertificate, rootPem: string): Promise<TLSSocket> => {
      const socket = connect({ host: '127.0.0.1', port, cert: certificate.chainPem, key: certificate.privateKeyPem, ca: rootPem, checkServerIdentity: () => undefined });
      socket.on('error', () => undefined);
      store.defer(() => void socket.destroy());
      await once(socket, 'secureConnect');
      return socket;
    };
    const isServed = async (certificate: IssuedCertificate, rootPem: string): Promise<boolean> => open(certificate, rootPem).then(get).then((line) => line === 'HTTP/1.1 200 OK', () => false);
    const client = { namespace: 'shop', serviceAccount: 'client' };
    const old = await ca.issue(client);
    const oldRoot = ca.rootPem;
    await waitFor('Envoy to serve', () => isServed(old, oldRoot), WAIT);
    const kept = await open(old, oldRoot);
    assert.equal(kept.getPeerCertificate().subjectaltname, 'URI:spiffe://cluster.local/ns/shop/sa/web');
    assert.equal(await get(kept), 'HTTP/1.1 200 OK');

    await ca.introduceRoot();
    await waitFor('the roots at the source', () => source.rootPem === ca.rootPem, WAIT);
    assert.equal(await isServed(old, oldRoot), true);
    await ca.switchRoot();
    const fresh = await ca.issue(client);
    await waitFor('Envoy to take what the new root signed', () => isServed(fresh, ca.rootPem), WAIT);
    await sds.renew();
    await ca.retireRoot();
    await waitFor('Envoy to be known by the new root alone', () => isServed(fresh, ca.rootPem), WAIT);
    await waitFor('Envoy to refuse what the old root signed', async () => !(await isServed(old, ca.rootPem)), WAIT);
    assert.equal(await get(kept), 'HTTP/1.1 200 OK', 'the connection of before is still there');
  } finally {
    await store.close();
  }
});
