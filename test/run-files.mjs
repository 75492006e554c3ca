// Runs test files in the order in which they are given, which `node --test` does not keep.
//   node test/run-files.mjs HOW-MANY-AT-ONCE FILE…
import { resolve } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';

// The longest file takes five minutes; one that hangs is ended and told by its name, instead of holding the others' report for ever.
const FILE_TIMEOUT_MS = 20 * 60_000;

const [concurrency, ...files] = process.argv.slice(2);
run({ files: files.map((file) => resolve(file)), concurrency: Number(concurrency), timeout: FILE_TIMEOUT_MS })
  .on('test:fail', ({ todo }) => {
    if (todo === undefined || todo === false) process.exitCode = 1;
  })
  .compose(new spec())
  .pipe(process.stdout);
