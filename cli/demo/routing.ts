/** Step 3: what the user's VirtualService asks for, counted over many requests. */
import { parseLoadResult, tcpBench, type LoadResult } from '../../bench/index.js';
import { UnderpassError } from '../../common/errors.js';
import type { DestinationRule, HttpRoute, VirtualService } from '../../common/kube/types.js';
import { loadDirectory } from '../../common/kube/yaml.js';
import type { Stage } from './stage.js';

export const REQUESTS = 1000;
/** Of 10,000 right runs, one lies outside. */
const STANDARD_DEVIATIONS = 4;

export interface Expectation {
  name: string;
  headers: Record<string, string>;
  /** Share of each version, adding up to 1. */
  versions: Record<string, number>;
}

/** Counts of a version within which a right router stays: the binomial distribution's middle. */
export function bounds(requests: number, share: number): { low: number; high: number } {
  const mean = requests * share;
  const deviation = STANDARD_DEVIATIONS * Math.sqrt(requests * share * (1 - share));
  return { low: Math.max(0, Math.floor(mean - deviation)), high: Math.min(requests, Math.ceil(mean + deviation)) };
}

/** One for the routes' default, one for each route that asks for headers by exact value only. */
export function expectationsOf(virtualService: VirtualService, rules: readonly DestinationRule[]): Expectation[] {
  const versionOf = (host: string, subset: string | undefined): string => {
    const rule = rules.find((candidate) => candidate.spec.host.split('.')[0] === host.split('.')[0]);
    return rule?.spec.subsets?.find(({ name }) => name === subset)?.labels?.['version'] ?? subset ?? 'any';
  };
  const versionsOf = (route: HttpRoute): Record<string, number> => {
    const destinations = route.route ?? [];
    const sum = destinations.reduce((total, { weight }) => total + (weight ?? 0), 0);
    const shares: Record<string, number> = {};
    for (const { destination, weight } of destinations) {
      const version = versionOf(destination.host, destination.subset);
      shares[version] = (shares[version] ?? 0) + (destinations.length === 1 ? 1 : (weight ?? 0) / (sum || 1));
    }
    return shares;
  };
  const found: Expectation[] = [];
  for (const route of virtualService.spec.http ?? []) {
    const [match] = route.match ?? [];
    if (!match) {
      found.push({ name: route.name ?? 'default', headers: {}, versions: versionsOf(route) });
      break;
    }
    const headers = Object.entries(match.headers ?? {}).flatMap(([name, value]) => (value.exact === undefined ? [] : [[name, value.exact] as const]));
    const headersOnly = Object.keys(match).every((key) => key === 'headers' || key === 'name') && headers.length === Object.keys(match.headers ?? {}).length;
    if (headersOnly && headers.length > 0) found.push({ name: route.name ?? 'by header', headers: Object.fromEntries(headers), versions: versionsOf(route) });
  }
  return found;
}

/** Reads the directory as it is now: a reader may have changed it. */
export async function readExpectations(directory: string, namespace: string): Promise<Expectation[]> {
  const objects = (await loadDirectory(directory)).objects.map(({ object }) => object).filter(({ metadata }) => metadata.namespace === namespace);
  const virtualService = objects.find(({ kind }) => kind === 'VirtualService') as VirtualService | undefined;
  const rules = objects.filter(({ kind }) => kind === 'DestinationRule') as DestinationRule[];
  const expectations = virtualService ? expectationsOf(virtualService, rules) : [];
  if (expectations.length === 0) throw new UnderpassError('UNDERPASS_DEMO_YAML', `reading ${directory}: namespace ${namespace} has no VirtualService with a route by header or a default route`);
  return expectations;
}

export async function requestsInPod(stage: Stage, namespace: string, args: readonly string[]): Promise<LoadResult> {
  const { code, stdout, stderr } = await stage.lab.exec({ namespace, name: 'client' }, [tcpBench, 'http', '--connect', 'nginx:80', '--timeout', '5', ...args], { timeoutMs: 60_000, signal: stage.signal });
  if (code !== 0) throw new UnderpassError('UNDERPASS_DEMO_LOAD', `sending requests in pod ${namespace}/client: exit ${code}: ${stderr.trim()}`);
  return parseLoadResult(stdout);
}

export async function showRouting(stage: Stage, directory: string): Promise<void> {
  const { narrator, meshed } = stage;
  for (const { name, headers, versions } of await readExpectations(directory, meshed)) {
    const words = Object.entries(headers).map(([header, value]) => `${header}: ${value}`);
    const result = await requestsInPod(stage, meshed, ['--count', String(REQUESTS), '--connections', '4', '--tally', 'header:x-version', ...words.flatMap((header) => ['--header', header])]);
    const asked = words.length > 0 ? `with ${words.join(', ')}` : 'without a header';
    narrator.prove(result.failed === 0, `route ${name}, ${REQUESTS} requests ${asked}: ${result.failed} failed${result.failed > 0 ? ` (${result.first_failure})` : ''}`);
    const strange = Object.keys(result.tally).filter((version) => !(version in versions));
    if (strange.length > 0) narrator.prove(false, `answers came from ${strange.join(', ')} too`);
    for (const [version, share] of Object.entries(versions)) {
      const count = result.tally[version] ?? 0;
      const { low, high } = bounds(REQUESTS, share);
      const expected = low === high ? `all ${low} expected` : `${(share * 100).toFixed(0)} % expected, so ${low} to ${high}`;
      narrator.prove(count >= low && count <= high, `${version} answered ${count} (${expected})`);
    }
  }
}
