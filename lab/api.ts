/** The lab's HTTP interface on a Unix socket that only root may use; common/lab-api.ts is its client. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { chmodSync, rmSync } from 'node:fs';
import { UnderpassError, errorMessage } from '../common/errors.js';
import type { CaMaterial } from '../common/identity/ca.js';
import type { ExecPlan, LabInfo, LabelPatch, PodRecord } from '../common/lab-api.js';
import type { Closable } from '../common/lifecycle.js';

const MAX_BODY_BYTES = 16 << 20;

export interface LabBackend {
  info(): LabInfo;
  /** Of the CA of sidecars and gateways, for a control plane that is to be the same. */
  caMaterial(): CaMaterial;
  records(node?: string): PodRecord[];
  onChange(listener: () => void): () => void;
  label(patch: LabelPatch): Promise<void>;
  apply(yaml: string): Promise<string[]>;
  execPlan(namespace: string, pod: string, container?: string): ExecPlan;
  /** Begins the end; the answer is sent before it. */
  requestDown(): void;
}

export class LabApi implements Closable {
  readonly #server: Server;

  private constructor(
    readonly backend: LabBackend,
    readonly socketPath: string,
  ) {
    this.#server = createServer((request, response) => {
      this.#handle(request, response).catch((error: unknown) => fail(response, error));
    });
  }

  static async listen(backend: LabBackend, socketPath: string): Promise<LabApi> {
    const api = new LabApi(backend, socketPath);
    rmSync(socketPath, { force: true });
    await new Promise<void>((resolve, reject) => {
      api.#server.once('error', reject);
      api.#server.listen(socketPath, resolve);
    });
    chmodSync(socketPath, 0o600);
    return api;
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', 'http://lab');
    const route = `${request.method} ${url.pathname}`;
    if (route === 'GET /v1/info') return send(response, this.backend.info());
    if (route === 'GET /v1/ca') return send(response, this.backend.caMaterial());
    if (route === 'GET /v1/pods') {
      const node = url.searchParams.get('node') ?? undefined;
      if (url.searchParams.has('watch')) return this.#watch(response, node);
      return send(response, { pods: this.backend.records(node) });
    }
    if (route === 'PATCH /v1/labels') {
      await this.backend.label(checkedPatch(await body(request)));
      return send(response, {});
    }
    if (route === 'POST /v1/apply') {
      const { yaml } = (await body(request)) as { yaml?: unknown };
      if (typeof yaml !== 'string') throw new UnderpassError('UNDERPASS_LAB_REQUEST', 'POST /v1/apply: yaml: expected a string');
      return send(response, { applied: await this.backend.apply(yaml) });
    }
    if (route === 'POST /v1/down') {
      send(response, {});
      return this.backend.requestDown();
    }
    const exec = /^GET \/v1\/namespaces\/([^/]+)\/pods\/([^/]+)\/exec$/.exec(route);
    if (exec?.[1] && exec[2]) {
      const container = url.searchParams.get('container') ?? undefined;
      return send(response, this.backend.execPlan(decodeURIComponent(exec[1]), decodeURIComponent(exec[2]), container));
    }
    throw new UnderpassError('UNDERPASS_LAB_NOT_FOUND', `${route}: the lab has no such path`);
  }

  #watch(response: ServerResponse, node: string | undefined): void {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    let last = '';
    let waiting = false;
    const push = (): void => {
      // A slow reader gets the newest state when it has read the one before, not a queue of all.
      if (waiting) return;
      const line = JSON.stringify({ pods: this.backend.records(node) }) + '\n';
      if (line === last) return;
      last = line;
      if (response.write(line)) return;
      waiting = true;
      response.once('drain', () => {
        waiting = false;
        push();
      });
    };
    const unsubscribe = this.backend.onChange(push);
    response.on('close', unsubscribe);
    push();
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
    rmSync(this.socketPath, { force: true });
  }
}

function send(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(JSON.stringify(value) + '\n');
}

function fail(response: ServerResponse, error: unknown): void {
  if (response.headersSent) return void response.destroy();
  const known = error instanceof UnderpassError;
  response.writeHead(!known ? 500 : error.code === 'UNDERPASS_LAB_NOT_FOUND' ? 404 : 400, { 'content-type': 'application/json' });
  response.end(
    JSON.stringify({
      code: known ? error.code : 'UNDERPASS_LAB_REQUEST',
      message: errorMessage(error),
      ...(known && error.hint ? { hint: error.hint } : {}),
    }) + '\n',
  );
}

async function body(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request) {
    size += (chunk as Buffer).length;
    if (size > MAX_BODY_BYTES)
      throw new UnderpassError(
        'UNDERPASS_LAB_REQUEST',
        `${request.method} ${request.url}: a body of more than ${MAX_BODY_BYTES} bytes`,
      );
    chunks.push(chunk as Buffer);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown;
  } catch (cause) {
    throw new UnderpassError('UNDERPASS_LAB_REQUEST', `${request.method} ${request.url}: ${errorMessage(cause)}`, { cause });
  }
}

// Kubernetes' rules for label keys and values (apimachinery, pkg/util/validation).
const LABEL_NAME = /^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;
const LABEL_PREFIX = /^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/;

function checkedPatch(value: unknown): LabelPatch {
  const wrong = (message: string): never => {
    throw new UnderpassError('UNDERPASS_LAB_LABEL', `setting labels: ${message}`);
  };
  const patch = value as LabelPatch | null;
  if (typeof patch !== 'object' || patch === null) return wrong('expected an object');
  if (patch.kind !== 'Namespace' && patch.kind !== 'Pod') wrong(`kind ${JSON.stringify(patch.kind)}: expected Namespace or Pod`);
  if (typeof patch.name !== 'string' || patch.name === '') wrong('name: expected a string');
  if (patch.labels === undefined && patch.annotations === undefined) wrong('labels: expected an object');
  if (patch.kind === 'Namespace' && patch.annotations !== undefined) wrong('annotations: only those of a pod can be set');
  for (const field of ['labels', 'annotations'] as const) {
    const values = patch[field];
    if (values === undefined) continue;
    if (typeof values !== 'object' || values === null) wrong(`${field}: expected an object`);
    for (const [key, text] of Object.entries(values)) {
      const [name, prefix, more] = key.split('/').reverse();
      if (more !== undefined || !LABEL_NAME.test(name ?? '') || (prefix !== undefined && !LABEL_PREFIX.test(prefix)))
        wrong(`${JSON.stringify(key)} is no ${field.slice(0, -1)} key: expected name or prefix/name`);
      if (text !== null && typeof text !== 'string') wrong(`${key}: ${JSON.stringify(text)}: expected a string, or null`);
      if (field === 'labels' && text && !LABEL_NAME.test(text))
        wrong(`${key}: ${JSON.stringify(text)} is no label value: expected at most 63 of A-Z, a-z, 0-9, -, _ and .`);
    }
  }
  return patch;
}
