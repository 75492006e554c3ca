/** `underpass completion`: a shell's script asks this program what may stand there, so that it is never behind the commands. */
import { Argument, type Command } from 'commander';
import { askAgent, instancePaths, type AgentStatus } from '../agent/client.js';

const SCRIPTS = {
  bash: `# underpass: completion for bash. In ~/.bashrc: source <(underpass completion bash)
_underpass() {
  local IFS=$'\\n'
  COMPREPLY=($(underpass completion words -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _underpass underpass
`,
  zsh: `#compdef underpass
# underpass: completion for zsh. In ~/.zshrc, after compinit: source <(underpass completion zsh)
_underpass() {
  local -a found
  found=("\${(@f)$(underpass completion words -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  (( \${#found[1]} )) && compadd -a found || _files
}
compdef _underpass underpass
`,
  fish: `# underpass: completion for fish. underpass completion fish > ~/.config/fish/completions/underpass.fish
complete -c underpass -a '(underpass completion words -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
`,
};

/** Nobody waits longer for a list of names. */
const ASK_MS = 1_000;

export function configure(command: Command): void {
  command
    .addArgument(new Argument('<shell>', 'whose script to print; words: what may complete the last of the words that follow').choices([...Object.keys(SCRIPTS), 'words']))
    .argument('[words...]')
    .addHelpText('after', '\nNames of pods come from the agent of this machine, if one runs and may be asked.\nExample:\n  source <(underpass completion bash)')
    .action(async (shell: keyof typeof SCRIPTS | 'words', words: string[]) => {
      if (shell !== 'words') return void process.stdout.write(SCRIPTS[shell]);
      const found = await completions(words);
      process.stdout.write(found.map((word) => `${word}\n`).join(''));
    });
}

/** @param words what was typed after the program's name, the last one is being typed */
export async function completions(words: readonly string[]): Promise<string[]> {
  const { buildProgram } = await import('./program.js');
  const before = words.slice(0, -1);
  const typed = words.at(-1) ?? '';
  let command: Command = await buildProgram(before.find((word) => !word.startsWith('-')));
  let position = 0;
  const given = new Map<string, string>();
  for (let index = 0; index < before.length; index++) {
    const word = before[index]!;
    const option = optionOf(command, word);
    if (option && (option.required || option.optional) && !word.includes('=')) {
      const value = before[++index];
      // What is being typed is this option's.
      if (value === undefined) return startingWith(typed, option.argChoices ?? []);
      given.set(option.attributeName(), value);
      continue;
    }
    if (word.startsWith('-')) continue;
    const sub = command.commands.find((each) => each.name() === word || each.aliases().includes(word));
    if (sub) [command, position] = [sub, 0];
    else position++;
  }
  if (typed.startsWith('-')) return startingWith(typed, [...command.options.filter(({ hidden }) => !hidden).map(({ long, short }) => long ?? short ?? ''), '--help']);
  const subcommands = command.commands.filter((each) => !(each as { _hidden?: boolean })._hidden).map((each) => each.name());
  if (subcommands.length > 0) return startingWith(typed, subcommands);
  const argument = command.registeredArguments[position];
  if (argument?.argChoices) return startingWith(typed, argument.argChoices);
  return argument?.name() === 'pod' ? startingWith(typed, await podNames(given)) : [];
}

const optionOf = (command: Command, word: string): Command['options'][number] | undefined => command.options.find(({ long, short }) => word === short || word === long || word.startsWith(`${long}=`));
const startingWith = (typed: string, words: readonly string[]): string[] => [...new Set(words)].filter((word) => word !== '' && word.startsWith(typed)).sort();

/** `namespace/name`, or names alone where a namespace was given. */
async function podNames(given: ReadonlyMap<string, string>): Promise<string[]> {
  try {
    const [instance, runDir, namespace] = ['instance', 'runDir', 'namespace'].map((name) => given.get(name));
    const { adminSocket } = instancePaths({ ...(instance === undefined ? {} : { instance }), ...(runDir === undefined ? {} : { runDir }) });
    const { pods } = JSON.parse(await askAgent(adminSocket, '/v1/status', { timeoutMs: ASK_MS })) as AgentStatus;
    return namespace === undefined ? pods.map((pod) => `${pod.namespace}/${pod.name}`) : pods.filter((pod) => pod.namespace === namespace).map(({ name }) => name);
  } catch {
    return [];
  }
}
