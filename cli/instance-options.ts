import type { Command } from 'commander';
import { DEFAULT_INSTANCE } from '../agent/client.js';
import { defaultRunDir } from '../common/paths.js';

/** Which agent of this machine a command is for. */
export function addInstanceOptions(command: Command): Command {
  return command
    .option('--run-dir <dir>', 'run-time state: sockets, last good xDS, pinned namespaces', defaultRunDir)
    .option('--instance <name>', 'which agent of this machine', DEFAULT_INSTANCE);
}
