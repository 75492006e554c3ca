/**
 * Runs a command in a container by the API server, over a WebSocket (`v5.channel.k8s.io`, Kubernetes 1.30 and later, or `v4`):
 * https://kubernetes.io/docs/reference/using-api/api-concepts/, remotecommand. Asks for the verb `get`, and from 1.35 on
 * `create` too, of `pods/exec`.
 */
import { WebSocket } from 'ws';
import { KubeApiError } from './client.js';
import type { ApiServer } from './kubeconfig.js';

/** The first byte of each message. */
const STDOUT = 1;
const STDERR = 2;
const ERROR = 3;
const PROTOCOLS = ['v5.channel.k8s.io', 'v4.channel.k8s.io'];

export interface ExecOptions {
  namespace: string;
  pod: string;
  container: string;
  command: readonly string[];
  signal?: AbortSignal;
  timeoutMs?: number;
  /** More than this is an error. */
  maxBytes?: number;
  /**
   * Takes the output as it comes; no more is read from the connection until what this returned is there. Then it is in no result,
   * and neither time nor length have a bound. The command's standard input ends when this end goes away.
   */
  onStdout?: (chunk: Buffer) => Promise<unknown> | undefined;
}

export interface ExecResult {
  stdout: Buffer;
  stderr: string;
  code: number;
}

interface Status { status?: string; message?: string; reason?: string; details?: { causes?: { reason?: string; message?: string }[] } }

/** @throws KubeApiError when the server refuses; Error when the connection ends before the command has, or takes too long */
export async function execInPod(server: ApiServer, { namespace, pod, container, command, signal, timeoutMs = 60_000, maxBytes = 512 * 1024 * 1024, onStdout }: ExecOptions): Promise<ExecResult> {
  const query = new URLSearchParams([['container', container], ...(onStdout ? [['stdin', 'true'] as [string, string]] : []), ['stdout', 'true'], ['stderr', 'true'], ...command.map((word): [string, string] => ['command', word])]);
  const socket = await openSocket(server, `/api/v1/namespaces/${namespace}/pods/${pod}/exec?${query}`);
  const parts: Buffer[] = [];
  let size = 0;
  let stderr = '';
  const limit = onStdout ? undefined : AbortSignal.timeout(timeoutMs);
  const end = AbortSignal.any([signal, limit].filter((each) => each !== undefined));
  return await new Promise<ExecResult>((resolve, reject) => {
    const fail = (error: Error): void => {
      reject(error);
      socket.terminate();
    };
    const onAbort = (): void => fail(limit?.aborted ? new Error(`running ${command[0]} in pod ${namespace}/${pod}: not done in ${timeoutMs} ms`) : (signal?.reason as Error));
    if (end.aborted) return onAbort();
    end.addEventListener('abort', onAbort, { once: true });
    socket.on('message', (data: Buffer) => {
      const [channel] = data;
      const rest = data.subarray(1);
      if (channel === STDOUT && onStdout) {
        const taken = onStdout(rest);
        if (!taken) return;
        socket.pause();
        return void taken.finally(() => socket.resume());
      }
      size += rest.length;
      if (size > maxBytes) fail(new Error(`running ${command[0]} in pod ${namespace}/${pod}: its output is longer than ${maxBytes} bytes`));
      else if (channel === STDOUT) parts.push(rest);
      else if (channel === STDERR) stderr += rest.toString('utf8');
      else if (channel === ERROR) {
        try {
          resolve({ stdout: Buffer.concat(parts), stderr, code: codeOf(JSON.parse(rest.toString('utf8')) as Status) });
        } catch (error) {
          reject(error as Error);
        }
        socket.close();
      }
    });
    socket.on('error', fail);
    socket.resume();
    socket.on('close', () => {
      end.removeEventListener('abort', onAbort);
      reject(new Error(`running ${command[0]} in pod ${namespace}/${pod}: the connection ended before the command did${stderr === '' ? '' : `: ${stderr.slice(0, 200)}`}`));
    });
  });
}

/** @throws KubeApiError when it is no exit code but a reason why the command could not be run */
function codeOf({ status, message = '', reason, details }: Status): number {
  if (status === 'Success') return 0;
  const code = details?.causes?.find((cause) => cause.reason === 'ExitCode')?.message;
  if (reason === 'NonZeroExitCode' && code !== undefined) return Number(code);
  throw new KubeApiError(500, message);
}

/** Paused: what comes at once waits until who asked listens, and resumes. @param path with its query, below the server's URL */
export async function openSocket(server: ApiServer, path: string, protocols: readonly string[] = PROTOCOLS): Promise<WebSocket> {
  const { url } = server;
  const { headers, ...tls } = await server.credentials();
  const base = `${url.protocol === 'http:' ? 'ws' : 'wss'}://${url.host}${url.pathname.replace(/\/$/, '')}`;
  const socket = new WebSocket(`${base}${path}`, [...protocols], { headers, ...tls, perMessageDeflate: false, handshakeTimeout: 30_000 });
  await new Promise<void>((resolve, reject) => {
    socket.once('open', () => {
      socket.pause();
      resolve();
    });
    socket.once('error', reject);
    socket.once('unexpected-response', (_request, response) => {
      const chunks: Buffer[] = [];
      const { socket: connection } = response;
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('end', () => {
        const text = Buffer.concat(chunks).toString('utf8');
        let said = text.slice(0, 500);
        try {
          said = (JSON.parse(text) as Status).message ?? said;
        } catch {
          // As it is: a proxy in between may have answered.
        }
        // The connection would stay until the server gives it up.
        connection.destroy();
        reject(new KubeApiError(response.statusCode ?? 0, `GET ${path.split('?')[0]}: ${response.statusCode} ${said}`));
      });
    });
  });
  return socket;
}
