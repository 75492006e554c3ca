// docs/reference/metrics.md: each metric of an agent and of pilot, as the code declares it, and nothing else.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { grafanaDashboards } from '../cli/install/dashboards/index.js';
import { RULE_GROUPS } from '../cli/install/rules.js';
import { projectRoot } from '../common/paths.js';

interface Metric {
  name: string;
  type: string;
}

const TEXT = `(?:'(?:[^'\\\\]|\\\\.)*'|"(?:[^"\\\\]|\\\\.)*"|\`[^\`]*\`)`;
/** `add` and its like of agent/telemetry/prometheus.ts. */
const ADDED = new RegExp(`\\.(add|addLabelled|addHistogram)\\(\\s*(?:text,\\s*)?['\`]((?:underpass|istio)_[^'\`]+)['\`],\\s*(?:'(counter|gauge)',\\s*)?${TEXT}`, 'g');
/** Names that tables in the code hold: of common/ those that an agent and Envoys have in common. */
const NAMED = /\{ name: '((?:istio|underpass)_\w+)', help: /g;
/** prom-client's. */
const CREATED = /new (Counter|Gauge|Histogram)(?:<[^>]*>)?\(\{\s*name: '(\w+)'/g;

function sources(folder: string): string[] {
  return readdirSync(join(projectRoot, folder), { recursive: true, encoding: 'utf8' }).filter((path) => path.endsWith('.ts') && !/\.test\.ts$|(^|\/)(testing|bench)\//.test(path)).map((path) => readFileSync(join(projectRoot, folder, path), 'utf8'));
}

/** What a name has of the moment stands in it as `*`. */
function declared(): Metric[] {
  const found = new Map<string, string>();
  for (const text of [...sources('agent'), ...sources('common/telemetry')]) {
    for (const [, how, name = '', type] of text.matchAll(ADDED)) found.set(name.replaceAll(/\$\{[^}]*\}+/g, '*'), how === 'addHistogram' ? 'histogram' : type!);
    for (const [, name = ''] of text.matchAll(NAMED)) found.set(name, name.endsWith('_total') ? 'counter' : 'histogram');
  }
  for (const text of sources('pilot')) for (const [, type = '', name = ''] of text.matchAll(CREATED)) found.set(name, type.toLowerCase());
  return [...found].map(([name, type]) => ({ name, type })).sort((a, b) => (a.name < b.name ? -1 : 1));
}

function documented(): Metric[] {
  const page = readFileSync(join(projectRoot, 'docs/reference/metrics.md'), 'utf8');
  return [...page.matchAll(/^\| `([\w*]+)` \| (\w+) \|/gm)].map(([, name = '', type = '']) => ({ name, type })).sort((a, b) => (a.name < b.name ? -1 : 1));
}

test('the page of metrics has each that the code declares, with its type, and no other', () => {
  const metrics = declared();
  assert.ok(metrics.length > 70, `${metrics.length} found in the code`);
  assert.deepEqual(documented(), metrics);
});

test('a counter of the agent ends in _total, and nothing else does: OpenMetrics has no others', () => {
  const own = declared().filter(({ name }) => /^(istio|underpass)_/.test(name));
  assert.deepEqual(own.filter(({ name, type }) => name.endsWith('_total') !== (type === 'counter')), []);
});

test('dashboards and rules ask for metrics that the page has, and for counters that the kernel has', () => {
  const known = documented().flatMap(({ name, type }) => (type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name])).filter((name) => !/^underpass_(kernel|pod)_/.test(name));
  const patterns = known.map((name) => new RegExp(`^${name.replaceAll('*', '[a-z]+')}$`));
  const structs = readFileSync(join(projectRoot, 'bpf/structs.h'), 'utf8');
  const ofKernel = new Set([...structs.matchAll(/^\tCOUNTER_(\w+),/gm)].map(([, name = '']) => `underpass_kernel_${name.toLowerCase()}_total`));
  const ofPods = new Set([.../struct pod_counters \{([^}]*)\}/.exec(structs)![1]!.matchAll(/__u64 (\w+);/g)].map(([, name = '']) => `underpass_pod_${name}_total`));
  assert.ok(ofKernel.size > 80 && ofPods.size === 7);
  const texts = [
    ...Object.values(grafanaDashboards()).flatMap((dashboard) => [...JSON.stringify(dashboard).matchAll(/"(?:expr|query|definition)":("(?:[^"\\]|\\.)*")/g)].map(([, text = '']) => JSON.parse(text) as string)),
    ...RULE_GROUPS.flatMap(({ rules }) => rules.map(({ expr }) => expr)),
  ];
  // Neither a part of a recording's name nor a label's.
  const asked = new Set(texts.flatMap((text) => [...text.matchAll(/(?<![\w:])(?:underpass|istio|pilot|galley|sidecar_injection)_\w+(?![\w:]*:)/g)].map(([name]) => name)));
  assert.ok(asked.size > 80, `${asked.size} names`);
  assert.deepEqual([...asked].filter((name) => !ofKernel.has(name) && !ofPods.has(name) && !patterns.some((pattern) => pattern.test(name))), []);
});
