import type { Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { DEFAULT_LAB_NAME, LabClient, labSocket } from '../common/lab-api.js';
import { defaultRunDir } from '../common/paths.js';

const KINDS: Record<string, 'Namespace' | 'Pod'> = {
  namespace: 'Namespace',
  namespaces: 'Namespace',
  ns: 'Namespace',
  pod: 'Pod',
  pods: 'Pod',
  po: 'Pod',
};

export function configure(command: Command): void {
  command
    .argument('<kind>', 'namespace or pod')
    .argument('<name>')
    .argument('<labels...>', 'key=value sets a label, key- removes it')
    .option('-n, --namespace <namespace>', 'namespace of the pod', 'default')
    .option('--name <lab>', 'which lab', DEFAULT_LAB_NAME)
    .option('--run-dir <dir>', 'where run-time state is kept', defaultRunDir)
    .addHelpText('after', '\nExample:\n  underpass label namespace shop underpass.io/mode=node')
    .action(label);
}

/** `key=value` sets, `key-` removes, as kubectl has it. */
export function parseLabels(words: readonly string[]): Record<string, string | null> {
  const labels: Record<string, string | null> = {};
  for (const word of words) {
    const equals = word.indexOf('=');
    if (equals > 0) labels[word.slice(0, equals)] = word.slice(equals + 1);
    else if (equals < 0 && word.length > 1 && word.endsWith('-')) labels[word.slice(0, -1)] = null;
    else
      throw new UnderpassError(
        'UNDERPASS_LAB_LABEL',
        `reading the label ${JSON.stringify(word)}: expected key=value, or key- to remove it`,
      );
  }
  return labels;
}

async function label(
  kindWord: string,
  name: string,
  words: string[],
  options: { namespace: string; name: string; runDir: string },
): Promise<void> {
  const kind = KINDS[kindWord.toLowerCase()];
  if (!kind) throw new UnderpassError('UNDERPASS_LAB_LABEL', `labelling ${kindWord} ${name}: expected namespace or pod`);
  const client = new LabClient(labSocket(options.name, options.runDir));
  await client.label({ kind, name, labels: parseLabels(words), ...(kind === 'Pod' ? { namespace: options.namespace } : {}) });
  process.stdout.write(`${kind.toLowerCase()} ${name} labelled\n`);
}
