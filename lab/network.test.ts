import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from '../common/process.js';
import { NETNS_DIR } from './names.js';

test('removeNetns: a namespace goes although /run/netns was mounted over itself since it was made, as ip(8) and container runtimes do', async () => {
  const name = `up-covered-${process.pid}`;
  const module = JSON.stringify(join(import.meta.dirname, 'network.js'));
  // In a mount namespace of its own, so that the machine keeps its /run/netns as it is.
  const script = `set -e
    mkdir -p "$1"; : >"$1/$2"; unshare --net="$1/$2" true
    mount --rbind "$1" "$1"
    exec "$3" -e 'import(${module}).then(({ removeNetns }) => removeNetns(process.argv[1]))' "$2"`;
  await run('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', NETNS_DIR, name, process.execPath]);
  assert.equal(existsSync(join(NETNS_DIR, name)), false);
});
