import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { formatError, loadDirectory, parseYaml } from './yaml.js';

const errorsOf = (yaml: string): string[] => parseYaml(yaml, 'x.yaml').errors.map(formatError);

const virtualService = (http: string): string => `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
${http}
`;

test('a wrong field is named by file, line, column, object and path, with the nearest name', () => {
  assert.deepEqual(
    errorsOf(
      virtualService(`    - route:
        - destination:
            host: web
            subste: v2`),
    ),
    ['x.yaml:10:13: VirtualService shop/web: spec.http[0].route[0].destination.subste: unknown field; did you mean "subset"?'],
  );
});

test('a name far from every field gets the list of fields', () => {
  const [error] = errorsOf(virtualService('    - {routes_to_take: 1, route: [{destination: {host: web}}]}'));
  assert.match(error!, /^x\.yaml:7:8: .*spec\.http\[0\]\.routes_to_take: unknown field; expected one of name, match, route,/);
});

test('a value of the wrong type says what was found and expected', () => {
  assert.deepEqual(errorsOf(virtualService('    - route: [{destination: {host: web}, weight: "75"}]')), [
    'x.yaml:7:50: VirtualService shop/web: spec.http[0].route[0].weight: found string "75", expected a whole number',
  ]);
  assert.match(errorsOf(virtualService('    - {timeout: 5, route: [{destination: {host: web}}]}'))[0]!, /timeout: found number 5, expected a duration such as/);
  assert.match(errorsOf(virtualService('    - {match: [{port: 70000}], route: [{destination: {host: web}}]}'))[0]!, /match\[0\]\.port: found number 70000, expected a whole number from 1 to 65535/);
  assert.match(errorsOf(virtualService('    - {match: [{headers: {user: {exact: yes, prefix: y}}}], route: [{destination: {host: web}}]}'))[0]!, /headers\.user: found exact and prefix, expected at most one/);
});

const refused: [string, string, RegExp][] = [
  ['weights that sum to nothing', '    - route: [{destination: {host: a}}, {destination: {host: b}, weight: 0}]', /http\[0\]\.route: found weights with a sum of 0/],
  ['a route without destination', '    - {timeout: 1s}', /http\[0\]\.route: found no destination/],
  ['an unclosed group in a pattern', '    - {match: [{uri: {regex: "/a("}}], route: [{destination: {host: a}}]}', /uri\.regex: found "\/a\(", expected a regular expression of RE2/],
  ['look-ahead, which RE2 lacks', '    - {match: [{uri: {regex: "(?=a)"}}], route: [{destination: {host: a}}]}', /expected a regular expression of RE2/],
  ['an unknown retry condition', '    - {retries: {attempts: 2, retryOn: "5xx,connect-failur"}, route: [{destination: {host: a}}]}', /retryOn: found "connect-failur", .*did you mean connect-failure\?/],
  ['a destination that is everything', '    - route: [{destination: {host: "*"}}]', /destination\.host: found "\*", expected a host/],
  ['a field that would change traffic and is not acted on', '    - {fault: {delay: {exponentialDelay: 1s}}, route: [{destination: {host: a}}]}', /exponentialDelay: this field is not supported by this version/],
];
for (const [what, http, expected] of refused) {
  test(`VirtualService: ${what} is refused`, () => {
    const result = parseYaml(virtualService(http), 'x.yaml');
    assert.equal(result.errors.length, 1, result.errors.map(formatError).join('\n'));
    assert.match(formatError(result.errors[0]!), expected);
    assert.deepEqual(result.objects, []);
    assert.deepEqual(result.refused, ['networking.istio.io/VirtualService/shop/web']);
  });
}

test('the sum of weights need not be 100, and one destination needs none', () => {
  assert.deepEqual(errorsOf(virtualService('    - route: [{destination: {host: a}, weight: 1}, {destination: {host: b}, weight: 2}]')), []);
  assert.deepEqual(errorsOf(virtualService('    - route: [{destination: {host: a}}]')), []);
});

test('DestinationRule: wrong policy and double subset are named', () => {
  const errors = errorsOf(`apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy: {loadBalancer: {simple: RONDOM, zoneAwareLbSetting: {}}}
  subsets:
    - name: v1
    - name: v1
`);
  assert.equal(errors.length, 3);
  assert.match(errors[0]!, /^x\.yaml:6:42: .*loadBalancer\.simple: found string "RONDOM", expected one of .*did you mean RANDOM\?/);
  assert.match(errors[1]!, /^x\.yaml:6:50: .*zoneAwareLbSetting: warning: this field is not acted on/);
  assert.match(errors[2]!, /^x\.yaml:9:13: .*subsets\[1\]\.name: found "v1" again/);
});

