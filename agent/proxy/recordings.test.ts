import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { logger } from '../../common/log.js';
import { envoyBinary, projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { TestNetns } from '../testing/netns.js';
import { Recording, type RecordedSession } from '../testing/recording.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { AdsServer } from './ads-server.js';
import { Envoy } from './envoy.js';
import { EnvoyExtensions } from './extensions.js';
import { Folder, type FoldClass, type FoldPod } from './fold.js';
import { podListenerName } from './pod-listener.js';
import { LDS } from './snapshot.js';

const shared = join(process.env['UNDERPASS_FIXTURES'] ?? join(projectRoot, '..', 'shared', 'fixtures'), 'istiod');
const scenarios = [shared, join(projectRoot, 'test', 'fixtures', 'istiod')].flatMap((folder) => {
  try {
    return readdirSync(folder).filter((name) => Recording.open(name) !== undefined);
  } catch {
    return [];
  }
});

describe('what istiod was recorded to serve, folded for a real Envoy', () => {
  const runDir = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  const envoy = new Envoy({ nodeName: 'node-1', runDir, envoyPath: envoyBinary(), cgroupPath: undefined, concurrency: 1, logger: logger('test') });
  let folding: Folder | undefined;
  const ads = new AdsServer({
    socketPath: envoy.adsSocketPath,
    logger: logger('test'),
    onNode: (node) => {
      folding = new Folder(new EnvoyExtensions(node.extensions));
    },
  });
  let netns: TestNetns;

  before(async () => {
    netns = await TestNetns.create();
    await ads.start();
    await envoy.start();
    await waitFor('Envoy', () => folding);
  });
  after(async () => {
    ads.close();
    await envoy.stop();
    await netns?.close();
    rmSync(runDir, { recursive: true, force: true });
  });

  it('has the extensions that the tests without Envoy assume', async () => {
    const { node } = await envoy.admin.serverInfo();
    const running = new EnvoyExtensions(node.extensions ?? []);
    const assumed = stockExtensions();
    assert.deepEqual([running.size, [...running.types].sort()], [assumed.size, [...assumed.types].sort()]);
  });

  for (const scenario of new Set(scenarios)) {
    it(`accepts ${scenario} at every step`, async (test) => {
      const recording = Recording.open(scenario);
      if (!recording || !folding) throw new Error('no recording, or no Envoy');
      const folder: Folder = folding;
      const sessions: readonly RecordedSession[] = recording.sidecars;
      if (sessions.length === 0) return test.diagnostic('no sidecar session in delta mode');
      for (const { step } of recording.steps) {
        const classes: FoldClass[] = sessions.map((session) => ({ key: session.name, state: recording.state(session, step) })).filter(({ state }) => state.listeners.size > 0);
        const pods: FoldPod[] = classes.map(({ key }) => ({ uid: key, netnsPath: netns.path, ipv6: false, classKey: key }));
        // One address can be bound once in the one namespace: pods take turns.
        for (const pod of pods) {
          const { snapshot, problems } = folder.fold(classes, [pod]);
          assert.deepEqual(problems, [], `step ${step}`);
          assert.equal([...snapshot.entries(LDS).keys()].filter((name) => name.endsWith('/outbound')).length, 1);
          ads.setSnapshot(snapshot);
          await waitFor('Envoy to answer', () => ads.idle, { everyMs: 2 });
          assert.deepEqual(ads.nacks, [], `step ${step}, ${pod.uid}`);
          // Listening, with its routes, and no cluster that still waits for anything.
          const name = podListenerName(pod.uid);
          assert.ok(ads.status(LDS, name).acked);
          await waitFor(`${name} to listen`, async () => (await envoy.admin.listeners()).some((listener) => listener.name === name), { everyMs: 2 });
          const warming = await envoy.admin.stats('^(cluster_manager\\.warming_clusters|listener_manager\\.total_listeners_warming)$');
          assert.deepEqual([...warming.values()], [0, 0], `step ${step}, ${pod.uid}`);
        }
      }
    });
  }
});
