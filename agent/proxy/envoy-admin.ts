/** Client of Envoy's admin interface on its Unix socket. */
import { request } from 'node:http';
import type { Readable } from 'node:stream';
import { UnderpassError, errorMessage } from '../../common/errors.js';

export interface ServerInfo {
  version: string;
  state: 'LIVE' | 'DRAINING' | 'PRE_INITIALIZING' | 'INITIALIZING';
  node: { id: string; metadata?: { launch?: string }; extensions?: { name?: string; category?: string; disabled?: boolean; type_urls?: string[] }[] };
  command_line_options: Record<string, unknown>;
}

export interface ListenerAddress {
  name: string;
  /** `ip:port`; the same in every pod. */
  addresses: string[];
}

const DEFAULT_TIMEOUT_MS = 5_000;

class NoAnswer extends Error {}

/** Whether a question failed only since the answer took too long. */
export function isTimeout(error: unknown): boolean {
  return error instanceof UnderpassError && error.cause instanceof NoAnswer;
}

export class EnvoyAdmin {
  constructor(readonly socketPath: string, readonly timeoutMs = DEFAULT_TIMEOUT_MS) {}

  async serverInfo(signal?: AbortSignal): Promise<ServerInfo> {
    return JSON.parse(await this.get('/server_info', signal)) as ServerInfo;
  }

  /** Active listeners; a listener that still warms up (waits for its routes) is not among them. */
  async listeners(signal?: AbortSignal): Promise<ListenerAddress[]> {
    interface Socket { address?: { socket_address?: { address: string; port_value: number } } }
    interface Status { name: string; local_address?: Socket['address']; additional_local_addresses?: Socket['address'][] }
    const { listener_statuses: statuses = [] } = JSON.parse(await this.get('/listeners?format=json', signal)) as { listener_statuses?: Status[] };
    return statuses.map(({ name, local_address, additional_local_addresses = [] }) => ({
      name,
      addresses: [local_address, ...additional_local_addresses].map((address) => `${address?.socket_address?.address ?? ''}:${address?.socket_address?.port_value ?? 0}`),
    }));
  }

  /** Counters and gauges whose name matches `filter` (RE2). */
  async stats(filter: string, signal?: AbortSignal): Promise<Map<string, number>> {
    const body = await this.get(`/stats?format=json&type=All&filter=${encodeURIComponent(filter)}`, signal);
    const { stats } = JSON.parse(body) as { stats: { name?: string; value?: number }[] };
    return new Map(stats.filter((item) => item.name !== undefined).map((item) => [item.name as string, item.value ?? 0]));
  }

  /** Why the newest version of a listener was refused, if it was: all that Envoy says, with the message in text form first. */
  async refusal(listener: string, signal?: AbortSignal): Promise<string | undefined> {
    const name = listener.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
    const { configs = [] } = JSON.parse(await this.get(`/config_dump?resource=dynamic_listeners&name_regex=${encodeURIComponent(name)}`, signal)) as { configs?: { name?: string; error_state?: { details?: string; failed_configuration?: { name?: string } } }[] };
    return configs.find(({ name: of, error_state }) => error_state && [of, error_state.failed_configuration?.name].includes(listener))?.error_state?.details;
  }

  async configDump(signal?: AbortSignal): Promise<unknown> {
    return JSON.parse(await this.get('/config_dump?include_eds', signal));
  }

  async get(path: string, signal?: AbortSignal): Promise<string> {
    return this.#whole('GET', path, signal);
  }

  async post(path: string, signal?: AbortSignal): Promise<string> {
    return this.#whole('POST', path, signal);
  }

  /**
   * An answer that may be long, piece by piece.
   * @throws UnderpassError `UNDERPASS_ENVOY_ADMIN` also when it is longer than `maxBytes`, or `onText` throws
   */
  async read(path: string, onText: (text: string) => void, { maxBytes, signal }: { maxBytes: number; signal?: AbortSignal }): Promise<void> {
    const decoder = new TextDecoder();
    let size = 0;
    await this.#send('GET', path, signal, (chunk) => {
      size += chunk.length;
      if (size > maxBytes) throw new Error(`its answer is longer than ${maxBytes} bytes`);
      onText(decoder.decode(chunk, { stream: true }));
    });
  }

  /** An answer as it comes; whoever asks reads or destroys it. @throws UnderpassError `UNDERPASS_ENVOY_ADMIN` */
  stream(method: string, path: string): Promise<Readable> {
    const failed = (cause: unknown): UnderpassError => new UnderpassError('UNDERPASS_ENVOY_ADMIN', `asking Envoy's admin interface (${this.socketPath}) for ${path}: ${errorMessage(cause)}`, { cause });
    return new Promise((resolve, reject) => {
      const outgoing = request({ socketPath: this.socketPath, method, path, timeout: this.timeoutMs, agent: false }, (response) => {
        if (response.statusCode === 200) return resolve(response.setEncoding('utf8'));
        response.resume();
        reject(failed(new Error(`status ${response.statusCode}`)));
      });
      outgoing.on('timeout', () => outgoing.destroy(new NoAnswer(`no answer within ${this.timeoutMs} ms`)));
      outgoing.on('error', (error) => reject(failed(error)));
      outgoing.end();
    });
  }

  async #whole(method: string, path: string, signal?: AbortSignal): Promise<string> {
    const chunks: Buffer[] = [];
    await this.#send(method, path, signal, (chunk) => chunks.push(chunk));
    return Buffer.concat(chunks).toString('utf8');
  }

  #send(method: string, path: string, signal: AbortSignal | undefined, onChunk: (chunk: Buffer) => void): Promise<void> {
    const failed = (cause: unknown): UnderpassError =>
      new UnderpassError('UNDERPASS_ENVOY_ADMIN', `asking Envoy's admin interface (${this.socketPath}) for ${path}: ${errorMessage(cause)}`, { cause });
    return new Promise((resolve, reject) => {
      const outgoing = request(
        { socketPath: this.socketPath, method, path, timeout: this.timeoutMs, agent: false, ...(signal ? { signal } : {}) },
        (response) => {
          const refusal: Buffer[] = [];
          response.on('data', (chunk: Buffer) => {
            if (response.statusCode !== 200) return void refusal.push(chunk);
            try {
              onChunk(chunk);
            } catch (error) {
              outgoing.destroy();
              reject(failed(error));
            }
          });
          response.on('error', (error) => reject(failed(error)));
          response.on('end', () => {
            if (response.statusCode === 200) resolve();
            else reject(failed(new Error(`status ${response.statusCode}: ${Buffer.concat(refusal).toString('utf8').slice(0, 200)}`)));
          });
        },
      );
      outgoing.on('timeout', () => outgoing.destroy(new NoAnswer(`no answer within ${this.timeoutMs} ms`)));
      outgoing.on('error', (error) => reject(failed(error)));
      outgoing.end();
    });
  }
}
