import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cgroup2Root, removeCgroup } from '../../common/cgroup.js';
import { run } from '../../common/process.js';
import { waitFor } from '../../common/retry.js';
import { PodPlaces, podUidOf } from './pod-places.js';

const [WEB, DB] = ['8cc41386-8b10-436e-b61e-123aa97cd209', '11111111-2222-3333-4444-555555555555'];

test('podUidOf: by both of kubelet\'s drivers, and of pods out of files; other directories are none', () => {
  assert.equal(podUidOf(`pod${WEB}`), WEB);
  assert.equal(podUidOf(`kubepods-burstable-pod${WEB.replaceAll('-', '_')}.slice`), WEB);
  assert.equal(podUidOf(`kubelet-kubepods-pod${WEB.replaceAll('-', '_')}.slice`), WEB);
  assert.equal(podUidOf('kubepods-burstable-pod0123456789abcdef0123456789abcdef.slice'), '0123456789abcdef0123456789abcdef');
  for (const other of ['pods', 'kubepods', 'kubepods.slice', 'podman', 'kubepods-burstable.slice', 'cri-containerd-0123.scope', `pod${WEB}x`]) assert.equal(podUidOf(other), undefined, other);
});

test('PodPlaces: a pod is found by its processes, under the name of its namespace if there is one; without processes it is not', async (context) => {
  const root = join(cgroup2Root(), `up-places-${process.pid}`);
  const netns = `up-places-${process.pid}`;
  const containers = { [WEB]: join(root, 'kubepods', 'burstable', `pod${WEB}`, 'c1'), [DB]: join(root, 'kubepods.slice', 'kubepods-besteffort.slice', `kubepods-besteffort-pod${DB.replaceAll('-', '_')}.slice`, 'cri-c2.scope') };
  for (const folder of Object.values(containers)) mkdirSync(folder, { recursive: true });
  await run('ip', ['netns', 'add', netns]);
  context.after(async () => {
    await removeCgroup(root);
    await run('ip', ['netns', 'del', netns]);
  });
  const places = new PodPlaces({ cgroupRoot: root });
  const both = new Set([WEB, DB]);
  assert.equal(places.find(both).size, 0);
  const start = async (command: string[], cgroup: string): Promise<void> => {
    const child = spawn(command[0]!, command.slice(1), { stdio: 'ignore' });
    await once(child, 'spawn');
    writeFileSync(join(cgroup, 'cgroup.procs'), String(child.pid));
  };
  await start(['ip', 'netns', 'exec', netns, 'sleep', '60'], containers[WEB]!);
  await start(['unshare', '--net', 'sleep', '60'], containers[DB]!);
  const found = await waitFor('both', () => {
    const now = places.find(both);
    return now.get(WEB)?.netns === `/run/netns/${netns}` && now.get(DB) ? now : undefined;
  }, { timeoutMs: 10_000, everyMs: 20 });
  assert.equal(found.get(WEB)!.cgroup, join(containers[WEB]!, '..'));
  assert.match(found.get(DB)!.netns, /^\/proc\/\d+\/ns\/net$/);
  assert.equal(places.find(new Set([DB])).size, 1, 'only who is asked for');
});

test('PodPlaces: of a pod that starts, v2\'s cgroup is made under the path that v1\'s has, where kubelet has made only that', (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'up-places-'));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  const [v1, v2] = [join(folder, 'v1'), join(folder, 'v2')];
  mkdirSync(v2);
  mkdirSync(join(v1, 'kubepods', 'besteffort', `pod${WEB}`), { recursive: true });
  const places = new PodPlaces({ cgroupRoot: v2, v1Roots: [v1] });
  assert.equal(places.prepare(DB), undefined);
  assert.equal(places.prepare(WEB), join(v2, 'kubepods', 'besteffort', `pod${WEB}`));
  assert.ok(existsSync(join(v2, 'kubepods', 'besteffort', `pod${WEB}`)));
  assert.equal(places.prepare(WEB), join(v2, 'kubepods', 'besteffort', `pod${WEB}`));
});
