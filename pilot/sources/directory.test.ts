import assert from 'node:assert/strict';
import { closeSync, futimesSync, mkdirSync, mkdtempSync, openSync, renameSync, rmSync, symlinkSync, unlinkSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, mock, test } from 'node:test';
import { rootLogger } from '../../common/log.js';
import { PATIENCE_MS, sleep, waitFor } from '../../common/retry.js';
import type { LoadedObject } from '../../common/kube/yaml.js';
import { DirectorySource } from './directory.js';

const logger = rootLogger.child({}, { level: 'silent' });
const namespace = (name: string, value = 'x'): string => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${name}, labels: {v: ${value}}}\n---\n`;

let folder: string;
let source: DirectorySource | undefined;
let latest: ReadonlyMap<string, LoadedObject>;
let calls: number;

const start = (...directories: string[]): Promise<void> => startRescanning(200, ...directories);
async function startRescanning(rescanMs: number, ...directories: string[]): Promise<void> {
  calls = 0;
  source = new DirectorySource({ directories, logger, settleMs: 20, rescanMs, onChange: (objects) => ((latest = objects), calls++) });
  await source.start();
}

/** Names of the namespaces with their label, as of the last change. */
const state = (): Record<string, string> => Object.fromEntries([...latest.values()].map(({ object }) => [object.metadata.name, object.metadata.labels!['v']!]));
const until = async (expected: Record<string, string>): Promise<void> => {
  await waitFor(`${JSON.stringify(expected)}`, () => JSON.stringify(state()) === JSON.stringify(expected), { everyMs: 5 }).catch((error: unknown) => {
    assert.deepEqual(state(), expected, String(error));
  });
};

beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'up-pilot-source-'))));
afterEach(async () => {
  await source?.close();
  source = undefined;
  rmSync(folder, { recursive: true, force: true });
});

test('follows new, changed, replaced and removed files', async () => {
  writeFileSync(join(folder, 'a.yaml'), namespace('a', 'one'));
  await start(folder);
  assert.deepEqual(state(), { a: 'one' });
  writeFileSync(join(folder, 'a.yaml'), namespace('a', 'two'));
  await until({ a: 'two' });
  writeFileSync(join(folder, '.b.tmp'), namespace('b'));
  renameSync(join(folder, '.b.tmp'), join(folder, 'b.yaml'));
  await until({ a: 'two', b: 'x' });
  unlinkSync(join(folder, 'a.yaml'));
  await until({ b: 'x' });
});

test('a file that can not be read holds up none that changed with it, and its objects stay as they were', async () => {
  const loop = join(folder, 'a.yaml');
  writeFileSync(loop, namespace('a', 'one'));
  await startRescanning(600_000, folder);
  unlinkSync(loop);
  symlinkSync('a.yaml', loop);
  writeFileSync(join(folder, 'b.yaml'), namespace('b'));
  await until({ a: 'one', b: 'x' });
  assert.match(source!.errors().map(({ message }) => message).join(), /ELOOP/);
  unlinkSync(loop);
  writeFileSync(loop, namespace('a', 'two'));
  await until({ a: 'two', b: 'x' });
  assert.deepEqual(source!.errors(), []);
});

test('a file that can not be read is no reason not to start with the others', async () => {
  symlinkSync('a.yaml', join(folder, 'a.yaml'));
  writeFileSync(join(folder, 'b.yaml'), namespace('b'));
  await start(folder);
  assert.deepEqual(state(), { b: 'x' });
});

test('a later directory overrides the same object of an earlier one, and lets it go again', async () => {
  const [first, second] = ['first', 'second'].map((name) => join(folder, name)) as [string, string];
  for (const path of [first, second]) mkdirSync(path);
  writeFileSync(join(first, 'z.yaml'), namespace('a', 'first'));
  await start(first, second);
  writeFileSync(join(second, 'a.yaml'), namespace('a', 'second'));
  await until({ a: 'second' });
  unlinkSync(join(second, 'a.yaml'));
  await until({ a: 'first' });
});

test('an object that is refused keeps its last good version; the others of the file change', async () => {
  const file = join(folder, 'a.yaml');
  writeFileSync(file, namespace('a', 'one') + namespace('b', 'one'));
  await start(folder);
  writeFileSync(file, namespace('a', '[1]') + namespace('b', 'two'));
  await until({ b: 'two', a: 'one' });
  assert.match(source!.errors()[0]!.message, /found a list, expected a string/);
  writeFileSync(file, namespace('a', 'three') + namespace('b', 'two'));
  await until({ a: 'three', b: 'two' });
  assert.deepEqual(source!.errors(), []);
  writeFileSync(file, namespace('b', 'two'));
  await until({ b: 'two' });
});

test('a file that is no YAML any more keeps what it had', async () => {
  const file = join(folder, 'a.yaml');
  writeFileSync(file, namespace('a', 'one') + namespace('b', 'one'));
  await start(folder);
  writeFileSync(file, namespace('a', 'two') + 'x: [\n');
  await until({ a: 'two', b: 'one' });
  assert.match(source!.errors()[0]!.message, /not YAML/);
});

test('a file that is being written is read when it is whole', async () => {
  // Time goes on by what is ticked: however long this process has no turn, the writer never pauses for as long as a file has to rest.
  mock.timers.enable({ apis: ['setTimeout', 'Date'], now: Date.now() });
  try {
    await start(folder);
    const turns = async (): Promise<void> => {
      for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    };
    const text = Array.from({ length: 20 }, (_, index) => namespace(`n${index}`)).join('');
    const file = openSync(join(folder, 'slow.yaml'), 'w');
    const seen = new Set<number>();
    for (let at = 0; at < text.length; at += 97) {
      writeSync(file, text.slice(at, at + 97));
      futimesSync(file, new Date(), new Date());
      await turns();
      mock.timers.tick(4);
      await turns();
      seen.add(latest.size);
    }
    closeSync(file);
    for (const deadline = performance.now() + PATIENCE_MS; latest.size < 20 && performance.now() < deadline; ) {
      mock.timers.tick(5);
      await turns();
    }
    assert.deepEqual([...seen, latest.size], [0, 20]);
    assert.deepEqual(source!.errors(), []);
  } finally {
    mock.timers.reset();
  }
});

test('an object twice in one file is an error, the first counts', async () => {
  writeFileSync(join(folder, 'a.yaml'), namespace('a', 'one') + namespace('a', 'two'));
  await start(folder);
  assert.deepEqual(state(), { a: 'one' });
  assert.deepEqual([source!.errors()[0]!.line, source!.errors()[0]!.message], [7, 'this object is there twice in the file; the first one counts']);
});

test('a directory that goes away keeps its objects, and is followed again when it is back', async () => {
  const inner = join(folder, 'inner');
  mkdirSync(inner);
  writeFileSync(join(inner, 'a.yaml'), namespace('a', 'one'));
  await start(inner);
  rmSync(inner, { recursive: true });
  await sleep(300);
  assert.deepEqual(state(), { a: 'one' });
  mkdirSync(inner);
  writeFileSync(join(inner, 'a.yaml'), namespace('a', 'two'));
  await until({ a: 'two' });
});

test('a source that is missing at the start is an error with a code; a file is a source too', async () => {
  await assert.rejects(start(join(folder, 'nope')), { code: 'UNDERPASS_SOURCE_MISSING' });
  await source!.close();
  writeFileSync(join(folder, 'a.yaml'), namespace('a', 'one'));
  writeFileSync(join(folder, 'b.yaml'), namespace('b', 'one'));
  await start(join(folder, 'b.yaml'));
  assert.deepEqual(state(), { b: 'one' });
  writeFileSync(join(folder, 'b.yaml'), namespace('b', 'two'));
  await until({ b: 'two' });
});

/** So rare that what is seen was told by the kernel. */
const NO_RESCAN_MS = 3_600_000;

test('a volume as Kubernetes mounts it is followed: all files behind a link that is swapped', async () => {
  const mount = (version: string): void => {
    mkdirSync(join(folder, `..${version}`));
    writeFileSync(join(folder, `..${version}`, 'a.yaml'), namespace('a', version));
    symlinkSync(`..${version}`, join(folder, '..data_tmp'));
    renameSync(join(folder, '..data_tmp'), join(folder, '..data'));
  };
  mount('one');
  symlinkSync(join('..data', 'a.yaml'), join(folder, 'a.yaml'));
  await startRescanning(NO_RESCAN_MS, folder);
  assert.deepEqual(state(), { a: 'one' });
  mount('two');
  await until({ a: 'two' });
});

test('a file source that is replaced by rename is followed, again and again', async () => {
  const file = join(folder, 'a.yaml');
  writeFileSync(file, namespace('a', 'v0'));
  await startRescanning(NO_RESCAN_MS, file);
  for (const value of ['v1', 'v2', 'v3']) {
    writeFileSync(join(folder, '.part'), namespace('a', value));
    renameSync(join(folder, '.part'), file);
    await until({ a: value });
  }
});