test('every API version passes, an unknown one and an unknown kind do not', () => {
  for (const version of ['v1', 'v1beta1', 'v1alpha3']) {
    assert.deepEqual(errorsOf(virtualService('    - route: [{destination: {host: a}}]').replace('/v1\n', `/${version}\n`)), []);
  }
  assert.match(errorsOf(virtualService('    - route: [{destination: {host: a}}]').replace('/v1\n', '/v2\n'))[0]!, /apiVersion: found "networking.istio.io\/v2", expected one of/);
  assert.match(errorsOf('apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n')[0]!, /^x\.yaml:2:7: .*did you mean VirtualService\?/);
});

test('a kind that is not served is a warning, kinds of others pass untouched', () => {
  const result = parseYaml('apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: a}\nspec: {}\n---\napiVersion: example.com/v1\nkind: Thing\nmetadata: {name: b}\nanything: [1]\n', 'x.yaml');
  assert.deepEqual(result.errors.map(formatError), ['x.yaml:2:7: TrafficExtension default/a: kind: warning: TrafficExtension is not acted on by this version']);
  assert.deepEqual(result.objects.map(({ key }) => key), ['extensions.istio.io/TrafficExtension/default/a', 'example.com/Thing/default/b']);
});

test('Kubernetes kinds: ports, label values and names are looked at', () => {
  const service = (ports: string): string => `apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: ${ports}}\n`;
  assert.match(errorsOf(service('[{port: 80}, {port: 81, name: b}]'))[0]!, /spec\.ports\[0\]\.name: found nothing, a port needs a name/);
  assert.match(errorsOf(service('[{port: http}]'))[0]!, /spec\.ports\[0\]\.port: found string "http", expected a whole number/);
  assert.match(errorsOf('apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: true}}\n')[0]!, /metadata\.labels\.x: found boolean true, expected a string \(put it in quotes\)/);
  assert.match(errorsOf('apiVersion: v1\nkind: Namespace\nmetadata: {name: A_B}\n')[0]!, /metadata\.name: found "A_B", expected a name/);
  assert.match(errorsOf('kind: Namespace\nmetadata: {name: a}\n')[0]!, /apiVersion: found nothing, this field is required/);
  assert.match(errorsOf('apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n')[0]!, /spec: found nothing, this field is required/);
});

test('several documents, Lists, JSON, aliases and merge keys are read with their own places', () => {
  const result = parseYaml(
    `# a comment
---
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "json"}}
---
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Namespace
    metadata: &m {name: one, labels: {a: b}}
  - apiVersion: v1
    kind: ServiceAccount
    metadata: {<<: *m, name: two}
  - apiVersion: v1
    kind: ServiceAccount
    metadata: {name: Three}
`,
    'x.yaml',
  );
  assert.deepEqual(result.objects.map(({ key }) => key), ['/Namespace//json', '/Namespace//one', '/ServiceAccount/default/two']);
  assert.deepEqual(result.objects[2]!.object.metadata.labels, { a: 'b' });
  assert.equal(result.errors.length, 1);
  assert.match(formatError(result.errors[0]!), /^x\.yaml:16:22: ServiceAccount default\/Three: metadata\.name/);
});

test('text that is not YAML is said with its place; the documents before it count', () => {
  const result = parseYaml('apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\na: [1\nb: 2\n', 'x.yaml');
  assert.deepEqual(result.objects.map(({ key }) => key), ['/Namespace//a']);
  assert.deepEqual(result.unreadable, ['x.yaml']);
  assert.match(formatError(result.errors[0]!), /^x\.yaml:\d+:\d+: not YAML: /);
  assert.match(errorsOf('a: 1\na: 2\n')[0]!, /^x\.yaml:2:1: not YAML: Map keys must be unique/);
  assert.match(errorsOf('just text\n')[0]!, /found no mapping, expected an object/);
});

test('aliases that multiply without bound are refused', () => {
  const levels = Array.from({ length: 20 }, (_, i) => `l${i + 1}: &l${i + 1} [${`*l${i}, `.repeat(10)}]`).join('\n');
  const result = parseYaml(`l0: &l0 x\n${levels}\n`, 'x.yaml');
  assert.deepEqual(result.unreadable, ['x.yaml']);
});

test('a directory gives its YAML and JSON files in the order of names, without hidden ones', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'up-pilot-yaml-'));
  try {
    const namespace = (name: string): string => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${name}}\n`;
    for (const [file, name] of [['b.yml', 'b'], ['a.yaml', 'a'], ['c.json', 'c'], ['.hidden.yaml', 'h'], ['a.yaml.tmp', 't'], ['notes.txt', 'n']]) await writeFile(join(folder, file!), namespace(name!));
    const result = await loadDirectory(folder);
    assert.deepEqual(result.objects.map(({ key, file }) => [key, file.slice(folder.length + 1)]), [['/Namespace//a', 'a.yaml'], ['/Namespace//b', 'b.yml'], ['/Namespace//c', 'c.json']]);
  } finally {
    await rm(folder, { recursive: true });
  }
});
