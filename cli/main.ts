/** The CLI: reads the arguments, runs one command, and turns what it throws into a message and an exit code. */
import { CommanderError } from 'commander';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { EXIT, exitCodeOf } from './exit-codes.js';
import { buildProgram } from './program.js';
import { followOutput } from './signals.js';

export async function main(argv: readonly string[]): Promise<number> {
  const program = await buildProgram(argv.find((word) => !word.startsWith('-')));
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return typeof process.exitCode === 'number' ? process.exitCode : EXIT.ok;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    const code = error instanceof UnderpassError ? ` (${error.code})` : '';
    process.stderr.write(`underpass: ${errorMessage(error)}${code}\n`);
    if (error instanceof UnderpassError && error.hint) process.stderr.write(`  ${error.hint}\n`);
    if (!(error instanceof UnderpassError) && process.env['UNDERPASS_DEBUG']) console.error(error);
    return exitCodeOf(error);
  }
}

followOutput(process.stdout);
followOutput(process.stderr);
process.exitCode = await main(process.argv.slice(2));
