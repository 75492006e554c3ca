import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, rmSync, rmdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cgroup1Roots, cgroup2Root, removeCgroup } from '../../common/cgroup.js';
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
  }, { everyMs: 20 });
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
  const places = new PodPlaces({ cgroupRoot: v2, v1Roots: [v1], makesV2: true });
  assert.equal(places.prepare(DB), undefined);
  assert.equal(places.prepare(WEB), join(v2, 'kubepods', 'besteffort', `pod${WEB}`));
  assert.ok(existsSync(join(v2, 'kubepods', 'besteffort', `pod${WEB}`)));
  assert.equal(places.prepare(WEB), join(v2, 'kubepods', 'besteffort', `pod${WEB}`));
});

test('PodPlaces: a pod that has processes in v1\'s hierarchies alone is at the root of v2\'s, and so are those that start after it', { skip: cgroup1Roots().length === 0 && 'no cgroup v1 here' }, async (context) => {
  const v1 = join(cgroup1Roots()[0]!, `up-places-${process.pid}`);
  const v2 = join(cgroup2Root(), `up-places-v1-${process.pid}`);
  const own = (root: string, uid: string): string => join(root, 'kubepods', `pod${uid}`);
  for (const folder of [own(v1, WEB), own(v1, DB), v2]) mkdirSync(folder, { recursive: true });
  const children = [WEB, DB].map(() => spawn('unshare', ['--net', 'sleep', '60'], { stdio: 'ignore' }));
  context.after(async () => {
    for (const child of children) child.kill('SIGKILL');
    await Promise.all(children.map((child) => child.exitCode ?? child.signalCode ?? once(child, 'exit')));
    await removeCgroup(v1);
    await removeCgroup(v2);
  });
  await Promise.all(children.map((child) => once(child, 'spawn')));
  const [web, db] = children as [ChildProcess, ChildProcess];
  writeFileSync(join(own(v1, WEB), 'cgroup.procs'), String(web.pid));
  writeFileSync(join(own(v1, DB), 'cgroup.procs'), String(db.pid));
  mkdirSync(own(v2, DB), { recursive: true });
  writeFileSync(join(own(v2, DB), 'cgroup.procs'), String(db.pid));
  const places = new PodPlaces({ cgroupRoot: v2, v1Roots: [v1], makesV2: true });
  const starts = 'aaaaaaaa-2222-3333-4444-555555555555';
  mkdirSync(own(v1, starts));
  assert.deepEqual([...places.find(new Set([DB])).values()].map(({ cgroup }) => cgroup), [own(v2, DB)]);
  assert.equal(places.prepare(starts), own(v2, starts));
  rmdirSync(own(v2, starts));
  const { cgroup, netns } = places.find(new Set([WEB])).get(WEB)!;
  assert.deepEqual([cgroup, netns], [v2, `/proc/${web.pid}/ns/net`]);
  assert.equal(places.prepare(starts), v2);
  assert.equal(existsSync(own(v2, starts)), false);
  assert.equal(places.find(new Set([starts])).size, 0, 'nothing runs in it');
});
