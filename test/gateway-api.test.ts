// The Gateway API with real traffic: Gateways and routes of every kind, routes attached to Services in both modes.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor } from '../common/retry.js';
import { MODES, type Answer, type CurlOptions } from './mesh/world.js';
import { ALL, GatewayWorld, kubeGateway, kubeGatewayYaml, routeYaml as route, secret } from './gateway-world.js';

const FRONT = kubeGateway('front', '{name: http, port: 80}, {name: https, port: 443}, {name: tcp, port: 31400}');
const world = new GatewayWorld('gwapi', [FRONT]);
const { mesh } = world;
const viaGateway = world.request.bind(world, FRONT);
const gateway = kubeGatewayYaml.bind(undefined, 'front');
const HTTP = `{name: http, port: 80, protocol: HTTP, ${ALL}}`;
const TO_FRONT = 'parentRefs: [{name: front, namespace: edge}]';
const WEB = '{name: web, port: 80}';

test('HTTPRoute: matches in the order of the specification, whatever the order of the objects', async () => {
  await mesh.apply('mesh', gateway(HTTP) + route('late', 'node', `${TO_FRONT}
hostnames: [order.example.com]
rules:
  - {matches: [{path: {value: /}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: all}]}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /a}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: prefix}]}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /a/b}}, {path: {value: /zz}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: longer}]}}], backendRefs: [${WEB}]}`) + route('exact', 'sidecar', `${TO_FRONT}
hostnames: [order.example.com]
rules:
  - {matches: [{path: {type: Exact, value: /a/b}}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: exact}]}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /a}, method: POST}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: method}]}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /a}, headers: [{name: v, value: "2"}]}, {path: {value: /a}, queryParams: [{name: v, value: "2"}]}], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: header}]}}], backendRefs: [${WEB}]}`));
  const rule = async (path: string, options: CurlOptions = {}): Promise<string | undefined> => (await viaGateway(`http://order.example.com${path}`, options)).headers['x-rule'];
  assert.equal(await rule('/'), 'all');
  assert.equal(await rule('/ab'), 'all', 'a prefix is made of whole segments');
  assert.equal(await rule('/a/x'), 'prefix');
  assert.equal(await rule('/a/b/c'), 'longer');
  assert.equal(await rule('/a/b'), 'exact');
  assert.equal(await rule('/a/x', { method: 'POST' }), 'method');
  assert.equal(await rule('/a/x', { headers: { v: '2' } }), 'header');
  assert.equal(await rule('/a?v=2'), 'header');
  assert.equal((await viaGateway('http://elsewhere.example.com/')).status, 404);
  await world.noNacks();
});

test('HTTPRoute: filters rewrite, redirect, edit headers; weights, and 500 for what leads nowhere', async () => {
  await mesh.apply('mesh', gateway(HTTP) + route('filters', 'sidecar', `${TO_FRONT}
hostnames: [filters.example.com]
rules:
  - {matches: [{path: {value: /strip}}], filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /full}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /go}}], filters: [{type: RequestRedirect, requestRedirect: {hostname: there.example.com, scheme: https, path: {type: ReplacePrefixMatch, replacePrefixMatch: /gone}, statusCode: 301}}]}
  - {matches: [{path: {value: /plain}}], filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]}
  - {matches: [{path: {value: /headers}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-gone]}}], backendRefs: [${WEB}]}
  - {matches: [{path: {value: /nowhere}}], backendRefs: [{name: nobody, port: 80}]}
  - {matches: [{path: {value: /none}}]}
  - {matches: [{path: {value: /half}}], backendRefs: [{name: web, port: 80, weight: 1}, {name: nobody, port: 80, weight: 1}]}`));
  const at = (path: string, options?: CurlOptions): Promise<Answer> => viaGateway(`http://filters.example.com${path}`, options);
  const stripped = await at('/strip/a/b');
  assert.deepEqual([stripped.body['path'], stripped.body['headers']['host']], ['/a/b', 'inner.example.com']);
  assert.equal((await at('/strip')).body['path'], '/');
  assert.equal((await at('/full/x/y')).body['path'], '/one');
  const gone = await at('/go/on');
  assert.deepEqual([gone.status, gone.headers['location']], [301, 'https://there.example.com/gone/on']);
  const plain = await at('/plain');
  assert.deepEqual([plain.status, plain.headers['location']], [302, 'http://filters.example.com/x']);
  const { headers } = (await at('/headers', { headers: { 'x-gone': '1', 'x-add': 'b' } })).body as { headers: Record<string, string> };
  assert.deepEqual([headers['x-set'], headers['x-gone'], headers['x-add']?.includes('a')], ['s', undefined, true]);
  assert.equal((await at('/nowhere')).status, 500);
  assert.equal((await at('/none')).status, 500);
  const statuses: Record<number, number> = {};
  for (let i = 0; i < 40; i++) {
    const { status } = await at('/half');
    statuses[status] = (statuses[status] ?? 0) + 1;
  }
  assert.deepEqual(Object.keys(statuses).sort(), ['200', '500'], JSON.stringify(statuses));
});

