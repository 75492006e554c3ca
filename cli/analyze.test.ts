// Each code once, from YAML as people write it, and what the command does with them.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { mergeResults, parseYaml } from '../common/kube/yaml.js';
import { projectRoot } from '../common/paths.js';
import { run, type RunResult } from '../common/process.js';
import { analyze } from './analyze.js';
import { CODES, findingOf } from './analyze/codes.js';

const CLI = join(projectRoot, 'dist', 'cli', 'main.js');
const cli = (args: readonly string[], okCodes: readonly number[] = [0]): Promise<RunResult> => run(process.execPath, [CLI, 'analyze', ...args], { okCodes, timeoutMs: 120_000 });
const found = (yaml: string): string[] => analyze(mergeResults([parseYaml(yaml, 'a.yaml')]), { clusterDomain: 'cluster.local', rootNamespace: 'istio-system' }).map(({ level, code, resource, field }) => `${level} ${code} ${resource} ${field}`);

const SERVICE = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---`;
const route = (http: string, hosts = '[web]', name = 'web'): string => `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ${name}, namespace: shop}
spec: {hosts: ${hosts}, http: ${http}}
---`;
const TO_WEB = 'route: [{destination: {host: web}}]';
const sidecar = (name: string, spec: string): string => `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: ${name}, namespace: shop}
spec: {${spec}egress: [{hosts: ["./*"]}]}
---`;
const rule = (spec: string, host = 'web'): string => `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: ${host}, ${spec}}
---`;
const POD = `
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: echo}]}
---`;

const CASES: Record<string, { yaml: string; expected: RegExp }> = {
  'IST0101 host': { yaml: `${SERVICE}${route('[{route: [{destination: {host: wbe}}]}]')}`, expected: /^Error IST0101 VirtualService web\.shop spec\.http\[0\]/ },
  'IST0101 subset': { yaml: `${SERVICE}${POD}${route('[{route: [{destination: {host: web, subset: v9}}]}]')}${rule('subsets: [{name: v1, labels: {app: web}}]')}`, expected: /^Error IST0101 VirtualService web\.shop .*subset$/ },
  IST0106: { yaml: `${SERVICE}${route('[{timeout: soon, route: [{destination: {host: web}}]}]')}`, expected: /^Error IST0106 VirtualService web\.shop spec\.http\[0\]\.timeout$/ },
  IST0109: { yaml: `${SERVICE}${route(`[{${TO_WEB}}]`)}${route(`[{${TO_WEB}}]`, '[web]', 'second')}`, expected: /^Error IST0109 VirtualService (?:web|second)\.shop spec\.hosts\[0\]$/ },
  IST0110: { yaml: `${POD}${sidecar('a', 'workloadSelector: {labels: {app: web}}, ')}${sidecar('b', 'workloadSelector: {labels: {app: web}}, ')}`, expected: /^Error IST0110 Sidecar b\.shop/ },
  IST0111: { yaml: `${sidecar('a', '')}${sidecar('b', '')}`, expected: /^Error IST0111 Sidecar [ab]\.shop/ },
  IST0112: { yaml: `${SERVICE.replace('port: 80}', 'port: 80}, {name: http-b, port: 81}')}${route(`[{${TO_WEB}}]`)}`, expected: /^Error IST0112 VirtualService web\.shop spec\.http\[0\]\.route\[0\]\.destination$/ },
  IST0116: { yaml: `${SERVICE}${POD}${SERVICE.replace('name: web,', 'name: raw,').replace('name: http', 'name: tcp')}`, expected: /^Warning IST0116 Pod web-1\.shop/ },
  IST0118: { yaml: SERVICE.replace('name: http', 'name: web'), expected: /^Info IST0118 Service web\.shop spec\.ports\[0\]$/ },
  IST0127: { yaml: `${POD}\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {selector: {matchLabels: {app: nobody}}, rules: [{}]}\n`, expected: /^Warning IST0127 AuthorizationPolicy a\.shop/ },
  IST0128: { yaml: `${SERVICE}${rule('trafficPolicy: {tls: {mode: SIMPLE}}')}`, expected: /^Warning IST0128 DestinationRule web\.shop/ },
  IST0129: { yaml: `${SERVICE}${rule('trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}')}`, expected: /^Warning IST0129 DestinationRule web\.shop/ },
  IST0130: { yaml: `${SERVICE}${route(`[{${TO_WEB}}, {match: [{uri: {prefix: /a}}], ${TO_WEB}}]`)}`, expected: /^Error IST0130 VirtualService web\.shop spec\.http\[1\]$/ },
  IST0131: { yaml: `${SERVICE}${route(`[{match: [{uri: {prefix: /a}}], ${TO_WEB}}, {match: [{name: x, uri: {prefix: /a}}], ${TO_WEB}}]`)}`, expected: /^Info IST0131 VirtualService web\.shop spec\.http\[1\]\.match\[0\]$/ },
  UP0001: { yaml: 'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {underpass.io/mode: nodes}}\n', expected: /^Warning UP0001 Namespace shop/ },
};

for (const [name, { yaml, expected }] of Object.entries(CASES)) {
  test(`analyze: ${name} ${CODES[name.split(' ')[0] as keyof typeof CODES][0]}`, () => {
    const all = found(yaml);
    assert.ok(all.some((each) => expected.test(each)), all.join('\n'));
  });
}

test('analyze: a code is what the check says, whatever its words are', () => {
  const of = (about: Parameters<typeof findingOf>[0]['about'], kind = 'VirtualService'): string => findingOf({ severity: 'warning', file: 'a.yaml', line: 1, column: 1, kind, name: 'x', field: 'spec.subset', message: 'is known, expected one of, left out, only the oldest counts', ...(about === undefined ? {} : { about }) }, 'together').code;
  assert.deepEqual([of(undefined), of('missing'), of('no-workload'), of('several'), of('second'), of('second', 'Sidecar'), of('routed-already'), of('not-taken')], ['IST0133', 'IST0101', 'IST0127', 'UP0002', 'UP0002', 'IST0111', 'IST0109', 'IST0132']);
});

test('analyze: what is as it should be has no findings', () => {
  assert.deepEqual(found(`${SERVICE}${POD}${route(`[{match: [{uri: {prefix: /a}}], ${TO_WEB}}, {${TO_WEB}}]`)}`), []);
});

test('underpass analyze: folders with -R, --namespace, --suppress, --failure-threshold, -o json', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), `up-analyze-${process.pid}-`));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  mkdirSync(join(folder, 'deep'));
  writeFileSync(join(folder, 'web.yaml'), SERVICE.replace('name: http', 'name: web'));
  writeFileSync(join(folder, 'deep', 'route.yaml'), route('[{route: [{destination: {host: wbe}}]}]'));
  const flat = await cli([folder]);
  assert.match(flat.stdout, /^Info \[IST0118\] \(Service web\.shop .*web\.yaml:\d+\) spec\.ports\[0\]: port 80/);
  const deep = await cli(['-f', folder, '-R', '-o', 'json'], [1]);
  assert.deepEqual((JSON.parse(deep.stdout) as { code: string; resource: string }[]).map(({ code, resource }) => `${code} ${resource}`), ['IST0101 VirtualService web.shop', 'IST0118 Service web.shop']);
  assert.match((await cli([folder, '-R', '--suppress', 'IST0101=VirtualService *.shop', '--namespace', 'shop', '--failure-threshold', 'Info'], [1])).stdout, /IST0118/);
  writeFileSync(join(folder, 'broken.yaml'), 'kind: [\n');
  assert.match((await cli([folder, '--namespace', 'street'], [1])).stdout, /^Error \[IST0106\] \(File .*broken\.yaml/);
  assert.match((await cli([folder, '--suppress', 'nonsense'], [1])).stderr, /UNDERPASS_BAD_OPTION/);
});
