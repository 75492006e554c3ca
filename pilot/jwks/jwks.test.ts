import assert from 'node:assert/strict';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test, type TestContext } from 'node:test';
import { pino } from 'pino';
import { parseDurationMs } from '../../common/kube/schema.js';
import { waitFor } from '../../common/retry.js';
import type { RequestAuthentication } from '../../common/kube/types.js';
import { wantedKeys } from '../model/jwks.js';
import { testMesh } from '../testing/model.js';
import { fetchText } from './fetch.js';
import { JwksFetcher, type JwksFetcherOptions } from './fetcher.js';

const keySet = (kid: string): string => JSON.stringify({ keys: [{ kty: 'oct', kid, k: 'c2VjcmV0' }] });
const soon = { everyMs: 5 };

type Routes = Record<string, (request: IncomingMessage, response: ServerResponse) => void>;

async function serve(t: TestContext, routes: Routes): Promise<{ url: string; counts: Map<string, number> }> {
  const counts = new Map<string, number>();
  const server = createServer((request, response) => {
    const path = request.url!;
    counts.set(path, (counts.get(path) ?? 0) + 1);
    const route = routes[path];
    if (route) route(request, response);
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, counts };
}

function fetcher(t: TestContext, options: Partial<JwksFetcherOptions> = {}): { fetcher: JwksFetcher; keys: Map<string, string | undefined> } {
  const keys = new Map<string, string | undefined>();
  const made = new JwksFetcher({ logger: pino({ level: 'silent' }), onKeys: (source, text) => keys.set(source, text), retry: { initialMs: 5, maxMs: 20 }, ...options });
  t.after(() => made.close());
  return { fetcher: made, keys };
}

const want = (...sources: string[]) => new Map(sources.map((source) => [source, { timeoutMs: undefined }]));

test('fetchText: what is no http URL, too large, too slow or not there is refused with its URI', async (t) => {
  const { url } = await serve(t, {
    '/large': (_request, response) => response.end('x'.repeat((1 << 20) + 1)),
    '/silent': () => undefined,
    '/loop': (_request, response) => response.writeHead(302, { location: '/loop' }).end(),
    '/away': (_request, response) => response.writeHead(302, { location: 'file:///etc/passwd' }).end(),
    '/there': (_request, response) => response.writeHead(307, { location: '/end' }).end(),
    '/end': (_request, response) => response.end('here'),
  });
  assert.equal(await fetchText(`${url}/there`), 'here');
  for (const [uri, reason] of [
    ['file:///etc/passwd', /fetching file:\/\/\/etc\/passwd: expected an http or https URL/],
    ['data:text/plain,x', /expected an http or https URL/],
    ['nonsense', /expected an http or https URL/],
    [`${url}/large`, /more than 1048576 bytes/],
    [`${url}/loop`, /more than 5 redirects/],
    [`${url}/away`, /expected an http or https URL/],
    [`${url}/absent`, /found status 404/],
    ['http://127.0.0.1:1/', /ECONNREFUSED|bad port/],
  ] as const) {
    await assert.rejects(fetchText(uri), reason, uri);
  }
  await assert.rejects(fetchText(`${url}/silent`, { timeoutMs: 50 }), /no answer within 50 ms/);
});

test('JwksFetcher: keys arrive, change with their source, and stay while the source gives nothing good', async (t) => {
  let answer = (response: ServerResponse): void => void response.end(keySet('one'));
  const { url, counts } = await serve(t, { '/keys': (_request, response) => answer(response) });
  const { fetcher: made, keys } = fetcher(t, { refreshMs: 5 });
  const source = `${url}/keys`;
  made.want(want(source));
  await made.settled(20_000);
  assert.equal(keys.get(source), keySet('one'));
  answer = (response) => void response.end(keySet('two'));
  await waitFor('the rotated keys', () => keys.get(source) === keySet('two'), soon);
  for (const bad of [(response: ServerResponse) => response.writeHead(500).end(), (response: ServerResponse) => response.end('no JSON'), (response: ServerResponse) => response.end('{"keys":[]}')]) {
    answer = bad;
    await waitFor('a problem', () => made.problems().length === 1, soon);
    const before = counts.get('/keys')!;
    await waitFor('more attempts', () => counts.get('/keys')! >= before + 2, soon);
    assert.equal(keys.get(source), keySet('two'));
    assert.match(made.problems()[0]!, /the last good keys stay/);
    answer = (response) => void response.end(keySet('two'));
    await waitFor('no problem', () => made.problems().length === 0, soon);
  }
  made.want(want());
  assert.equal(keys.has(source) && keys.get(source) === undefined, true);
});

test('JwksFetcher: an issuer without a jwksUri is asked by OpenID Connect discovery; one that never answered has no keys', async (t) => {
  const { url } = await serve(t, {
    '/.well-known/openid-configuration': (request, response) => response.end(JSON.stringify({ jwks_uri: `http://${request.headers.host}/certs` })),
    '/certs': (_request, response) => response.end(keySet('found')),
    '/other/.well-known/openid-configuration': (_request, response) => response.end('{}'),
  });
  const { fetcher: made, keys } = fetcher(t);
  made.want(want(`${url}/.well-known/openid-configuration`, `${url}/other/.well-known/openid-configuration`));
  await made.settled(20_000);
  assert.deepEqual([...keys], [[`${url}/.well-known/openid-configuration`, keySet('found')]]);
  assert.match(made.problems()[0]!, /found no jwks_uri in it; every token of the issuer is refused/);
});

test('wantedKeys: rules with keys in them fetch nothing; Model.setJwks names the policies that use a source', () => {
  const { model } = testMesh(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: a, namespace: one}
spec: {jwtRules: [{issuer: "https://i.example", jwksUri: "https://i.example/keys", timeout: 2s}, {issuer: x, jwks: '{"keys": []}'}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: b, namespace: two}
spec: {jwtRules: [{issuer: "https://d.example/"}]}
`);
  const policies = model.configs.all<RequestAuthentication>('RequestAuthentication');
  assert.deepEqual([...wantedKeys(policies, parseDurationMs)], [['https://i.example/keys', { timeoutMs: 2_000 }], ['https://d.example/.well-known/openid-configuration', { timeoutMs: undefined }]]);
  assert.deepEqual([...model.setJwks('https://i.example/keys', keySet('one')).configs.get('RequestAuthentication')!], ['one/a']);
  assert.equal(model.setJwks('https://i.example/keys', keySet('one')).empty, true);
});