test('listeners: host names are intersected, namespaces and kinds that are not allowed stay out', async () => {
  const listeners = gateway(
    '{name: wild, port: 80, protocol: HTTP, hostname: "*.apps.example.com", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: node}}}}}',
    '{name: same, port: 80, protocol: HTTP, hostname: own.example.com}',
  );
  await mesh.apply('mesh', listeners + route('in', 'node', `${TO_FRONT}\nhostnames: [one.apps.example.com, own.example.com]\nrules: [{backendRefs: [${WEB}]}]`) + route('out', 'sidecar', `${TO_FRONT}\nhostnames: [two.apps.example.com]\nrules: [{backendRefs: [${WEB}]}]`));
  assert.equal((await viaGateway('http://one.apps.example.com/')).status, 200);
  assert.equal((await viaGateway('http://own.example.com/')).status, 404);
  assert.equal((await viaGateway('http://two.apps.example.com/')).status, 404);
});

test('ReferenceGrant: a backend of another namespace needs its consent', async () => {
  const objects = gateway(HTTP) + route('cross', 'sidecar', `${TO_FRONT}\nhostnames: [cross.example.com]\nrules: [{backendRefs: [{name: web, namespace: node, port: 80}]}]`);
  await mesh.apply('mesh', objects);
  assert.equal((await viaGateway('http://cross.example.com/')).status, 500);
  await mesh.apply('mesh', `${objects}apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: some, namespace: node}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: sidecar}], to: [{group: "", kind: Service}]}\n`);
  assert.equal((await viaGateway('http://cross.example.com/')).status, 200);
});

test('HTTPS with a certificate from a Secret, TCPRoute by port', async () => {
  const { one, ca } = world.certificates;
  await mesh.apply('mesh', secret('one', { 'tls.crt': one.certificate, 'tls.key': one.key }) +
    gateway(`{name: https, port: 443, protocol: HTTPS, hostname: one.example.com, tls: {certificateRefs: [{name: one}]}, ${ALL}}`, `{name: tcp, port: 31400, protocol: TCP, ${ALL}}`) +
    route('secure', 'node', `${TO_FRONT}\nrules: [{backendRefs: [${WEB}]}]`) + route('raw', 'sidecar', `${TO_FRONT}\nrules: [{backendRefs: [{name: web, port: 9000}]}]`, 'TCPRoute'));
  assert.equal((await viaGateway('https://one.example.com/', { args: ['--cacert', ca] })).status, 200);
  assert.match(await world.line(FRONT, 31400), /hello/);
  await world.noNacks();
});

