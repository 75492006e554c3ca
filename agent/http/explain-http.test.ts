import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compiled, recorded } from './compile-testing.js';
import { explainHttp } from './explain-http.js';

const CANARY = 'canary.canary.svc.cluster.local';

test('explainHttp: each route of the host that is asked for, and why those are Envoy\'s that are', () => {
  const table = compiled(recorded('canary'));
  const at = ['10.96.62.1'];
  const routes = explainHttp(table, at, 80, [CANARY]);
  assert.ok(routes.length > 0 && routes.some(({ isFast }) => isFast), JSON.stringify(table.findings));
  for (const { name, isFast, reason } of routes) {
    assert.ok(name.startsWith(CANARY), name);
    assert.equal(isFast, reason === undefined);
  }
  assert.ok(explainHttp(table, at, 80, []).length > routes.length);
  assert.deepEqual(explainHttp(table, at, 80, ['nowhere.svc.cluster.local']), []);
});

test('explainHttp: where no endpoint can be learnt of each route says so, and so does a port that is Envoy\'s as a whole', () => {
  const table = compiled(recorded('canary'), { teachable: new Set() });
  const routes = explainHttp(table, ['10.96.62.1'], 80, [CANARY]);
  assert.ok(routes.length > 0);
  for (const { isFast, reason } of routes) assert.ok(!isFast && /event-driven/.test(reason ?? ''), reason);
  const ports = table.findings.filter(({ kind }) => kind === 'port');
  for (const { name, reason } of ports) {
    const [address = '', port = ''] = [name.slice(0, name.lastIndexOf(':')), name.slice(name.lastIndexOf(':') + 1)];
    assert.ok(explainHttp(table, [address === '*' ? '10.0.0.1' : address], Number(port), []).some((each) => each.reason === reason), name);
  }
});
