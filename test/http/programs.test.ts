/**
 * Real HTTP programs with one another through the fast path: each answer is what its own request asked for, whatever lengths,
 * chunks and methods come on a connection one after the other; between programs that don't block most go without Envoy.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { mayBeFast, wasFast } from './programs/plan.js';
import { CLIENTS, HttpPrograms, SERVERS } from './programs/world.js';

/** Of each pair; what blocks is slow. */
const requests = (blocks: boolean | undefined): number => (blocks ? 100 : 240);

const programs = new HttpPrograms('http-programs');
before(() => programs.up());
after(() => programs.down());

for (const server of Object.keys(SERVERS)) {
  test(`${Object.keys(CLIENTS).join(', ')} and wrk with ${server}`, async (context) => {
    await Promise.all(Object.entries(CLIENTS).map(([client, { blocking }]) => context.test(client, async () => {
      const plan = programs.plan(requests(SERVERS[server]!.blocking));
      const { reports, wrong } = await programs.work(client, server, plan);
      const [fast, able] = [reports.filter(wasFast).length, plan.filter(mayBeFast).length];
      context.diagnostic(`${client} with ${server}: ${fast} of ${able} fast`);
      assert.deepEqual(wrong.slice(0, 5), [], `${wrong.length} of ${plan.length} wrong; ${programs.said}`);
      if (blocking || SERVERS[server]!.blocking) assert.equal(fast, 0, 'what blocks is Envoy\'s');
      else assert.ok(fast > able / 2, `${fast} of ${able} fast: ${JSON.stringify(await programs.counters())}`);
    })));
    if (SERVERS[server]!.kind !== 'echo') return;
    const { right, wrong, errors, said, fast } = await programs.wrk(server, 1);
    context.diagnostic(`wrk with ${server}: ${fast} of ${right} fast`);
    assert.deepEqual([wrong, errors], [0, 0], said);
    assert.ok(right > 0 && (SERVERS[server]!.blocking ? fast === 0 : fast > right / 2), `${fast} of ${right} fast`);
  });
}
