/**
 * `make bench-consistency`: what a round of the auditors takes at size, of this process's CPU and of Envoy's: real maps with so many
 * services of ten endpoints each, and a real Envoy with a cluster for each of them.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { logger } from '../../common/log.js';
import { envoyBinary } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { Auditor } from '../consistency/auditor.js';
import type { Check } from '../consistency/drift.js';
import { Kernel } from '../dataplane/kernel.js';
import { AdsServer } from '../proxy/ads-server.js';
import { EnvoyAudit } from '../proxy/envoy-audit.js';
import { Envoy } from '../proxy/envoy.js';
import { CDS, EDS, LDS, RDS, Snapshot, type Entry } from '../proxy/snapshot.js';
import { assignment, edsCluster, httpListener, routes } from '../testing/resources.js';
import { hashBytes } from '../xds/resource-type.js';

const services = Number(process.argv[2] ?? 5_000);
const perService = 10;
const quiet = logger('bench');
quiet.level = 'error';

const address = (service: number, index: number): string => `11.${service >> 8}.${service & 255}.${index + 1}`;
const kernel = await Kernel.open({ bpffsDir: null, instance: 'bench', logger: quiet, httpFastPath: false });
kernel.services.apply(Array.from({ length: services }, (_, service) => ({
  address: `10.96.${service >> 8}.${service & 255}`, port: 80, entry: { kind: 'tcp' as const, endpoints: Array.from({ length: perService }, (_unused, index) => ({ address: address(service, index), port: 8080, weight: 1 })) },
})));

const folder = mkdtempSync(join(tmpdir(), 'up-consistency-'));
const envoy = new Envoy({ nodeName: 'n', runDir: folder, envoyPath: envoyBinary(), cgroupPath: undefined, concurrency: 1, logger: quiet });
const entry = (any: Any, name: string, needs: readonly string[] = []): [string, Entry] => [name, { name, version: hashBytes(any.value), any, needs }];
const names = Array.from({ length: services }, (_, service) => `outbound|80||service-${service}.ns${service % 100}.svc.cluster.local`);
const snapshot = new Snapshot([
  [CDS, new Map(names.map((name) => entry(edsCluster(name), name, [name])))],
  [EDS, new Map(names.map((name, service) => entry(assignment(name, Array.from({ length: perService }, (_, index) => `${address(service, index)}:8080`)), name)))],
  [LDS, new Map([entry(httpListener(80), '0.0.0.0_80', ['80'])])],
  [RDS, new Map([entry(routes(80, Object.fromEntries(names.map((name, service) => [`service-${service}`, name]))), '80')])],
]);
const ads = new AdsServer({ socketPath: envoy.adsSocketPath, logger: quiet });
await ads.start();
const rollout = ads.setSnapshot(snapshot);
await envoy.start();
await waitFor('Envoy to have it', () => ads.idle && ads.rolledOut >= rollout, { timeoutMs: 300_000, everyMs: 50 });

/** CPU of Envoy, in milliseconds, at 100 ticks a second. */
function envoyMs(): number {
  const fields = readFileSync(`/proc/${envoy.status.pid!}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) * 10;
}

async function measure(name: string, checks: readonly Check[], rounds: number): Promise<string> {
  const auditor = new Auditor({ checks, logger: quiet });
  await auditor.round();
  await auditor.round();
  const [cpu, envoyBefore] = [process.cpuUsage(), envoyMs()];
  for (let round = 0; round < rounds; round++) await auditor.round();
  const { user, system } = process.cpuUsage(cpu);
  const { drifting, problems } = auditor.status;
  if (drifting.length + problems.length > 0) throw new Error(JSON.stringify([drifting.slice(0, 3), problems]));
  return `${name}: ${((user + system) / 1_000 / rounds).toFixed(1)} ms CPU of the agent, ${((envoyMs() - envoyBefore) / rounds).toFixed(1)} ms of Envoy a round\n`;
}

process.stdout.write(`${services} services of ${perService} endpoints\n`);
process.stdout.write(await measure('kernel', kernel.checks(), 20));
for (const check of new EnvoyAudit({ ads, admin: envoy.admin }).checks()) process.stdout.write(await measure(check.name, [check], 2));
ads.close();
await envoy.stop();
await kernel.close();
rmSync(folder, { recursive: true, force: true });
