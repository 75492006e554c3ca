import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pino } from 'pino';
import { ManualClock } from '../../common/clock.js';
import { CertificateAuthority } from '../../common/identity/ca.js';
import { RootRotation } from './root-rotation.js';

const DAY_MS = 86_400_000;

test('RootRotation: introduced in time, issuing after a day, alone when all leaves of the old one are over', async () => {
  const clock = new ManualClock();
  const ca = await CertificateAuthority.create({ clock, rootTtlMs: 100 * DAY_MS, maxLeafTtlMs: 7 * DAY_MS });
  const first = ca.rootPem;
  const rotation = new RootRotation(ca, { logger: pino({ level: 'silent' }) });
  // Steps are taken by hand: making a key takes its time, which this clock does not know.
  const stepAt = async (days: number): Promise<string> => {
    assert.ok(Math.abs(rotation.nextMs - days * DAY_MS) < 1000, `${rotation.nextMs / DAY_MS} days`);
    await rotation.step();
    assert.notEqual(rotation.nextMs, 0);
    const before = ca.phase;
    clock.advance(0);
    assert.equal(ca.phase, before);
    const changed = new Promise<void>((resolve) => {
      const end = ca.onChange(() => {
        end();
        resolve();
      });
    });
    clock.advance(rotation.nextMs);
    await changed;
    return ca.phase;
  };
  assert.equal(await stepAt(100 - 1 - 14), 'introduced');
  assert.ok(ca.rootPem.startsWith(first), 'the old root signs still, both are trusted');
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(await stepAt(1), 'retiring');
  assert.ok(ca.rootPem.endsWith(first));
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(await stepAt(7), 'steady');
  assert.ok(!ca.rootPem.includes(first));
  rotation.close();
  assert.equal(clock.nextMs, undefined);
});
