/**
 * docs/reference/cli.md, exit-codes.md and analysis.md, made from the commands' own definitions. `make docs` runs this file; a test fails when
 * a page differs from what is made here.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { projectRoot } from '../common/paths.js';
import { CODES } from './analyze/codes.js';
import { EXIT, EXIT_MEANINGS } from './exit-codes.js';
import { buildProgram } from './program.js';

const WIDTH = 110;

/** Path below the project's root, and text. */
export async function referencePages(): Promise<Record<string, string>> {
  const program = await buildProgram('all');
  const sections = program.commands.flatMap((command) => sectionsOf(command, 'underpass'));
  return {
    'docs/reference/cli.md': [
      '# Commands',
      'Made from the commands\' own definitions by `make docs`. Every command says this with `--help`. What their exit codes mean: [exit-codes.md](exit-codes.md).',
      '',
      '| command | what it does |',
      '|---|---|',
      ...program.commands.map((command) => `| [\`${command.name()}\`](#underpass-${command.name()})${command.alias() === undefined ? '' : `, \`${command.alias()}\``} | ${command.description()} |`),
      '',
      ...sections,
    ].join('\n'),
    'docs/reference/exit-codes.md': [
      '# Exit codes',
      'The same for all commands but `doctor`, whose codes say what the machine can do (`underpass doctor --help`); made from `cli/exit-codes.ts` by `make docs`.',
      '',
      '| code | meaning |',
      '|---|---|',
      ...Object.entries(EXIT).map(([name, code]) => `| ${code} | ${EXIT_MEANINGS[name as keyof typeof EXIT]} |`),
      '',
      '`underpass lab exec` ends with the code of the program that it ran. Errors go to stderr, with a code of their own in brackets ([errors.md](errors.md)) and, where one is known, a line that says what to do; what was asked for goes to stdout, alone.',
      '',
    ].join('\n'),
    'docs/reference/analysis.md': [
      '# What analyze finds',
      'Codes of `underpass analyze`; made from `cli/analyze/codes.ts` by `make docs`. Those that begin with IST mean what [Istio](https://istio.io/latest/docs/reference/config/analysis/) says of them; what of its others is checked, is under IST0106 and IST0133.',
      '',
      '| code | name | said when |',
      '|---|---|---|',
      ...Object.entries(CODES).map(([code, [name, when]]) => `| ${code} | ${name} | ${when} |`),
      '',
    ].join('\n'),
  };
}

function sectionsOf(command: Command, parent: string): string[] {
  const name = `${parent} ${command.name()}`;
  let help = '';
  command.configureHelp({ helpWidth: WIDTH }).configureOutput({ writeOut: (text) => (help += text), getOutHasColors: () => false });
  command.outputHelp();
  return [`## ${name}`, '```', help.trimEnd().replace(/^Usage: /, ''), '```', '', ...command.commands.flatMap((each) => sectionsOf(each, name))];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [file, text] of Object.entries(await referencePages())) writeFileSync(join(projectRoot, file), text);
}
