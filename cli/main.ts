/** The CLI: one file a command, loaded only when it is asked for, so that `underpass --help` starts fast. */
import { existsSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { VERSION } from '../common/version.js';

/** What each command's file exports: adds its options, arguments and action. */
export interface CommandModule {
  configure(command: Command): void;
}

const commands: { name: string; summary: string; load: () => Promise<CommandModule> }[] = [
  { name: 'doctor', summary: 'what this kernel and machine can do, and what a no costs', load: () => import('./doctor.js') },
  { name: 'demo', summary: 'the whole way once: routing, live toggles, restart and benchmark on this machine', load: () => import('./demo.js') },
  { name: 'bench', summary: 'latency, throughput and CPU of each mode, compared in one run', load: () => import('./bench.js') },
  { name: 'node', summary: 'the node agent, with the control plane in the same process if asked', load: () => import('./node.js') },
  { name: 'agent', summary: 'the node agent alone, or --cleanup of all it ever made', load: () => import('./agent.js') },
  { name: 'pilot', summary: 'the control plane alone', load: () => import('./pilot.js') },
  { name: 'install', summary: 'puts Underpass on a Kubernetes cluster, or prints the objects', load: () => import('./install.js') },
  { name: 'uninstall', summary: 'takes it away again, and leaves the nodes as they were', load: () => import('./uninstall.js') },
  { name: 'validate', summary: 'checks Kubernetes and Istio YAML: file, line, field, expectation', load: () => import('./validate.js') },
  { name: 'lab', summary: 'nodes and pods on this machine out of plain Kubernetes YAML', load: () => import('./lab.js') },
  { name: 'label', summary: 'sets or removes labels of a namespace or pod, e.g. underpass.io/mode=node', load: () => import('./label.js') },
  { name: 'explain', summary: 'which way a pod\'s connection would take, and why', load: () => import('./explain.js') },
  { name: 'ps', summary: 'pods, their mode and way, and who is in sync', load: () => import('./ps.js') },
  { name: 'fast-path', summary: 'the HTTP fast path of this node: how it is, and its switch', load: () => import('./fast-path.js') },
  { name: 'probation', summary: 'which programs were seen to be event-driven, and so are short-circuited', load: () => import('./probation.js') },
];

export async function main(argv: readonly string[]): Promise<number> {
  const program = new Command('underpass')
    .description('A service mesh without sidecars: the kernel moves the bytes, one Envoy per node decides.')
    .version(VERSION)
    .showHelpAfterError('(see --help)')
    .exitOverride();
  const wanted = argv.find((word) => !word.startsWith('-'));
  for (const { name, summary, load } of commands) {
    const isLeftOut = !existsSync(new URL(`./${name}.js`, import.meta.url));
    const command = program.command(name, { hidden: isLeftOut }).description(summary);
    command.exitOverride().showHelpAfterError();
    if (name !== wanted) continue;
    if (!isLeftOut) (await load()).configure(command);
    else command.helpOption(false).allowUnknownOption().allowExcessArguments().action(() => {
      throw new UnderpassError('UNDERPASS_COMMAND_LEFT_OUT', `underpass ${name}: the image is without this command`, { hint: 'it runs on a developer\'s machine, from a checkout' });
    });
  }
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return typeof process.exitCode === 'number' ? process.exitCode : 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    const code = error instanceof UnderpassError ? ` (${error.code})` : '';
    process.stderr.write(`underpass: ${errorMessage(error)}${code}\n`);
    if (error instanceof UnderpassError && error.hint) process.stderr.write(`  ${error.hint}\n`);
    if (!(error instanceof UnderpassError) && process.env['UNDERPASS_DEBUG']) console.error(error);
    return 1;
  }
}

// Who reads, as `head` does, may have seen enough: the rest is for nobody, and no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
});
process.exitCode = await main(process.argv.slice(2));
