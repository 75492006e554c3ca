/** Each client of a battery with each of its servers, as tests. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Battery } from './battery.js';
import { mayBeFast, wasFast } from './plan.js';
import { HttpPrograms } from './world.js';

/** Of each pair; what blocks is slow. */
const [MANY, FEW] = [240, 100];

/** @param area part of the names of what is made on the machine */
export function testEach(area: string, battery: Battery): void {
  const programs = new HttpPrograms(area, battery);
  before(() => programs.up());
  after(() => programs.down());

  for (const [server, { kind, slow }] of Object.entries(battery.servers)) {
    test(`${Object.keys(battery.clients).join(', ')} and wrk with ${server}`, async (context) => {
      await Promise.all(Object.entries(battery.clients).map(([client, { slow: slowClient }]) => context.test(client, async () => {
        const plan = programs.plan(slow ? FEW : MANY);
        const { reports, wrong } = await programs.work(client, server, plan);
        const [fast, able] = [reports.filter(wasFast).length, plan.filter(mayBeFast).length];
        context.diagnostic(`${client} with ${server}: ${fast} of ${able} fast`);
        assert.deepEqual(wrong.slice(0, 5), [], `${wrong.length} of ${plan.length} wrong; ${programs.said}`);
        if (slow ?? slowClient) assert.equal(fast, 0, `what is ${slow ?? slowClient} is Envoy's`);
        else assert.ok(fast > able / 2, `${fast} of ${able} fast: ${JSON.stringify(await programs.counters())}`);
      })));
      if (kind !== 'echo') return;
      const { right, wrong, errors, said, fast } = await programs.wrk(server, 1);
      context.diagnostic(`wrk with ${server}: ${fast} of ${right} fast`);
      assert.deepEqual([wrong, errors], [0, 0], said);
      assert.ok(right > 0 && (slow ? fast === 0 : fast > right / 2), `${fast} of ${right} fast`);
    });
  }
}