test('HTTPRoute: prefixes are replaced by whole segments, in rewrites and redirects', async () => {
  const to = (prefix: string): string => `path: {type: ReplacePrefixMatch, replacePrefixMatch: ${prefix}}`;
  const rule = (path: string, filter: string): string => `\n  - {matches: [{path: {value: ${path}}}], filters: [${filter}]${filter.includes('URLRewrite') ? `, backendRefs: [${WEB}]` : ''}}`;
  const rewrite = (prefix: string): string => `{type: URLRewrite, urlRewrite: {${to(prefix)}}}`;
  const redirect = (prefix: string): string => `{type: RequestRedirect, requestRedirect: {${to(prefix)}}}`;
  await mesh.apply('mesh', gateway(HTTP) + route('deep', 'node', `${TO_FRONT}\nhostnames: [deep.example.com]\nrules:${rule('/a/', rewrite('/b/'))}${rule('/r', redirect('/'))}${rule('/s', redirect('/t/'))}`) + route('root', 'node', `${TO_FRONT}\nhostnames: [root.example.com]\nrules:${rule('/', rewrite('/under'))}`) + route('up', 'node', `${TO_FRONT}\nhostnames: [up.example.com]\nrules:${rule('/', redirect('/under'))}`));
  const path = async (url: string): Promise<unknown> => (await viaGateway(url)).body['path'];
  const location = async (url: string): Promise<unknown> => (await viaGateway(url)).headers['location'];
  assert.deepEqual([await path('http://deep.example.com/a/x/y'), await path('http://deep.example.com/a'), await path('http://root.example.com/x')], ['/b/x/y', '/b', '/under/x']);
  assert.deepEqual([await location('http://deep.example.com/r/x'), await location('http://deep.example.com/r'), await location('http://deep.example.com/s/x'), await location('http://up.example.com/x')],
    ['http://deep.example.com/x', 'http://deep.example.com/', 'http://deep.example.com/t/x', 'http://up.example.com/under/x']);
  await world.noNacks();
});

for (const mode of MODES) {
  test(`HTTPRoute: copies of a share of the requests, limits of time, retries (servers in mode ${mode})`, async () => {
    const copies = (path: string, share: string): string => `\n  - {matches: [{path: {value: ${path}}}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: other, port: 80}, ${share}}}], backendRefs: [${WEB}]}`;
    await mesh.apply('mesh', gateway(HTTP) + route('busy', mode, `${TO_FRONT}
hostnames: [busy.example.com]
rules:${copies('/all', 'percent: 100')}${copies('/none', 'percent: 0')}${copies('/half', 'fraction: {numerator: 1, denominator: 2}')}
  - {matches: [{path: {value: /hang}}], timeouts: {request: 200ms}, backendRefs: [${WEB}]}
  - {matches: [{path: {value: /flaky}}], retry: {codes: [503], attempts: 3}, timeouts: {backendRequest: 30s}, backendRefs: [{name: other, port: 80}]}`));
    await world.noNacks();
    const at = (path: string): Promise<Answer> => viaGateway(`http://busy.example.com${path}`);
    assert.equal((await at('/hang')).status, 504);
    assert.equal((await at(`/flaky/2/503?key=${mode}`)).status, 200);
    for (let i = 0; i < 40; i++) for (const path of ['/all', '/none', '/half']) assert.equal((await at(path)).status, 200);
    const copied = async (): Promise<Record<string, number>> => {
      const { stdout } = await mesh.lab.exec(`${mode}/other`, ['curl', '-s', 'http://127.0.0.1:8080/count']);
      return (JSON.parse(stdout) as { paths: Record<string, number> }).paths;
    };
    await waitFor('the copies', async () => (await copied())['/all'] === 40, { timeoutMs: 120_000, everyMs: 50 });
    const { '/none': none, '/half': half = 0 } = await copied();
    // 5.5 standard deviations around 20 of 40.
    assert.deepEqual([none, half > 2 && half < 38], [undefined, true], `${half} of 40`);
  });

  test(`TLSRoute on a listener that ends TLS: its certificate, and the bytes inside by the name (servers in mode ${mode})`, async () => {
    const { one } = world.certificates;
    const listener = `{name: https, port: 443, protocol: TLS, tls: {mode: Terminate, certificateRefs: [{name: one}]}, ${ALL}}`;
    const to = (name: string, backend: string): string => route(name, mode, `${TO_FRONT}\nhostnames: [${name}.example.com]\nrules: [{backendRefs: [{name: ${backend}, port: 9000}]}]`, 'TLSRoute');
    await mesh.apply('mesh', secret('one', { 'tls.crt': one.certificate, 'tls.key': one.key }) + gateway(listener) + to('one', 'web') + to('two', 'nobody'));
    await world.noNacks();
    assert.deepEqual([await world.line(FRONT, 443, 'hello', 'one.example.com'), await world.line(FRONT, 443, 'hello', 'two.example.com'), await world.line(FRONT, 443, 'hello', 'three.example.com')], ['hello', 'refused', 'refused']);
    assert.equal(await world.subject(FRONT, 443, 'one.example.com'), 'one.example.com');
  });

  test(`HTTPRoute on a ServiceEntry: its clients in the mesh obey (${mode})`, async () => {
    const address = mesh.lab.pod('outside', 'web').ips[0]!;
    const entry = `apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: far}\nspec: {hosts: [far.example], addresses: [10.79.0.1], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], endpoints: [{address: ${address}}]}\n---\n`;
    await mesh.apply(mode, entry + route('far', mode, `parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: far}]
rules:
  - {matches: [{path: {value: /near}}], backendRefs: [${WEB}]}
  - {backendRefs: [{group: networking.istio.io, kind: Hostname, name: far.example, port: 80}]}`));
    await world.noNacks();
    const version = async (path: string): Promise<string> => (await mesh.curl(mode, `http://far.example${path}`, { args: ['--resolve', 'far.example:80:10.79.0.1'] })).version;
    assert.equal(await version('/'), 'out');
    assert.match(await version('/near'), /^v[12]$/);
    await mesh.clear(mode);
  });
}

