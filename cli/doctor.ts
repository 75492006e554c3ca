/** `underpass doctor`: what this kernel and machine can do, each line yes, no or partly, with what a no costs. */
import type { Command } from 'commander';
import { diagnose } from './doctor/diagnose.js';
import { EXIT_CODES, renderTable } from './doctor/report.js';
import { hasColour, outputOption, print, type Format } from './output.js';
import { whileWaiting } from './progress.js';

export function configure(command: Command): void {
  command
    .addOption(outputOption())
    .addHelpText('after', `\nRuns as any user; what only root can find out is said to be so. What it tries, it tries in namespaces and cgroups of its own, which are gone when it ends.\n\n${EXIT_CODES}`)
    .action(async (options: { output: Format }) => {
      const diagnosis = await whileWaiting('asking kernel and machine', diagnose());
      print(options.output, diagnosis, () => renderTable(diagnosis, { colour: hasColour(), width: process.stdout.columns ?? 120 }));
      process.exitCode = diagnosis.verdict.code;
    });
}
