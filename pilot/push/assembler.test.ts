import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import { ResourceList } from '../generate/resource-list.js';
import type { Resource } from '../generate/resource.js';
import { bytesOf } from '../testing/stream.js';
import { Assembler } from './assembler.js';
import { encodeDelta, type EncodedResponse } from './encode.js';

const resources = (count: number, mark: string): Resource[] => Array.from({ length: count }, (_, index) => ({ name: `${mark}-${index}`, version: '1', body: { type_url: 'type.googleapis.com/x.Y', value: Buffer.from(`${mark} body ${index}`) } }));
const head = { type_url: 'type.googleapis.com/x.Y', system_version_info: 'v', nonce: 'n', removed_resources: [] };

function assemble(assembler: Assembler, response: EncodedResponse, isWanted = (): boolean => true): Promise<Buffer> {
  return new Promise((resolve) => assembler.add({ response, isWanted, done: (assembled) => resolve(bytesOf(assembled)) }));
}

test('responses are put together in the order in which they were given, each with the bytes of its pieces', async () => {
  const assembler = new Assembler();
  const responses = ['a', 'b', 'c'].map((mark, index) => encodeDelta(head, resources(3_000 - 900 * index, mark)));
  const wanted = responses.map(bytesOf);
  const order: number[] = [];
  const bytes = await Promise.all(responses.map((response, index) => assemble(assembler, response).then((made) => (order.push(index), made))));
  assert.deepEqual(bytes, wanted);
  assert.deepEqual(order, [0, 1, 2]);
});

test('others get a turn while a response is put together', async () => {
  let turn = 0;
  const timer = setInterval(() => turn++, 0);
  const turnsSeen = new Set<number>();
  const response = encodeDelta(head, resources(2_500, 'a'));
  const { pieces } = response;
  response.pieces = function* () {
    for (const piece of pieces.call(response)) {
      turnsSeen.add(turn);
      // Slower than any machine.
      const end = performance.now() + 0.01;
      while (performance.now() < end);
      yield piece;
    }
    return undefined;
  };
  await assemble(new Assembler(), response);
  clearInterval(timer);
  assert.ok(turnsSeen.size > 1);
});

test('what nobody wants any more is not written, and holds up nobody', async () => {
  const assembler = new Assembler();
  let isDone = false;
  assembler.add({ response: encodeDelta(head, resources(2_500, 'gone')), isWanted: () => false, done: () => (isDone = true) });
  const kept = encodeDelta(head, resources(2_500, 'kept'));
  assert.deepEqual(await assemble(assembler, kept), bytesOf(kept));
  assert.equal(isDone, false);
});

test('a list that many clients get is put together for the first of them, and is the same for the next', async () => {
  const list = new ResourceList(resources(2_500, 'shared'));
  const [first, second] = [encodeDelta(head, resources(1, 'own'), list), encodeDelta({ ...head, nonce: 'other' }, resources(2, 'more'), list)];
  const wanted = bytesOf(second);
  assert.equal(second.hasManyPieces, true);
  await assemble(new Assembler(), first);
  assert.equal(second.hasManyPieces, false);
  assert.deepEqual(bytesOf(second), wanted);
  assert.equal(DeltaDiscoveryResponse.decode(bytesOf(second)).resources.length, 2_502);
});
