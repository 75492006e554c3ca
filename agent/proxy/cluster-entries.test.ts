import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Recording } from '../testing/recording.js';
import { assignment, edsCluster, sidecarState } from '../testing/resources.js';
import { stockExtensions } from '../testing/stock-envoy.js';
import { hashBytes } from '../xds/resource-type.js';
import { objectsOfEntry } from './envoy-audit.js';
import { Folder, type FoldClass, type FoldPod } from './fold.js';
import { MadeAny, release } from './made-any.js';
import { CDS, EDS, LDS, type Entry, type Snapshot } from './snapshot.js';

const WEB = 'outbound|80||web.shop.svc.cluster.local';
const pod: FoldPod = { uid: 'u1', netnsPath: '/run/u1', ipv6: false, classKey: 'c1', addresses: ['10.0.0.9'] };
const entriesOf = (snapshot: Snapshot): Entry[] => [CDS, EDS, LDS].flatMap((type) => [...snapshot.entries(type).values()]);

/** Lets go of all, and looks whether it is as it was. @returns how many were let go */
function isMadeAgain(snapshot: Snapshot): number {
  let count = 0;
  for (const entry of entriesOf(snapshot)) {
    const { any } = entry;
    const [before, objects] = [Buffer.from(any.value), objectsOfEntry(entry.name, entry)];
    release(entry);
    if (any instanceof MadeAny && !any.isHeld) count++;
    assert.ok(before.equals(any.value), entry.name);
    assert.equal(hashBytes(any.value), entry.version);
    assert.deepEqual(objectsOfEntry(entry.name, entry), objects);
  }
  return count;
}

describe('ClusterEntries: bytes that Envoy has', () => {
  it('are made again as they were sent, of what istiod was recorded to serve', () => {
    let count = 0;
    for (const scenario of ['base-world', 'circuit-breaker', 'mirror', 'peer-authentication', 'service-kinds', 'protocol-corners']) {
      const recording = Recording.open(scenario);
      if (!recording) continue;
      const folder = new Folder(stockExtensions());
      for (const { step } of recording.steps.slice(-1)) {
        const classes: FoldClass[] = recording.sidecars.map((session) => ({ key: session.name, state: recording.state(session, step), identity: `spiffe://cluster.local/ns/default/sa/${session.name}`, certified: true })).filter(({ state }) => state.listeners.size > 0);
        count += isMadeAgain(folder.fold(classes, classes.map(({ key }) => ({ ...pod, uid: key, classKey: key }))).snapshot);
      }
    }
    assert.ok(count > 100, `${count} were let go`);
  });

  it('are made again as they were sent after folds that changed nothing of them, and anew where something has changed', () => {
    const folder = new Folder(stockExtensions());
    const state = sidecarState({ [`cds ${WEB}`]: edsCluster(WEB), [`eds ${WEB}`]: assignment(WEB, ['10.0.0.5:80', '10.0.0.6:80']) });
    const folded = (drivenEndpoints: string[], reached: Record<string, string> = {}, pods = [pod]): Entry[] => {
      const { snapshot } = folder.fold([{ key: 'c1', state }], pods, new Set(drivenEndpoints), new Map(Object.entries(reached)));
      for (const entry of entriesOf(snapshot)) release(entry);
      return [snapshot.get(CDS, WEB)!, snapshot.get(EDS, WEB)!];
    };
    const plain = folded([]);
    const bytes = plain.map(({ any }) => Buffer.from(any.value));
    assert.deepEqual(folded(['10.7.7.7:80']), plain, 'of another cluster\'s endpoint');
    const driven = folded(['10.0.0.5:80']);
    assert.notEqual(driven[0]!.version, plain[0]!.version);
    for (const [index, { any }] of plain.entries()) assert.ok(bytes[index]!.equals(any.value), 'what is not wanted any more is what it was');
    assert.equal(hashBytes(driven[0]!.any.value), driven[0]!.version);
    const local = folded([], {}, [pod, { ...pod, uid: 'u2', netnsPath: '/run/u2', addresses: ['10.0.0.6'], redirected: true }]);
    assert.equal(hashBytes(local[1]!.any.value), local[1]!.version);
    assert.notEqual(local[1]!.version, plain[1]!.version);
  });
});
