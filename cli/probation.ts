import type { Command } from 'commander';
import { countProbation, type PodProbation } from '../agent/client.js';
import { addReachOptions, reachAgents, statuses, type ReachOptions } from './agents.js';
import { outputOption, print, type Format } from './output.js';
import { tableText } from './table.js';

export function configure(command: Command): void {
  addReachOptions(command)
    .addOption(outputOption())
    .option('-n, --namespace <namespace>', 'of this namespace alone')
    .addHelpText('after', '\nA program\'s connections are short-circuited after its probation if its verdict is event-driven.\n"blocking" and "spliced" are for good: its connections are plain TCP. See docs/kernel-rules.md, rule 11.')
    .action(async (options: ReachOptions & { output: Format; namespace?: string }) => {
      const reach = await reachAgents(options);
      try {
        const wanted = (await statuses(reach)).flatMap(({ status }) => status.probation).filter(({ namespace }) => options.namespace === undefined || namespace === options.namespace);
        print(options.output, wanted, () => render(wanted));
      } finally {
        reach.close();
      }
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
  return rows.length === 0 ? '(no program has been seen yet)\n' : `${tableText(['NAMESPACE', 'POD', 'KIND', 'PROGRAM', 'SEEN', 'VERDICT', 'WHY'], rows)}\n${summary(entries)}\n`;
}

/** `listeners: 2 event-driven, 1 blocking; clients: 1 in probation`. */
export function summary(entries: readonly Pick<PodProbation, 'kind' | 'verdict'>[]): string {
  const of = (wanted: string): string => {
    const parts = countProbation(entries).filter(({ kind, count }) => kind === wanted && count > 0).map(({ verdict, count }) => `${count} ${verdict === 'probation' ? 'in probation' : verdict}`);
    return `${wanted}s: ${parts.join(', ') || 'none'}`;
  };
  return `${of('listener')}; ${of('client')}`;
}
