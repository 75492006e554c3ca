/**
 * Istio's sample `ext-authz`: an external authorizer over HTTP (8000) and over Envoy's gRPC API (9000). A request with the
 * header `x-ext-authz: allow` may go on, any other is denied; both learn what was checked in headers.
 */
import { Server, ServerCredentials, status as grpcStatus } from '@grpc/grpc-js';
import { AuthorizationService, CheckResponse, type AuthorizationServer } from '../../proto/generated/envoy/service/auth/v3/external_auth.js';
import { endOnSignal, listenHttp, sendText } from './http.js';

const HEADER = 'x-ext-authz';
const RESULT = 'x-ext-authz-check-result';
const RECEIVED = 'x-ext-authz-check-received';
const OVERRIDE = 'x-ext-authz-additional-header-override';
const DENIED = 'denied by ext_authz for not found header `x-ext-authz: allow` in the request';
const DENIED_STATUS = 403;

const log = (protocol: string, allowed: boolean, what: string): void => void process.stdout.write(`[${protocol}][${allowed ? 'allowed' : 'denied'}]: ${what}\n`);

const implementation: AuthorizationServer = {
  check(call, callback) {
    const http = call.request.attributes?.request?.http;
    const headers = http?.headers ?? {};
    const allowed = headers[HEADER] === 'allow';
    const received = `${http?.method} ${http?.host}${http?.path}, attributes: source: ${call.request.attributes?.source?.principal ?? ''}`;
    log('gRPCv3', allowed, received);
    const told = [[RESULT, allowed ? 'allowed' : 'denied'], [OVERRIDE, headers[OVERRIDE] ?? ''], [RECEIVED, received]].map(([key, value]) => ({ header: { key: key as string, value: value as string } }));
    callback(null, CheckResponse.fromPartial({
      status: { code: allowed ? grpcStatus.OK : grpcStatus.PERMISSION_DENIED },
      http_response: allowed ? { $case: 'ok_response', value: { headers: told } } : { $case: 'denied_response', value: { status: { code: DENIED_STATUS }, body: DENIED, headers: told } },
    }));
  },
};

listenHttp(Number(process.env['HTTP_PORT'] ?? 8000), (request, response) => {
  const allowed = request.headers[HEADER] === 'allow';
  const received = `${request.method} ${request.headers.host}${request.url}`;
  log('HTTP', allowed, received);
  response.setHeader(RESULT, allowed ? 'allowed' : 'denied');
  response.setHeader(OVERRIDE, request.headers[OVERRIDE] ?? '');
  response.setHeader(RECEIVED, received);
  sendText(response, allowed ? '' : DENIED, allowed ? 200 : DENIED_STATUS);
});
const server = new Server();
server.addService(AuthorizationService, implementation);
server.bindAsync(`[::]:${process.env['GRPC_PORT'] ?? '9000'}`, ServerCredentials.createInsecure(), (error) => {
  if (!error) return;
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
endOnSignal();
