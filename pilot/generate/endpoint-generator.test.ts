import assert from 'node:assert/strict';
import { test } from 'node:test';
import { podYaml, serviceYaml, sliceYaml } from '../testing/mesh.js';
import { testMesh } from '../testing/model.js';
import { parseProxy } from '../model/proxy.js';
import { EndpointGenerator } from './endpoint-generator.js';

const web = { name: 'web-1', ip: '10.1.0.1', labels: { app: 'web' } };
const WEB = 'outbound|80||web.shop.svc.cluster.local';

test('EndpointGenerator: names that nobody watches any more are forgotten when there are many; those that are watched are told of changes', () => {
  const mesh = testMesh(serviceYaml('shop', 'web', '10.96.0.1', [web]));
  const generator = new EndpointGenerator(mesh.model, 10);
  const proxy = parseProxy('sidecar~10.0.0.9~a.shop~shop.svc.cluster.local');
  const strange = Array.from({ length: 30 }, (_, index) => `outbound|80|v${index}|web.shop.svc.cluster.local`);
  const everyName = new Set([WEB, ...strange, 'no cluster']);
  for (const name of everyName) generator.one(proxy, name);
  let asked = 0;
  const watched = (): Set<string>[] => (asked++, [new Set([WEB]), new Set([WEB, strange[7]!])]);
  generator.forget(watched);
  const change = mesh.apply(podYaml('shop', { ...web, name: 'web-2', ip: '10.1.0.2' }) + sliceYaml('shop', 'web', [web, { ...web, name: 'web-2', ip: '10.1.0.2' }]));
  generator.invalidate(change);
  assert.deepEqual([...generator.affected(proxy, change, everyName)].sort(), [strange[7], WEB].sort());
  generator.one(proxy, strange[1]!);
  generator.forget(watched);
  assert.equal(asked, 1, 'few are let be');
});