test('listeners: the nearest of a port has its host alone; of two that can not be told apart neither is served', async () => {
  const own = '{name: own, port: 80, protocol: HTTP, hostname: own.example.com}';
  const all = route('all', 'node', `${TO_FRONT}\nhostnames: [own.example.com, other.example.com]\nrules: [{backendRefs: [${WEB}]}]`);
  await mesh.apply('mesh', gateway(HTTP, own) + all);
  assert.deepEqual([(await viaGateway('http://own.example.com/')).status, (await viaGateway('http://other.example.com/')).status], [404, 200]);
  await mesh.apply('mesh', gateway(HTTP, `{name: raw, port: 80, protocol: TCP, ${ALL}}`, `{name: tcp, port: 31400, protocol: TCP, ${ALL}}`) + all + route('raw', 'node', `${TO_FRONT}\nrules: [{backendRefs: [{name: web, port: 9000}]}]`, 'TCPRoute'));
  assert.deepEqual([await world.line(FRONT, 80), await world.line(FRONT, 31400)], ['refused', 'hello']);
  await world.noNacks();
});

for (const mode of MODES) {
  test(`HTTPRoute on a Service: its clients in the mesh obey (${mode})`, async () => {
    const toService = 'parentRefs: [{group: "", kind: Service, name: web, port: 80}]';
    await mesh.apply('mesh', route('split', mode, `${toService}
rules:
  - {matches: [{headers: [{name: user, value: jesse}]}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /other}}}], backendRefs: [{name: other, port: 80}]}
  - {backendRefs: [{name: web, port: 80, weight: 1}, {name: other, port: 80, weight: 0}]}`));
    const jesse = await mesh.curl(mode, 'http://web/x', { headers: { user: 'jesse' } });
    assert.match(String(jesse.body['pod']), /^other/);
    assert.match(String((await mesh.curl(mode, 'http://web/x')).body['pod']), /^web/);
    await world.noNacks();
    await mesh.clear('mesh');
    assert.match(String((await mesh.curl(mode, 'http://web/x', { headers: { user: 'jesse' } })).body['pod']), /^web/);
  });
}
