/** A real Envoy that has other things than the agent gave it: found, named, and as before after a round of the auditors. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { logger } from '../../common/log.js';
import { envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import { pack, unpack } from '../../common/xds/any.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { Auditor } from '../consistency/auditor.js';
import { objectStatuses } from '../consistency/object-status.js';
import { objectsIn, serviceIn } from '../consistency/objects.js';
import { TestControlPlane } from '../testing/control-plane.js';
import { assignment, blackHoleCluster, edsCluster, httpListener, routes } from '../testing/resources.js';
import { hashBytes } from '../xds/resource-type.js';
import { AdsServer } from './ads-server.js';
import { EnvoyAudit, pages } from './envoy-audit.js';
import { Envoy } from './envoy.js';
import { CDS, EDS, LDS, RDS, Snapshot, type Entry } from './snapshot.js';

const CLUSTER = 'outbound|80||web.shop.svc.cluster.local';
const CONFIG = '/apis/networking.istio.io/v1/namespaces/shop/virtual-service/web';

const entryOf = (any: Any, name: string, needs: readonly string[] = []): Entry => ({ name, version: hashBytes(any.value), any, needs });
/** As istiod marks what it makes of a VirtualService. */
function markedRoutes(): Any {
  const marked = unpack(RouteConfiguration, routes(80, { web: CLUSTER }))!;
  for (const host of marked.virtual_hosts) for (const route of host.routes) route.metadata = { filter_metadata: { istio: { config: CONFIG } }, typed_filter_metadata: {} };
  return pack(RouteConfiguration, marked);
}

