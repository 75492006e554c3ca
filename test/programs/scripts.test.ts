// Programs in Python and Node, as both ends of one exchange: equal with and without acceleration, and each is what it is.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { askAgent, probationOf, type PodProbation } from '../../agent/index.js';
import { projectRoot } from '../../common/paths.js';
import { expectedOf } from './exchange.js';
import { ProgramsWorld, isListener, type PodNamed, type Side } from './world.js';

const world = new ProgramsWorld('scripts');
before(async () => {
  await world.up();
  await world.both(async (side) => {
    for (const { argv, port } of KINDS) await side.start('server', [...argv, 'server', '0.0.0.0', String(port)], port);
  });
});
after(() => world.down());

const python = (style: string): string[] => ['python3', join(projectRoot, 'test', 'programs', 'peer.py'), style];
const node = [process.execPath, join(projectRoot, 'dist', 'test', 'programs', 'peer.js')];
const SIZES = [0, 1, 64, 16_384, 65_537, 3_000_000];
/** More than probation asks for, alive for long enough to be looked at. */
const WARM = { sizes: [1], count: 12, holdS: 0.1 };

const KINDS = [
  { name: 'blocking Python', argv: python('blocking'), port: 9001, client: 'client', verdict: 'blocking', atOnce: 2 },
  { name: 'threaded Python', argv: python('threaded'), port: 9002, client: 'client-2', verdict: 'blocking', atOnce: 10 },
  { name: 'asyncio', argv: python('asyncio'), port: 9003, client: 'client-3', verdict: 'event-driven', atOnce: 10 },
  { name: 'Node', argv: node, port: 9004, client: 'client', verdict: 'event-driven', atOnce: 10 },
] as const;
type Kind = (typeof KINDS)[number];

const exe = (kind: Kind): RegExp => (kind.name === 'Node' ? /\/node$/ : /\/python3/);

async function decided(side: Side, kind: Kind, server: Kind): Promise<void> {
  const at = { address: side.address('server'), port: server.port };
  const warm = () => side.exchange(kind.client as PodNamed, kind.argv, at, WARM.sizes, WARM.count, WARM.holdS);
  const client = await side.untilDecided(`${kind.name} as a client`, (entry) => entry.kind === 'client' && entry.pod === kind.client && exe(kind).test(entry.program ?? ''), warm);
  const listener = await side.untilDecided(`${server.name} as a server`, isListener('server', server.port), warm);
  if (side.accelerated) assert.deepEqual([client, listener], [kind.verdict, server.verdict]);
}

for (const server of KINDS) {
  for (const client of KINDS) {
    const both = client.verdict === 'event-driven' && server.verdict === 'event-driven';
    test(`${client.name} with ${server.name}: every byte arrives${both ? ', short-circuited' : ' by plain TCP'}`, async () => {
      await world.both(async (side) => {
        await decided(side, client, server);
        const count = client.atOnce;
        const short = await side.shortCircuited(client.client as PodNamed, async () => {
          const received = await side.exchange(client.client as PodNamed, client.argv, { address: side.address('server'), port: server.port }, SIZES, count);
          assert.deepEqual(received, expectedOf(world.payload, SIZES, count));
        });
        assert.equal(short, both && side.accelerated ? SIZES.length * count : 0);
      });
    });
  }
}

test('what probation came to is told by `underpass probation`, `ps`, the status and the metrics', async () => {
  const { instance, paths } = world.node;
  const table = (await world.node.cli(['probation', '--instance', instance, '-n', 'l4'])).stdout;
  const address = (await world.node.status()).pods.find(({ namespace, name }) => namespace === 'l4' && name === 'server')?.ips[0] ?? '';
  const line = (text: string): RegExp => new RegExp(`^l4 ${text}`.replaceAll(' ', ' +'), 'm');
  assert.match(table, /^NAMESPACE +POD +KIND +PROGRAM +SEEN +VERDICT +WHY$/m);
  assert.match(table, line(`server listener ${address}:9001 \\d+ blocking \\S+/python3\\S*: it sent data on a blocking socket$`));
  assert.match(table, line(`server listener ${address}:9003 \\d+ event-driven \\S+/python3\\S*: neither known to splice nor written in Go$`));
  assert.match(table, line('client client \\S+/node \\d+ event-driven neither known to splice nor written in Go$'));
  assert.match(table, line('client-2 client \\S+/python3\\S* \\d+ blocking it sent data on a blocking socket$'));
  const summary = 'listeners: 2 event-driven, 2 blocking; clients: 2 event-driven, 2 blocking';
  assert.ok(table.endsWith(`\n${summary}\n`), table);
  assert.ok((await world.node.cli(['ps', '--instance', instance])).stdout.includes(`probation      ${summary}\n`));
  assert.match((await world.node.cli(['probation', '--instance', instance, '-n', 'off'])).stdout, /no program has been seen yet/);
  const entries = JSON.parse((await world.node.cli(['probation', '--instance', instance, '-o', 'json'])).stdout) as PodProbation[];
  const { listener, clients } = probationOf(entries, { namespace: 'l4', name: 'client-3' }, { namespace: 'l4', name: 'server', address, port: 9004 });
  assert.equal(listener?.verdict, 'event-driven');
  assert.ok(clients.length === 1 && (clients[0]?.seen ?? 0) >= 8, JSON.stringify(clients));
  const metrics = await askAgent(paths.adminSocket, '/metrics');
  for (const [kind, verdict, count] of [['listener', 'blocking', 2], ['client', 'event-driven', 2], ['client', 'spliced', 0]] as const) {
    assert.match(metrics, new RegExp(`^underpass_probation_programs\\{kind="${kind}",verdict="${verdict}"\\} ${count}$`, 'm'));
  }
});
