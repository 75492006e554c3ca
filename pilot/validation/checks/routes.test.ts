import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatError, parseYaml } from '../../../common/kube/yaml.js';
import { podYaml, serviceYaml } from '../../testing/mesh.js';
import { References } from '../references.js';

function problems(yaml: string): string[] {
  const { objects, errors } = parseYaml(yaml.trimStart(), 'x.yaml');
  assert.deepEqual(errors.filter(({ severity }) => severity === 'error').map(formatError), []);
  const references = new References(objects, 'cluster.local');
  return objects.flatMap((loaded) => references.check(loaded)).map(({ kind, namespace, name, field, severity, message }) => `${kind} ${namespace}/${name}: ${field}: ${severity} ${message}`);
}

function one(yaml: string, expected: RegExp): void {
  const found = problems(yaml);
  assert.equal(found.length, 1, found.join('\n'));
  assert.match(found[0]!, expected);
}

const WEB = serviceYaml('shop', 'web', '10.96.0.1', []);
const vs = (spec: string, name = 'v', namespace = 'shop'): string => `\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: ${name}, namespace: ${namespace}}\nspec: ${spec}\n---`;
const rule = (spec: string, name = 'd'): string => `\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ${name}, namespace: shop}\nspec: ${spec}\n---`;
const entry = (spec: string, namespace = 'shop'): string => `\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: ${namespace}}\nspec: ${spec}\n---`;
const TO_WEB = 'route: [{destination: {host: web}}]';

test('destinations of mirrors, TLS and TCP routes are looked at as those of HTTP', () => {
  one(WEB + vs(`{hosts: [web], http: [{${TO_WEB}, mirror: {host: wab}}]}`), /spec\.http\[0\]\.mirror\.host: warning found "wab"/);
  one(WEB + vs(`{hosts: [web], http: [{${TO_WEB}, mirrors: [{destination: {host: web, subset: v9}}]}]}`), /spec\.http\[0\]\.mirrors\[0\]\.destination\.subset: error found "v9"/);
  one(WEB + vs('{hosts: [web], tcp: [{route: [{destination: {host: web, port: {number: 9}}}]}]}'), /spec\.tcp\[0\]\.route\[0\]\.destination\.port\.number: error found 9/);
  one(WEB + vs('{hosts: [a.example], tls: [{match: [{sniHosts: [a.example]}], route: [{destination: {host: nowhere.example}}]}]}'), /spec\.tls\[0\]\.route\[0\]\.destination\.host: warning found "nowhere\.example"/);
});

test('a ServiceEntry\'s hosts are destinations, its wildcards too; those that are not exported here are not', () => {
  const to = (host: string): string => vs(`{hosts: [web], http: [{route: [{destination: {host: ${host}, port: {number: 443}}}]}]}`);
  const spec = '{hosts: [api.example, "*.wild.example"], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}';
  assert.deepEqual(problems(WEB + entry(spec) + to('api.example')), []);
  assert.deepEqual(problems(WEB + entry(spec) + to('a.wild.example')), []);
  one(WEB + entry(spec) + to('wild.example'), /found "wild\.example", but no Service/);
  one(WEB + entry(spec.replace('{hosts', '{exportTo: ["."], hosts'), 'other') + to('api.example'), /is not exported to namespace shop/);
});

test('a delegate that is not there, has hosts, or is not exported here is a warning', () => {
  const root = vs('{hosts: [web], http: [{delegate: {name: part, namespace: other}}]}', 'root');
  const part = (spec: string): string => vs(spec, 'part', 'other');
  const away = '{http: [{route: [{destination: {host: web.shop.svc.cluster.local}}]}]}';
  assert.deepEqual(problems(WEB + root + part(away)), []);
  one(WEB + root, /spec\.http\[0\]\.delegate: warning found "other\/part", but no such VirtualService/);
  one(WEB + root + part(away.replace('{http', '{hosts: [q.example], http')), /which has hosts of its own/);
  one(WEB + root + part(away.replace('{http', '{exportTo: ["."], http')), /not exported to namespace shop/);
});

const gateway = `${podYaml('istio-system', { name: 'gw', ip: '10.0.0.9', labels: { istio: 'ingressgateway' } })}\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: front, namespace: istio-system}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop/a.example, "*/b.example"]}]}\n---`;

test('a Gateway that is not there, or takes none of the hosts, is a warning', () => {
  const bound = (host: string, name = 'istio-system/front'): string => WEB + gateway + vs(`{hosts: [${host}], gateways: [${name}], http: [{${TO_WEB}}]}`);
  assert.deepEqual(problems(bound('a.example')), []);
  one(bound('a.example', 'front'), /spec\.gateways\[0\]: warning found "front", but no Gateway shop\/front is known/);
  one(bound('c.example'), /whose servers take none of the hosts for namespace shop/);
  one(bound('a.example').replace(/shop\/a\.example/, 'elsewhere/a.example'), /take none of the hosts/);
  one(WEB + gateway + vs(`{hosts: [a.example], gateways: [istio-system/front], http: [{match: [{gateways: [istio-system/back]}], ${TO_WEB}}]}`), /spec\.http\[0\]\.match\[0\]\.gateways\[0\]: warning found "istio-system\/back"/);
});

test('VirtualServices of one host: in the mesh one counts, on a Gateway they merge until one takes everything', () => {
  const mesh = (name: string, more = ''): string => vs(`{hosts: [web], ${more} http: [{${TO_WEB}}]}`, name);
  one(WEB + mesh('a') + mesh('b'), /VirtualService shop\/b: spec\.hosts\[0\]: warning found "web", which VirtualService shop\/a routes already/);
  assert.deepEqual(problems(WEB + mesh('a', 'exportTo: ["."],') + vs(`{hosts: [web.shop.svc.cluster.local], exportTo: ["."], http: [{route: [{destination: {host: web.shop.svc.cluster.local}}]}]}`, 'b', 'other')), [], 'nobody sees both');
  const bound = (name: string, match: string): string => vs(`{hosts: [a.example], gateways: [istio-system/front], http: [{${match} ${TO_WEB}}]}`, name);
  assert.deepEqual(problems(WEB + gateway + bound('a', 'match: [{uri: {prefix: /a}}],') + bound('b', 'match: [{uri: {prefix: /b}}],')), []);
  one(WEB + gateway + bound('a', '') + bound('b', 'match: [{uri: {prefix: /b}}],'), /VirtualService shop\/b: .*has a rule that takes everything on Gateway istio-system\/front/);
});

test('DestinationRules of one host: subsets and policies that are there already are named, a host that is not is too', () => {
  const first = rule('{host: web, trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: v1}]}', 'a');
  assert.deepEqual(problems(WEB + first + rule('{host: web.shop.svc.cluster.local, subsets: [{name: v2}]}', 'b')), []);
  one(WEB + first + rule('{host: web, subsets: [{name: v1}]}', 'b'), /DestinationRule shop\/b: spec\.subsets\[0\]\.name: warning found "v1", which DestinationRule shop\/a/);
  one(WEB + first + rule('{host: web, trafficPolicy: {tls: {mode: SIMPLE}}}', 'b'), /DestinationRule shop\/b: spec\.trafficPolicy: warning DestinationRule shop\/a/);
  one(WEB + rule('{host: wep}'), /spec\.host: warning found "wep", but no Service wep\.shop\.svc\.cluster\.local is known; did you mean web\.shop/);
});
