// Against a server that plays the API server's part for one Secret: what it can't be made to do is to fail at the wanted moment.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { CertificateAuthority, RootsChangedError, type StoredRoots } from '../../common/identity/ca.js';
import { KubeClient } from '../../common/kube/client.js';
import type { Secret } from '../../common/kube/types.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { RootSecretFollower, SecretRootStore } from './secret-root-store.js';

const WAIT = { everyMs: 10 };
const log = logger('test').child({}, { level: 'silent' });

test('RootSecretFollower: roots that could not be taken over are tried again, and until they are nothing is saved over them', async (context) => {
  let secret: Secret | undefined;
  let version = 0;
  const watches = new Set<ServerResponse>();
  const put = (data: Secret['data']): void => {
    secret = { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'underpass-ca', namespace: 'istio-system', resourceVersion: String(++version) }, data } as Secret;
    for (const watch of watches) watch.write(`${JSON.stringify({ type: 'MODIFIED', object: secret })}\n`);
  };
  const server = createServer((request, response) => {
    const url = new URL(request.url!, 'http://a');
    if (url.searchParams.get('watch')) {
      watches.add(response);
      return void response.writeHead(200).flushHeaders();
    }
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk.toString())).on('end', () => {
      const send = (status: number, answer: object): void => void response.writeHead(status).end(JSON.stringify(answer));
      const sent = body === '' ? undefined : (JSON.parse(body) as Secret);
      if (request.method === 'POST') {
        put(sent!.data);
        return send(201, secret!);
      }
      if (request.method === 'PATCH') {
        if (sent!.metadata.resourceVersion !== String(version)) return send(409, { message: 'changed' });
        put(sent!.data);
        return send(200, secret!);
      }
      if (!url.pathname.endsWith('/underpass-ca')) return send(200, { kind: 'SecretList', metadata: { resourceVersion: String(version) }, items: secret ? [secret] : [] });
      return secret ? send(200, secret) : send(404, { message: 'none' });
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = new KubeClient({ url: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), credentials: () => Promise.resolve({ headers: {}, rejectUnauthorized: true }) });
  const store = new SecretRootStore(client, 'istio-system');
  const ca = await CertificateAuthority.create({ store });
  const other = await CertificateAuthority.create();
  const adopt = ca.adopt.bind(ca);
  let refused = 0;
  let works = false;
  ca.adopt = (roots: StoredRoots): Promise<void> => (works ? adopt(roots) : (refused++, Promise.reject(new Error('out of memory'))));
  const follower = new RootSecretFollower(ca, store, log);
  context.after(async () => {
    client.close();
    for (const watch of watches) watch.end();
    await follower.close();
    server.closeAllConnections();
    server.close();
  });
  await waitFor('the watch', () => watches.size > 0, WAIT);
  const [text, { issuing, since }] = [(words: string): string => Buffer.from(words).toString('base64'), other.stored];
  put({ 'ca-cert.pem': text(issuing.certificatePem), 'ca-key.pem': text(issuing.privateKeyPem), since: text(String(since)) });
  const before = refused;
  await waitFor('it to be tried again', () => refused >= before + 2, WAIT);
  await assert.rejects(store.save(ca.stored), RootsChangedError);
  works = true;
  await waitFor('the roots to be taken over', () => ca.rootPem === other.rootPem, WAIT);
  await waitFor('a save to be one of theirs', () => store.save(ca.stored).then(() => true, () => false), WAIT);
});