describe('EnvoyAudit with a real Envoy', () => {
  const folder = mkdtempSync(join(tmpdir(), 'up-proxy-'));
  const envoy = new Envoy({ nodeName: 'n', runDir: folder, envoyPath: envoyBinary(), cgroupPath: undefined, concurrency: 1, logger: logger('test') });
  const snapshot = new Snapshot(Object.entries({
    [CDS]: [entryOf(edsCluster(CLUSTER), CLUSTER, [CLUSTER]), entryOf(blackHoleCluster(), 'BlackHoleCluster')],
    [EDS]: [entryOf(assignment(CLUSTER, ['10.0.0.1:80', '10.0.0.2:80']), CLUSTER)],
    [LDS]: [entryOf(httpListener(80), '0.0.0.0_80', ['80'])],
    [RDS]: [entryOf(markedRoutes(), '80')],
  }).map(([type, entries]) => [type, new Map(entries.map((entry) => [entry.name, entry]))] as const));
  let ads: AdsServer;
  let audit: EnvoyAudit;
  let auditor: Auditor;

  async function startAds(): Promise<void> {
    ads = new AdsServer({ socketPath: envoy.adsSocketPath, logger: logger('test') });
    await ads.start();
    ads.setSnapshot(snapshot);
  }
  const inForce = (): boolean => ads.idle && ads.rolledOut > 0 && [CDS, EDS, LDS, RDS].every((type) => [...snapshot.entries(type).keys()].every((name) => ads.status(type, name).acked));
  const settled = (): Promise<unknown> => waitFor('Envoy to acknowledge all', inForce, { timeoutMs: 60_000, everyMs: 20 });
  const found = (): string[] => auditor.status.drifting.map(({ kind, name, state, repair, objects }) => [kind, name, state, repair, ...objects].join(' ')).sort();
  /** What is dynamic of all that there is, without times. */
  const dump = async (): Promise<string> => {
    const all: string[] = [];
    for (const resource of ['dynamic_active_clusters', 'dynamic_endpoint_configs', 'dynamic_listeners', 'dynamic_route_configs']) all.push((await envoy.admin.get(`/config_dump?include_eds&resource=${resource}`)).replace(/"last_updated": "[^"]*"/g, ''));
    return all.join('').split(/\s+/).sort().join(' ');
  };
  /** The ADS server is another one after each time that somebody else was there; the agent remembers. */
  const newestAds: ConstructorParameters<typeof EnvoyAudit>[0]['ads'] = { get idle() { return ads.idle; }, entries: (type) => ads.entries(type), status: (...of) => ads.status(...of), mayHold: (...of) => ads.mayHold(...of), resend: (...of) => ads.resend(...of), takeAckedAt: (...of) => ads.takeAckedAt(...of) };
  /** All of Envoy's that the agent knows of is as it was, by Envoy's own word. */
  async function comesBack(expected: readonly string[], before_: string): Promise<void> {
    assert.notEqual(await dump(), before_, 'something has changed');
    // While something is sent again nothing is compared: it takes a round for each type.
    const all = new Set<string>();
    for (let round = 0; round < 5; round++) {
      await auditor.round();
      for (const each of found()) all.add(each);
      await settled();
    }
    assert.deepEqual([...all].sort(), expected);
    assert.deepEqual(found(), []);
    assert.equal(await dump(), before_);
    assert.deepEqual(auditor.status.problems, []);
  }

  before(async () => {
    await startAds();
    await envoy.start();
    await settled();
    audit = new EnvoyAudit({ ads: newestAds, admin: envoy.admin, envoy: () => envoy.identity });
    auditor = new Auditor({ checks: audit.checks(), objectsOf: ({ objects = [] }) => objects, logger: logger('test.audit').child({}, { level: 'fatal' }) });
  });
  after(async () => {
    ads.close();
    await envoy.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  it('finds nothing while Envoy has what it was given, and knows of each object what was read back', async () => {
    const states = (): string[] => objectStatuses(audit.resources(), { drifting: new Set() }).map(({ object, state, resources }) => `${object} ${state} ${resources.map(({ type }) => type).join()}`);
    assert.deepEqual(states(), ['Service/web.shop ACKED CDS,EDS', 'VirtualService/web.shop ACKED RDS']);
    for (let round = 0; round < 3; round++) await auditor.round();
    assert.deepEqual(found(), []);
    assert.deepEqual(auditor.status.problems, []);
    assert.deepEqual(states(), ['Service/web.shop IN FORCE CDS,EDS', 'VirtualService/web.shop IN FORCE RDS']);
  });

  it('finds nothing where Envoy put filter chains into the listener that it had, though it tells the version that this had', async () => {
    const versionOf = async (): Promise<string | undefined> => /"version_info": "([^"]*)"/.exec(await envoy.admin.get('/config_dump?resource=dynamic_listeners'))?.[1];
    const former = snapshot.get(LDS, '0.0.0.0_80')!;
    const changed = unpack(Listener, httpListener(80))!;
    changed.filter_chains[0]!.name = 'another';
    const entry = entryOf(pack(Listener, changed), '0.0.0.0_80', ['80']);
    ads.setSnapshot(snapshot.with(LDS, new Map([[entry.name, entry]])));
    await waitFor('Envoy to have it', async () => ads.status(LDS, entry.name).acked && (await dump()).includes('"another"'), { timeoutMs: 60_000, everyMs: 20 });
    assert.deepEqual([await versionOf(), former.version !== entry.version], [former.version, true]);
    for (let round = 0; round < 3; round++) await auditor.round();
    assert.deepEqual([found(), auditor.status.problems, Object.keys(auditor.status.drifts)], [[], [], []]);
    assert.ok([...audit.resources()].every(({ type, readBack }) => readBack || type === 'EDS'));
    ads.setSnapshot(snapshot);
    await settled();
    await auditor.round();
    assert.deepEqual(found(), []);
  });

  it('names the object of what Envoy refuses, with the reason', async () => {
    const refused = unpack(RouteConfiguration, markedRoutes())!;
    for (const route of refused.virtual_hosts[0]!.routes) route.match = undefined;
    const any = pack(RouteConfiguration, refused);
    ads.setSnapshot(snapshot.with(RDS, new Map([['80', entryOf(any, '80')]])));
    await waitFor('Envoy to refuse it', () => ads.nacks.length > 0, { timeoutMs: 60_000, everyMs: 20 });
    assert.deepEqual(ads.nacks.map(({ type, name, objects }) => [type, name, objects]), [['RDS', '80', ['VirtualService/web.shop']]]);
    assert.match(ads.nacks[0]!.message, /match/i);
    const [status] = objectStatuses(audit.resources(), { only: 'virtualservice/web.shop', drifting: new Set() });
    assert.equal(status?.state, 'NACK');
    ads.setSnapshot(snapshot);
    await settled();
    assert.deepEqual(ads.nacks, []);
  });

  /** Routes, endpoints and a cluster with other contents than the agent's. */
  function others(): { type: string; name: string; any: Any }[] {
    const elsewhere = unpack(RouteConfiguration, routes(80, { web: 'BlackHoleCluster' }))!;
    const blackHole = unpack(Cluster, blackHoleCluster())!;
    return [
      { type: RDS, name: '80', any: pack(RouteConfiguration, { ...elsewhere, name: '80' }) },
      { type: EDS, name: CLUSTER, any: assignment(CLUSTER, ['10.9.9.9:80']) },
      { type: CDS, name: 'BlackHoleCluster', any: pack(Cluster, { ...blackHole, connect_timeout: { seconds: 77n, nanos: 0 } }) },
    ];
  }

  /** The agent's stream breaks, and Envoy finds somebody else where it asks, who sends this under the versions that the agent knows. */
  async function tampered(resources: readonly { type: string; name: string; any: Any }[]): Promise<void> {
    ads.close();
    const other = new TestControlPlane(`unix:${envoy.adsSocketPath}`);
    await other.start();
    const asked = (): boolean => [CDS, EDS, LDS, RDS].every((type) => other.streams.at(-1)?.subscribed.has(type));
    await waitFor('Envoy to ask', asked, { timeoutMs: 60_000, everyMs: 20 });
    for (const { type, name, any } of resources) {
      const version = snapshot.get(type, name)?.version ?? 'other';
      await other.stream.answered(other.stream.send({ type_url: type, resources: [{ name, resource: any, version, aliases: [], resource_name: undefined, ttl: undefined, cache_control: undefined, metadata: undefined }] }));
    }
    other.stop();
    await startAds();
    await settled();
  }

  it('finds routes, endpoints and clusters of other contents under the versions that Envoy acknowledged, names their objects, and sends them again', async () => {
    const whole = await dump();
    await tampered(others());
    await comesBack([
      'cds BlackHoleCluster wrong done',
      `eds ${CLUSTER} wrong done Service/web.shop`,
      'rds 80 wrong done VirtualService/web.shop',
    ], whole);
  });

  it('finds by versions alone what was taken anew or updated; while nothing was, no content is printed', async () => {
    const asked: string[] = [];
    const admin = { read: (...of: Parameters<typeof envoy.admin.read>) => (asked.push(of[0]), envoy.admin.read(...of)), listeners: () => envoy.admin.listeners() };
    const own = new EnvoyAudit({ ads: newestAds, admin, envoy: () => envoy.identity });
    const lane = (checks: ReturnType<EnvoyAudit['checks']>): Auditor => new Auditor({ checks, objectsOf: ({ objects = [] }) => objects, logger: logger('test.audit').child({}, { level: 'fatal' }) });
    // Contents and endpoints are known once they were seen.
    const all = lane(own.checks());
    for (let round = 0; round < 3; round++) await all.round();
    const versions = lane(own.checks().filter(({ name }) => name === 'Envoy versions'));
    asked.length = 0;
    await versions.round();
    assert.deepEqual(asked.filter((path) => !path.includes('&mask=') && !path.startsWith('/stats')), []);
    assert.equal(asked.length, 5);
    const whole = await dump();
    await tampered([
      ...others(),
      // Of an agent that died before it took it away: Envoy names it when the next one's stream begins, which takes it away.
      { type: CDS, name: 'stray', any: pack(Cluster, { ...unpack(Cluster, blackHoleCluster())!, name: 'stray' }) },
    ]);
    assert.notEqual(await dump(), whole);
    const found = new Set<string>();
    for (let round = 0; round < 5; round++) {
      await versions.round();
      for (const { kind, name, state, repair, objects } of versions.status.drifting) found.add([kind, name, state, repair, ...objects].join(' '));
      await settled();
    }
    assert.deepEqual([...found].sort(), ['cds BlackHoleCluster wrong done', `eds ${CLUSTER} wrong done Service/web.shop`, 'rds 80 wrong done VirtualService/web.shop']);
    assert.deepEqual([versions.status.drifting, versions.status.problems, await dump()], [[], [], whole]);
  });

  /** What rounds of versions alone find and mend. */
  async function versionsFind(own: EnvoyAudit, expected: readonly string[], whole: string): Promise<void> {
    const versions = new Auditor({ checks: own.checks().filter(({ name }) => name === 'Envoy versions'), objectsOf: ({ objects = [] }) => objects, logger: logger('test.audit').child({}, { level: 'fatal' }) });
    const all = new Set<string>();
    for (let round = 0; round < 4; round++) {
      await versions.round();
      for (const { kind, name, state, repair, objects } of versions.status.drifting) all.add([kind, name, state, repair, ...objects].join(' '));
      await settled();
    }
    assert.deepEqual([...all].sort(), expected);
    assert.deepEqual([versions.status.drifting, versions.status.problems, await dump()], [[], [], whole]);
  }

  it('finds routes and clusters that were exchanged before anything of Envoy was read, by when Envoy answered for them, and nothing where the content is the same', async () => {
    await settled();
    const whole = await dump();
    // Envoy answers for all of it to this agent, which has read nothing yet.
    for (const [type, name] of [[RDS, '80'], [CDS, 'BlackHoleCluster'], [CDS, CLUSTER]] as const) ads.resend(type, [name]);
    await settled();
    const acks = new Map([[RDS, '80'], [CDS, 'BlackHoleCluster'], [CDS, CLUSTER]].map(([type, name]) => [`${type} ${name}`, ads.takeAckedAt(type!, name!)] as const));
    assert.ok([...acks.values()].every((at) => at !== undefined && Math.abs(at - Date.now()) < 60_000));
    const own = new EnvoyAudit({ ads: { get idle() { return ads.idle; }, entries: (type) => ads.entries(type), status: (...of) => ads.status(...of), mayHold: (...of) => ads.mayHold(...of), resend: (...of) => ads.resend(...of), takeAckedAt: (type, name) => acks.get(`${type} ${name}`) }, admin: envoy.admin, envoy: () => envoy.identity });
    const [elsewhere, , blackHole] = others();
    // The third is taken anew as it was: Envoy tells another time of it only if it took it for another one.
    await tampered([elsewhere!, blackHole!, { type: CDS, name: CLUSTER, any: snapshot.get(CDS, CLUSTER)!.any }]);
    assert.notEqual(await dump(), whole);
    await versionsFind(own, ['cds BlackHoleCluster wrong done', 'rds 80 wrong done VirtualService/web.shop'], whole);
  });

  it('finds what was exchanged while no agent ran, by what the former one had written down', async () => {
    const whole = await dump();
    const file = join(folder, 'prints');
    const options = { ads: newestAds, admin: envoy.admin, envoy: () => envoy.identity, file };
    const former = new EnvoyAudit(options);
    const [versions, clusters, configuration] = former.checks();
    // Endpoints count once they were seen twice.
    const all = new Auditor({ checks: [configuration!, clusters!, clusters!, versions!], objectsOf: ({ objects = [] }) => objects, logger: logger('test.audit').child({}, { level: 'fatal' }) });
    await all.round();
    assert.equal(statSync(file).mode & 0o777, 0o600);
    await tampered(others());
    const unread = new EnvoyAudit({ ...options, file: join(folder, 'none') });
    const next = new EnvoyAudit(options);
    assert.deepEqual(next.checks().map(({ name, isUrgent }) => [name, isUrgent?.()]), [['Envoy versions', undefined], ['Envoy clusters', true], ['Envoy configuration', true]]);
    for (const check of unread.checks()) for await (const drifts of check.parts()) assert.deepEqual(drifts, [], 'without it nobody knows');
    const found_: string[] = [];
    for (const check of next.checks().slice(1)) for await (const drifts of check.parts()) {
      found_.push(...drifts.map(({ kind, name }) => `${kind} ${name}`));
      for (const { repair } of drifts) await repair?.();
      await settled();
    }
    assert.deepEqual(found_.sort(), ['cds BlackHoleCluster', `eds ${CLUSTER}`, 'rds 80']);
    await waitFor('all to be as it was', async () => (await dump()) === whole, { timeoutMs: 60_000 });
    assert.deepEqual(next.checks().map(({ isUrgent }) => isUrgent?.()), [undefined, false, false]);
  });
});

describe('pages', () => {
  it('has each name once, in groups that begin alike', () => {
    const names = Array.from({ length: 500 }, (_, index) => `outbound|80||service-${index}.ns${index % 7}.svc.cluster.local`).sort();
    const all = [...pages(names)];
    assert.deepEqual(all.flatMap((page) => page.names), names);
    for (const { prefix, names: own } of all) assert.ok(own.length <= 32 && own.every((name) => name.startsWith(prefix)), prefix);
    assert.deepEqual([...pages([])], []);
    assert.deepEqual([...pages(['a'])], [{ prefix: 'a', names: ['a'] }]);
  });

  it('asks for names that are alike for longer than a regular expression may be in one page', () => {
    const names = Array.from({ length: 40 }, (_, index) => `${'x'.repeat(100)}${index}`).sort();
    assert.deepEqual([...pages(names)], [{ prefix: 'x'.repeat(80), names }]);
  });
});

describe('objectsIn and serviceIn', () => {
  it('read the paths, the rules and the names that control planes write', () => {
    const long = `/apis/gateway.networking.k8s.io/v1/namespaces/${'a'.repeat(60)}/http-route/${'r'.repeat(60)}`;
    const message = Buffer.concat([Buffer.of(0x1a, CONFIG.length), Buffer.from(CONFIG), Buffer.from('2xns[shop]-policy[only-client]-rule[0]'), Buffer.of(0x1a, (long.length & 0x7f) | 0x80, long.length >> 7), Buffer.from(`${long}2`)]);
    assert.deepEqual(objectsIn(message), ['AuthorizationPolicy/only-client.shop', `HTTPRoute/${'r'.repeat(60)}.${'a'.repeat(60)}`, 'VirtualService/web.shop']);
    assert.deepEqual(serviceIn('outbound|80|v1|web.shop.svc.cluster.local'), ['Service/web.shop']);
    assert.deepEqual(serviceIn('PassthroughCluster'), []);
  });
});
