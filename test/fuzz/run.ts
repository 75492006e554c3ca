/**
 * `make fuzz`: the parser beside Envoy for some minutes, each minute from another seed; every third of them what Envoy writes after
 * hostile input. Writes docs/results/fuzz.md.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildDir, envoyBinary, projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { corpus, writeCorpus, type Kind } from './corpus.js';
import { nothingDelimited, passOn } from './delimited.js';
import { compare, fuzz, newTally, taken } from './differential.js';
import { EnvoyReader } from './envoy-reader.js';
import { EnvoyRelay } from './envoy-relay.js';

const seconds = Number(process.argv[2] ?? 300);
if (!(seconds >= 1)) throw new Error(`fuzz: seconds have to be a number from 1 on, not ${process.argv[2]}`);
const ROUND_SECONDS = 60;
const HOSTILE_ROWS: Record<Kind, string> = { request: 'requests, at the server', answer: 'answers, at the client', 'answer-to-head': 'answers to HEAD, at the client' };

const folder = mkdtempSync(join(tmpdir(), 'up-fuzz-'));
const firstSeed = Math.floor(Math.random() * 1e6);
const tally = newTally();
const delimited = nothingDelimited();
let hostile = 0;
const profiles: string[] = [];
let executions = 0;
let broken = '';
const [envoy, relay] = [await EnvoyReader.start(folder), await EnvoyRelay.start(folder)];
try {
  writeCorpus(join(folder, 'corpus'));
  const known = await taken(corpus);
  await compare(known, envoy, tally);
  await passOn(corpus, relay, delimited);
  const started = Date.now();
  for (let round = 0; !broken && Date.now() - started < seconds * 1000; round++) {
    const left = Math.min(ROUND_SECONDS, Math.ceil(seconds - (Date.now() - started) / 1000));
    const profile = join(folder, `${round}.profraw`);
    const args = [`-seed=${firstSeed + round}`, `-max_total_time=${left}`, '-max_len=1400', 'corpus'];
    const isHostile = round % 3 === 2;
    const { log, code } = await fuzz(args, folder, (batch) => {
      if (!isHostile) return compare(batch, envoy, tally);
      hostile += batch.length;
      return passOn(batch, relay, delimited);
    }, { profile, hostile: isHostile });
    profiles.push(profile);
    executions += Number(/^Done (\d+) runs/m.exec(log)?.[1] ?? 0);
    if (code !== 0) broken = log.slice(-3000);
    console.log(`${Math.round((Date.now() - started) / 1000)} s: ${executions} heads, compared ${JSON.stringify(tally.compared)}, ${tally.differences.length} differences; ${hostile} hostile messages, ${JSON.stringify(delimited.by)}, ${delimited.misread.length} ends misread`);
  }
  for (const difference of [...tally.differences.slice(0, 20), ...delimited.misread.slice(0, 20)]) console.log(JSON.stringify(difference));
  if (broken) console.log(broken);
  const coverage = await covered(profiles);
  const version = (await run(envoyBinary(), ['--version'])).stdout.match(/\d+\.\d+\.\d+/)?.[0] ?? '';
  const { compared, differences } = tally;
  writeFileSync(join(projectRoot, 'docs/results/fuzz.md'), `# The HTTP parser beside Envoy
\`make fuzz FUZZ_SECONDS=${seconds}\`, ${new Date().toISOString().slice(0, 10)}, Envoy ${version}, Linux ${release().split('-')[0]}, seeds ${firstSeed} to ${firstSeed + profiles.length - 1}. What is compared, and how: [HTTP fast path](../http-fast-path.md#the-parser).

| | |
|---|---|
| messages read by the parser (AddressSanitizer, UndefinedBehaviorSanitizer) | ${executions.toLocaleString('en')} |
| different ones that it took, each given to Envoy: requests | ${compared.request.toLocaleString('en')} |
| answers | ${compared.answer.toLocaleString('en')} |
| answers to HEAD | ${compared['answer-to-head'].toLocaleString('en')} |
| of the ${corpus.length} known tricks and plain messages that it starts from, taken | ${known.length} |
| read differently by Envoy | ${differences.length} |
| hostile messages given to Envoy to pass on, whatever the parser says of them | ${hostile.toLocaleString('en')} |
${Object.entries(delimited.by).map(([kind, { written, ended, doubted }]) => `| ${HOSTILE_ROWS[kind as Kind]}: connections on which Envoy wrote, messages ended where Envoy ended them, connections with a doubt | ${[written, ended, doubted].map((each) => each.toLocaleString('en')).join(', ')} |`).join('\n')}
| ended elsewhere than Envoy did | ${delimited.misread.length} |
| the parser's own crashes and broken promises | ${broken ? 1 : 0} |
${coverage}`);
  process.exitCode = differences.length > 0 || delimited.misread.length > 0 || broken ? 1 : 0;
} finally {
  await envoy.close();
  await relay.close();
  rmSync(folder, { recursive: true });
}

/** Rows of the table: lines and branches of the parser that were run. */
async function covered(files: readonly string[]): Promise<string> {
  const major = (await run(process.env['CLANG'] ?? 'clang', ['-dumpversion'])).stdout.split('.')[0];
  const tool = (name: string): string => `/usr/lib/llvm-${major}/bin/${name}`;
  const merged = join(folder, 'coverage.profdata');
  await run(tool('llvm-profdata'), ['merge', '-sparse', ...files, '-o', merged]);
  const { stdout } = await run(tool('llvm-cov'), ['export', '-summary-only', join(buildDir, 'http-fuzz'), `-instr-profile=${merged}`]);
  const data = (JSON.parse(stdout) as { data: { files: { filename: string; summary: Record<'lines' | 'branches', { count: number; covered: number }> }[] }[] }).data[0];
  return (data?.files ?? []).filter(({ filename, summary }) => filename.includes('bpf/http-') && summary.lines.count > 0).map(({ filename, summary: { lines, branches } }) =>
    `| \`${filename.slice(filename.indexOf('bpf/'))}\`: lines run, branches taken | ${lines.covered} of ${lines.count}, ${branches.covered} of ${branches.count} |\n`).join('');
}
