/** What the shared Envoy tells the agent of requests and connections while somebody listens; see access-logs.ts. */
import { status, type sendUnaryData, type Server, type ServerUnaryCall } from '@grpc/grpc-js';
import { LogsServiceService, type ExportLogsServiceRequest, type ExportLogsServiceResponse } from '../../proto/generated/opentelemetry/proto/collector/logs/v1/logs_service.js';
import type { AccessLogKey } from '../../common/telemetry/access-log-format.js';
import { FLOWS_RUNTIME_KEY, type OwnKey } from './access-logs.js';
import type { EnvoyAdmin } from './envoy-admin.js';

/** As Envoy writes them; `-` and '' are what it does not know. */
export type EnvoyFlow = Partial<Record<AccessLogKey | OwnKey, string>>;

/** A new Envoy, or one that is adopted, starts with whatever it starts with: it is told again as often as this. */
const TELL_AGAIN_MS = 5_000;
const DROPPED = 'access_logs\\.open_telemetry_access_log\\.underpass_flows.*logs_dropped';

export class EnvoyFlowLogs {
  readonly #admin: () => EnvoyAdmin;
  #onFlow: ((flow: EnvoyFlow) => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #toldOff = 0;

  constructor(admin: () => EnvoyAdmin) {
    this.#admin = admin;
  }

  addTo(server: Server): void {
    server.addService(LogsServiceService, {
      export: ({ request }: ServerUnaryCall<ExportLogsServiceRequest, ExportLogsServiceResponse>, callback: sendUnaryData<ExportLogsServiceResponse>) => {
        try {
          this.#receive(request);
          callback(null, { _unknownFields: {} });
        } catch (error) {
          callback({ code: status.INTERNAL, details: String(error) });
        }
      },
    });
  }

  /** Until it is called with undefined Envoy sends. */
  listen(onFlow: ((flow: EnvoyFlow) => void) | undefined): void {
    this.#onFlow = onFlow;
    clearInterval(this.#timer);
    this.#timer = undefined;
    void this.#tell();
    if (onFlow) this.#timer = setInterval(() => void this.#tell(), TELL_AGAIN_MS).unref();
  }

  /** What Envoy could not send, since it began; undefined: it does not say. */
  async dropped(): Promise<number | undefined> {
    try {
      const found = await this.#admin().stats(DROPPED);
      return [...found.values()].reduce((sum, value) => sum + value, 0);
    } catch {
      return undefined;
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #receive({ resource_logs }: ExportLogsServiceRequest): void {
    const onFlow = this.#onFlow;
    if (!onFlow) {
      // An agent before this one asked for it.
      const now = performance.now();
      if (now - this.#toldOff > TELL_AGAIN_MS) {
        this.#toldOff = now;
        void this.#tell();
      }
      return;
    }
    for (const { attributes } of resource_logs.flatMap(({ scope_logs }) => scope_logs).flatMap(({ log_records }) => log_records)) {
      const flow: Record<string, string> = {};
      for (const { key, value } of attributes) if (value?.value?.$case === 'string_value') flow[key] = value.value.value;
      onFlow(flow);
    }
  }

  async #tell(): Promise<void> {
    // Without an Envoy, or where an older one has no such layer, there is nothing to be had from it.
    await this.#admin().post(`/runtime_modify?${FLOWS_RUNTIME_KEY}=${this.#onFlow ? 100 : 0}`).catch(() => undefined);
  }
}
