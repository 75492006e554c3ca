/** `underpass capture`: what the short-circuited sockets of one pod send, as a file for Wireshark. */
import { open } from 'node:fs/promises';
import { userInfo } from 'node:os';
import type { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { InvalidArgumentError, type Command } from 'commander';
import { UnderpassError } from '../common/errors.js';
import { WholeBlocks } from '../common/pcapng.js';
import { addReachOptions, findPod, reachAgents, statuses, type ReachOptions } from './agents.js';
import { readWhole } from './numbers.js';
import { followSignals, outputClosed } from './signals.js';

interface Options extends ReachOptions {
  write?: string;
  seconds?: number;
  bytes?: number;
  rate?: number;
}

export function configure(command: Command): void {
  addReachOptions(command)
    .argument('<pod>', 'POD or NAMESPACE/POD; of its connections that open from now on')
    .option('-w, --write <file>', 'a pcapng file, which only its owner may read; default: standard output, which may be no terminal')
    .option('--seconds <n>', 'ends after so long; default 60, at most 3600', readWhole)
    .option('--bytes <n>', 'ends after so much payload; default 64Mi, at most 1Gi; k, M, Ki and Mi may follow', readBytes)
    .option('--rate <bytes>', 'of payload in a second, what is over it is left out and counted; default 8Mi, at most 64Mi', readBytes)
    .action(capture);
}

async function capture(pod: string, options: Options): Promise<void> {
  if (options.write === undefined && process.stdout.isTTY) throw new UnderpassError('UNDERPASS_BAD_OPTION', 'a capture is no text for a terminal', { hint: 'write it to a file with -w FILE, or pipe it into `tshark -r -`' });
  const { username } = userInfo();
  // Ctrl-C is how most captures end: the file is whole.
  const signals = followSignals();
  const done = new AbortController();
  const end = AbortSignal.any([signals.signal, outputClosed]);
  let received = 0;
  const reach = await reachAgents(options);
  try {
    const found = reach.client ? findPod(await statuses(reach), pod) : undefined;
    const by = `${process.env['SUDO_USER'] ?? username}, process ${process.pid}${reach.client ? ', through the API server' : ''}`;
    const query = new URLSearchParams({ pod: found ? `${found.pod.namespace}/${found.pod.name}` : pod, by });
    for (const key of ['seconds', 'bytes', 'rate'] as const) if (options[key] !== undefined) query.set(key, String(options[key]));
    const stream = await (found?.agent ?? reach.agents[0]!).open(`/v1/capture?${query.toString()}`, AbortSignal.any([end, done.signal]));
    const file = options.write === undefined ? process.stdout : await ownFile(options.write).catch((error: unknown) => {
      stream.destroy();
      throw error;
    });
    const blocks = new WholeBlocks().on('data', (chunk: Buffer) => (received += chunk.length));
    await pipeline(stream, blocks, file, { end: options.write !== undefined });
  } catch (error) {
    if (!end.aborted) throw error;
  } finally {
    done.abort();
    reach.close();
    signals.close();
  }
  process.stderr.write(`${received} B of pcapng${options.write === undefined ? '' : ` in ${options.write}`}\n`);
}

/** Also one that is there, and that others could read. */
async function ownFile(path: string): Promise<Writable> {
  const file = await open(path, 'w', 0o600);
  await file.chmod(0o600);
  return file.createWriteStream();
}

function readBytes(text: string): number {
  const match = /^(\d{1,12})(k|M|G|Ki|Mi|Gi)?$/.exec(text);
  if (!match) throw new InvalidArgumentError('expected a number of bytes, as 500k or 64Mi');
  const factors: Record<string, number> = { k: 1e3, M: 1e6, G: 1e9, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30 };
  return Number(match[1]) * (factors[match[2] ?? ''] ?? 1);
}
