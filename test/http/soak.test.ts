/** A short form of `make soak`. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { soak } from './programs/soak.js';
import { HttpPrograms } from './programs/world.js';

const SECONDS = 15;

const programs = new HttpPrograms('http-soak');
before(() => programs.up());
after(() => programs.down());

test('mixed clients while routes change: every answer is right, and nothing is left when they are gone', async (context) => {
  const soaked = await soak(programs, SECONDS);
  context.diagnostic(JSON.stringify({ ...soaked, wrong: soaked.wrong.length }));
  assert.deepEqual(soaked.wrong.slice(0, 5), [], `${soaked.wrong.length} wrong; ${programs.said}`);
  assert.ok(soaked.routeChanges >= 1 && soaked.fast > soaked.requests / 5, JSON.stringify(soaked));
  assert.deepEqual(soaked.entries.left, { http_channels: 0, http_clients: 0, http_servers: 0 }, JSON.stringify(soaked));
  assert.equal(soaked.fastPath.lostEnds, 0);
  // Of each pod to each server Envoy keeps a few for all, and those are not of clients that are gone.
  for (const [server, connections] of Object.entries(soaked.serversConnections)) assert.ok(connections <= 60, `${connections} connections at ${server}`);
});
