// Programs in Go: they stay plain TCP, since io.Copy between two connections splices, until a label says that they don't.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { projectRoot } from '../../common/paths.js';
import { expectedOf } from './exchange.js';
import { ProgramsWorld, isClient, isListener, program, type PodNamed, type Side } from './world.js';

const world = new ProgramsWorld('go');
const NODE = { argv: [process.execPath, join(projectRoot, 'dist', 'test', 'programs', 'peer.js')], port: 9004 };
const SIZES = [0, 1, 16_384, 3_000_000];
const TIMES = 12;

before(() => world.up());
after(() => world.down());

for (const cleared of [false, true]) {
  const [client, server] = cleared ? (['client-cleared', 'server-cleared'] as const) : (['client', 'server'] as const);
  test(`net/http, server and client${cleared ? ', in pods whose label says that they don\'t splice: short-circuited' : ': plain TCP'}`, async () => {
    await world.both(async (side) => {
      const http = program('http');
      await side.start(server, [http, 'server', '0.0.0.0:8090'], 8090);
      const ask = async (sizes: readonly number[], count: number): Promise<unknown> =>
        JSON.parse(await side.run(client, [http, 'client', `${side.address(server)}:8090`, world.payloadFile, String(count), ...sizes.map(String)])) as unknown;
      const found = await verdicts(side, [client, 'http'], [server, 8090], () => ask([3_000_000], TIMES));
      if (side.accelerated) assert.deepEqual(found, Array(2).fill(cleared ? 'event-driven' : 'spliced'));
      const short = await side.shortCircuited(client, async () => assert.deepEqual(await ask(SIZES, 10), expectedOf(world.payload, SIZES, 10)));
      assert.equal(short, side.accelerated && cleared ? SIZES.length * 10 : 0);
    });
  });
}

test('a proxy that copies TCP between Node and Node: plain TCP at both of its ends', async () => {
  await world.both(async (side) => {
    await side.start('server', [...NODE.argv, 'server', '0.0.0.0', String(NODE.port)], NODE.port);
    await side.start('proxy', [program('copy'), '0.0.0.0:9200', `${side.address('server')}:${NODE.port}`], 9200);
    const at = { address: side.address('proxy'), port: 9200 };
    const warm = () => side.exchange('client', NODE.argv, at, [1], TIMES, 0.1);
    const found = [...(await verdicts(side, ['client', 'node'], ['proxy', 9200], warm)), ...(await verdicts(side, ['proxy', 'copy'], ['server', NODE.port], warm))];
    if (side.accelerated) assert.deepEqual(found, ['event-driven', 'spliced', 'spliced', 'event-driven']);
    const short = await side.shortCircuited('proxy', async () => assert.deepEqual(await side.exchange('client', NODE.argv, at, SIZES, 10), expectedOf(world.payload, SIZES, 10)));
    assert.equal(short, 0);
  });
});

async function verdicts(side: Side, client: [PodNamed, string], server: [PodNamed, number], again: () => Promise<unknown>): Promise<(string | undefined)[]> {
  return [
    await side.untilDecided(`${client[1]} in ${client[0]}`, isClient(...client), again),
    await side.untilDecided(`port ${server[1]} of ${server[0]}`, isListener(...server), again),
  ];
}
