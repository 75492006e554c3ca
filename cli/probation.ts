import { Option, type Command } from 'commander';
import { askAgent, countProbation, instancePaths, type AgentStatus, type PodProbation } from '../agent/index.js';
import { addInstanceOptions } from './agent-run.js';
import { printTable } from './table.js';

export function configure(command: Command): void {
  addInstanceOptions(command)
    .addOption(new Option('-o, --output <format>', 'json: all that is known, for scripts').choices(['table', 'json']).default('table'))
    .option('-n, --namespace <namespace>', 'of this namespace alone')
    .addHelpText('after', '\nA program\'s connections are short-circuited after its probation if its verdict is event-driven.\n"blocking" and "spliced" are for good: its connections are plain TCP. See docs/kernel-rules.md, rule 11.')
    .action(async (options: { runDir: string; instance: string; output: 'table' | 'json'; namespace?: string }) => {
      const { probation } = JSON.parse(await askAgent(instancePaths(options).adminSocket, '/v1/status')) as AgentStatus;
      const wanted = probation.filter(({ namespace }) => options.namespace === undefined || namespace === options.namespace);
      process.stdout.write(options.output === 'json' ? `${JSON.stringify(wanted, undefined, 2)}\n` : render(wanted));
    });
}

export function render(entries: readonly PodProbation[]): string {
  const rows = entries.map((entry) => [
    entry.namespace ?? '',
    entry.pod ?? '',
    entry.kind,
    // A listener's key says where, and its namespace's cookie, which means nothing to people.
    entry.kind === 'listener' ? entry.key.replace(/@\d+$/, '') : (entry.program ?? entry.key),
    String(entry.seen),
    entry.verdict,
    entry.kind === 'listener' && entry.program !== undefined ? `${entry.program}: ${entry.reason}` : entry.reason,
  ]).sort((a, b) => a.join('\0').localeCompare(b.join('\0')));
  let table = '';
  printTable(['NAMESPACE', 'POD', 'KIND', 'PROGRAM', 'SEEN', 'VERDICT', 'WHY'], rows, (text) => (table += text));
  return rows.length === 0 ? '(no program has been seen yet)\n' : `${table}\n${summary(entries)}\n`;
}

/** `listeners: 2 event-driven, 1 blocking; clients: 1 in probation`. */
export function summary(entries: readonly Pick<PodProbation, 'kind' | 'verdict'>[]): string {
  const of = (wanted: string): string => {
    const parts = countProbation(entries).filter(({ kind, count }) => kind === wanted && count > 0).map(({ verdict, count }) => `${count} ${verdict === 'probation' ? 'in probation' : verdict}`);
    return `${wanted}s: ${parts.join(', ') || 'none'}`;
  };
  return `${of('listener')}; ${of('client')}`;
}
