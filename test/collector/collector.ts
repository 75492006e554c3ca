/**
 * A collector of spans and log lines, as a program of a pod: Zipkin's API on 9411 (JSON), OTLP by gRPC on 4317 and by HTTP on 4318
 * (protobuf), Envoy's access log service on 9001. What it got is asked for on 9000: GET /spans and /logs; DELETE forgets; PUT
 * /answer?as=ok|refused|never says how reports are answered.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { Server, ServerCredentials, status, type sendUnaryData, type ServerReadableStream, type ServerUnaryCall } from '@grpc/grpc-js';
import { LogsServiceService, type ExportLogsServiceRequest, type ExportLogsServiceResponse } from '../../proto/generated/opentelemetry/proto/collector/logs/v1/logs_service.js';
import { ExportTraceServiceRequest, TraceServiceService, type ExportTraceServiceResponse } from '../../proto/generated/opentelemetry/proto/collector/trace/v1/trace_service.js';
import type { AnyValue, KeyValue } from '../../proto/generated/opentelemetry/proto/common/v1/common.js';
import { Span_SpanKind } from '../../proto/generated/opentelemetry/proto/trace/v1/trace.js';
import { HTTPAccessLogEntry, TCPAccessLogEntry } from '../../proto/generated/envoy/data/accesslog/v3/accesslog.js';
import { AccessLogServiceService, type StreamAccessLogsMessage, type StreamAccessLogsResponse } from '../../proto/generated/envoy/service/accesslog/v3/als.js';

export interface CollectedSpan {
  by: 'zipkin' | 'otlp-grpc' | 'otlp-http';
  service: string;
  traceId: string;
  id: string;
  parentId: string;
  name: string;
  kind: string;
  tags: Record<string, string>;
}

export interface CollectedLog {
  by: 'otlp' | 'als';
  name: string;
  text: string;
  fields: Record<string, unknown>;
}

type Answers = 'ok' | 'refused' | 'never';

interface ZipkinSpan {
  traceId: string;
  id: string;
  parentId?: string;
  name?: string;
  kind?: string;
  localEndpoint?: { serviceName?: string };
  tags?: Record<string, string>;
}

const spans: CollectedSpan[] = [];
const logs: CollectedLog[] = [];
let answers: Answers = 'ok';

const text = (value: AnyValue | undefined): string => (value?.value?.$case === 'string_value' ? value.value.value : String(value?.value?.value ?? ''));
const table = (values: readonly KeyValue[]): Record<string, string> => Object.fromEntries(values.map(({ key, value }) => [key, text(value)]));
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

function takeOtlp(by: CollectedSpan['by'], { resource_spans }: ExportTraceServiceRequest): void {
  for (const { resource, scope_spans } of resource_spans) {
    const service = table(resource?.attributes ?? [])['service.name'] ?? '';
    for (const span of scope_spans.flatMap((scope) => scope.spans)) {
      const kind = span.kind === Span_SpanKind.SPAN_KIND_CLIENT ? 'CLIENT' : span.kind === Span_SpanKind.SPAN_KIND_SERVER ? 'SERVER' : String(span.kind);
      spans.push({ by, service, traceId: hex(span.trace_id), id: hex(span.span_id), parentId: hex(span.parent_span_id), name: span.name, kind, tags: table(span.attributes) });
    }
  }
}

function takeZipkin(body: Buffer): void {
  for (const { traceId, id, parentId = '', name = '', kind = '', localEndpoint, tags = {} } of JSON.parse(body.toString('utf8')) as ZipkinSpan[]) {
    spans.push({ by: 'zipkin', service: localEndpoint?.serviceName ?? '', traceId, id, parentId, name, kind, tags });
  }
}

function http(port: number, take: (request: IncomingMessage, body: Buffer, response: ServerResponse) => void): void {
  createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk)).on('end', () => take(request, Buffer.concat(chunks), response));
  }).listen(port, '::');
}

/** @param good the status that the protocol has for what was taken */
function reports(port: number, good: number, take: (body: Buffer) => void): void {
  http(port, (_, body, response) => {
    if (answers === 'never') return;
    if (answers === 'ok') take(body);
    response.writeHead(answers === 'ok' ? good : 503).end();
  });
}

function unary<Q, A>(take: (request: Q) => void): (call: ServerUnaryCall<Q, A>, callback: sendUnaryData<A>) => void {
  return ({ request }, callback) => {
    if (answers === 'never') return;
    if (answers === 'refused') return callback({ code: status.UNAVAILABLE });
    take(request);
    callback(null, { _unknownFields: {} } as A);
  };
}

function grpc(port: number, add: (server: Server) => void): void {
  const server = new Server();
  add(server);
  server.bindAsync(`[::]:${port}`, ServerCredentials.createInsecure(), (error) => {
    if (error) throw error;
  });
}

reports(9411, 202, takeZipkin);
reports(4318, 200, (body) => takeOtlp('otlp-http', ExportTraceServiceRequest.decode(body)));
grpc(4317, (server) => {
  server.addService(TraceServiceService, { export: unary<ExportTraceServiceRequest, ExportTraceServiceResponse>((request) => takeOtlp('otlp-grpc', request)) });
  server.addService(LogsServiceService, { export: unary<ExportLogsServiceRequest, ExportLogsServiceResponse>(({ resource_logs }) => {
    for (const { resource, scope_logs } of resource_logs) {
      for (const { body, attributes } of scope_logs.flatMap(({ log_records }) => log_records)) logs.push({ by: 'otlp', name: table(resource?.attributes ?? [])['log_name'] ?? '', text: text(body), fields: table(attributes) });
    }
  }) });
});
grpc(9001, (server) => server.addService(AccessLogServiceService, {
  streamAccessLogs: (call: ServerReadableStream<StreamAccessLogsMessage, StreamAccessLogsResponse>) => {
    let name = '';
    call.on('data', (message: StreamAccessLogsMessage) => {
      name = message.identifier?.log_name ?? name;
      const { log_entries: entries } = message;
      const all = entries?.$case === 'http_logs' ? entries.value.log_entry.map((entry) => HTTPAccessLogEntry.toJSON(entry)) : (entries?.value.log_entry ?? []).map((entry) => TCPAccessLogEntry.toJSON(entry));
      for (const fields of all) logs.push({ by: 'als', name, text: '', fields: fields as Record<string, unknown> });
    }).on('error', () => undefined);
  },
}));
http(9000, ({ method, url = '' }, _, response) => {
  const { pathname, searchParams } = new URL(url, 'http://collector');
  if (method === 'DELETE') for (const all of [spans, logs]) all.length = 0;
  if (method === 'PUT') answers = searchParams.get('as') as Answers;
  response.end(JSON.stringify(method === 'GET' ? (pathname === '/logs' ? logs : spans) : {}));
});
