/** Where the CNI plugin (native/cni) tells of pods whose network has just been made, and waits for them to be enrolled. */
import { chmodSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { errorMessage } from '../../common/errors.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { StartingPod } from '../workloads/source.js';

const MAX_REQUEST_BYTES = 2 << 20;
const MAX_CONNECTIONS = 512;
const READ_MS = 5_000;

export interface CniRequest {
  command: string;
  /** Undefined when the runtime does not say that this is a pod of Kubernetes. */
  pod: StartingPod | undefined;
}

/**
 * Lines `CNI_…=…`, an empty line, and the plugin's configuration with the result of those before it.
 * @throws Error that names what was found and what was expected
 */
export function parseCniRequest(text: string): CniRequest {
  const end = text.indexOf('\n\n');
  if (end < 0) throw new Error('found no empty line, expected one between CNI_ variables and configuration');
  const variables = new Map(text.slice(0, end).split('\n').map((line) => pair(line)));
  const command = variables.get('CNI_COMMAND') ?? '';
  const args = new Map((variables.get('CNI_ARGS') ?? '').split(';').map((each) => pair(each)));
  const [namespace, name, netns] = [args.get('K8S_POD_NAMESPACE'), args.get('K8S_POD_NAME'), variables.get('CNI_NETNS')];
  if (command !== 'ADD' || !namespace || !name) return { command, pod: undefined };
  if (!netns?.startsWith('/')) throw new Error(`CNI_NETNS: found ${JSON.stringify(netns ?? '')}, expected an absolute path`);
  const { prevResult } = JSON.parse(text.slice(end + 2)) as { prevResult?: { ips?: { address?: unknown }[] } };
  const ips = (prevResult?.ips ?? []).flatMap(({ address }) => (typeof address === 'string' ? [address.split('/')[0]!] : []));
  if (ips.length === 0) throw new Error('prevResult.ips: found none, expected the pod\'s addresses');
  const uid = args.get('K8S_POD_UID');
  return { command, pod: { namespace, name, ...(uid ? { uid } : {}), netns, ips } };
}

function pair(text: string): [string, string] {
  const at = text.indexOf('=');
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + 1)];
}

export class CniServer implements Closable {
  readonly #server: Server;
  readonly #abort = new AbortController();

  private constructor(readonly admit: (pod: StartingPod, signal: AbortSignal) => Promise<void>, readonly logger: Logger) {
    this.#server = createServer({ allowHalfOpen: true }, (socket) => void this.#serve(socket));
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  /** @param admit resolves when the pod's programs may start; rejects when they must not */
  static async listen(path: string, admit: CniServer['admit'], logger: Logger): Promise<CniServer> {
    const server = new CniServer(admit, logger);
    rmSync(path, { force: true });
    await new Promise<void>((resolve, reject) => {
      server.#server.once('error', reject);
      server.#server.listen(path, () => {
        server.#server.off('error', reject);
        resolve();
      });
    });
    chmodSync(path, 0o600);
    return server;
  }

  async #serve(socket: Socket): Promise<void> {
    const gone = new AbortController();
    socket.on('error', () => gone.abort());
    socket.on('close', () => gone.abort());
    let answer = 'ok';
    try {
      const { pod } = parseCniRequest(await read(socket));
      if (pod) await this.admit(pod, AbortSignal.any([gone.signal, this.#abort.signal]));
    } catch (error) {
      answer = `error: ${errorMessage(error).replaceAll('\n', ' ').slice(0, 500)}`;
      this.logger.warn({ reason: errorMessage(error) }, 'a pod was not let start');
    }
    socket.end(`${answer}\n`);
  }

  close(): Promise<void> {
    this.#abort.abort(new Error('the agent ends'));
    return new Promise((resolve) => void this.#server.close(() => resolve()));
  }
}

async function read(socket: Socket): Promise<string> {
  socket.setTimeout(READ_MS, () => socket.destroy(new Error(`nothing more was sent for ${READ_MS} ms`)));
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of socket.iterator({ destroyOnReturn: false })) {
    length += (part as Buffer).length;
    if (length > MAX_REQUEST_BYTES) throw new Error(`found more than ${MAX_REQUEST_BYTES} bytes`);
    parts.push(part as Buffer);
  }
  socket.setTimeout(0);
  return Buffer.concat(parts).toString('utf8');
}
