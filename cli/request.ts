/** `underpass request`: the admin API for scripts, and for the CLI itself, which executes it in the agents' containers. */
import { pipeline } from 'node:stream/promises';
import { Option, type Command } from 'commander';
import { askAgent, instancePaths, openAgentStream } from '../agent/client.js';
import { UnderpassError } from '../common/errors.js';
import { addInstanceOptions } from './instance-options.js';
import { outputClosed } from './signals.js';

export function configure(command: Command): void {
  addInstanceOptions(command)
    .argument('<path>', 'of the admin API, e.g. /v1/status, /v1/counters, /metrics')
    .addOption(new Option('--method <method>', 'POST changes something').choices(['GET', 'POST']).default('GET'))
    .option('--follow', 'print what comes as it comes, until standard input ends')
    .action(async (path: string, options: { runDir: string; instance: string; method: 'GET' | 'POST'; follow?: boolean }) => {
      if (!/^\/[\x21-\x7e]*$/.test(path)) throw new UnderpassError('UNDERPASS_BAD_OPTION', `${JSON.stringify(path)}: expected a path that begins with / and has neither blanks nor control characters`);
      if (options.follow) {
        const ended = new AbortController();
        process.stdin.on('end', () => ended.abort()).on('error', () => ended.abort()).resume();
        const signal = AbortSignal.any([ended.signal, outputClosed]);
        try {
          await pipeline(await openAgentStream(instancePaths(options).adminSocket, path, signal), process.stdout, { end: false });
        } catch (error) {
          if (!signal.aborted) throw error;
        } finally {
          process.stdin.destroy();
        }
        return;
      }
      process.stdout.write(await askAgent(instancePaths(options).adminSocket, path, { method: options.method, timeoutMs: 60_000 }));
    });
}
