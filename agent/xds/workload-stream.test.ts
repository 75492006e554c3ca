import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { Action, Authorization, Scope } from '../../proto/generated/istio/security/authorization.js';
import { waitFor } from '../../common/retry.js';
import { pack } from '../../common/xds/any.js';
import { TableControlPlane } from '../testing/control-plane.js';
import { AdsChannel } from './channel.js';
import { WorkloadStream } from './workload-stream.js';

test('a policy that can not be read is refused by name and field, and told apart from those that can', async () => {
  const control = new TableControlPlane('127.0.0.1:0');
  await control.start();
  const set = (name: string, destination_ports: number[]): void => control.set(pack(Authorization, Authorization.fromPartial({ name, namespace: 'shop', scope: Scope.NAMESPACE, action: Action.DENY, groups: [{ rules: [{ matches: [{ destination_ports }] }] }] })), `shop/${name}`);
  set('good', [80]);
  set('bad', [80]);
  const channel = new AdsChannel(control.address);
  const changes: string[] = [];
  const stream = new WorkloadStream({ channel, nodeName: 'n', nodeAddress: '127.0.0.1', logger: pino({ level: 'silent' }), onChange: ({ type }) => changes.push(type.shortName) });
  try {
    stream.start();
    await waitFor('the policies', () => stream.synced && stream.authorizations.size === 2, { everyMs: 5 });
    assert.equal(stream.rejectedAuthorizations.size, 0);
    set('bad', [70_000]);
    const before = changes.length;
    control.push('type.googleapis.com/istio.security.Authorization');
    await waitFor('the refusal', () => control.stream.nacks.length > 0, { everyMs: 5 });
    const why = 'AUTHZ "shop/bad": groups[0].rules[0].matches[0].destination_ports[0]: is 70000, expected 1 to 65535';
    assert.equal(control.stream.nacks[0]!.message, why);
    assert.deepEqual([...stream.rejectedAuthorizations], [['shop/bad', why]]);
    assert.deepEqual([...stream.authorizations.keys()].sort(), ['shop/bad', 'shop/good'], 'the last good version is still known');
    assert.ok(changes.length > before, 'whoever enforces hears of a refusal as of any change');
    set('bad', [443]);
    control.push('type.googleapis.com/istio.security.Authorization');
    await waitFor('the mended policy', () => stream.rejectedAuthorizations.size === 0, { everyMs: 5 });
  } finally {
    stream.close();
    channel.close();
    control.stop();
  }
});
