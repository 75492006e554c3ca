/** `underpass doctor`: what this kernel and machine can do, each line yes, no or partly, with what a no costs. */
import { Option, type Command } from 'commander';
import { diagnose } from './doctor/diagnose.js';
import { EXIT_CODES, renderTable } from './doctor/report.js';

export function configure(command: Command): void {
  command
    .addOption(new Option('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table'))
    .addHelpText('after', `\nRuns as any user; what only root can find out is said to be so. What it tries, it tries in namespaces and cgroups of its own, which are gone when it ends.\n\n${EXIT_CODES}`)
    .action(async (options: { output: 'table' | 'json' }) => {
      const diagnosis = await diagnose();
      if (options.output === 'json') process.stdout.write(JSON.stringify(diagnosis, undefined, 2) + '\n');
      else process.stdout.write(renderTable(diagnosis, { colour: process.stdout.isTTY === true && !process.env['NO_COLOR'], width: process.stdout.columns ?? 120 }));
      process.exitCode = diagnosis.verdict.code;
    });
}
