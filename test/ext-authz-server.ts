/**
 * An external authorization server as Envoy asks one, by HTTP on port 8000 and by gRPC on port 9000, in a pod of the lab:
 * requests with `x-ext-authz: allow`, and connections of the identities in PRINCIPALS, pass.
 */
import { Server, ServerCredentials, status } from '@grpc/grpc-js';
import { createServer } from 'node:http';
import { AuthorizationService, CheckResponse, type AuthorizationServer } from '../proto/generated/envoy/service/auth/v3/external_auth.js';

const http = createServer((request, response) => {
  const allowed = request.headers['x-ext-authz'] === 'allow';
  response.writeHead(allowed ? 200 : 403, { 'x-ext-authz-result': allowed ? 'allowed' : 'denied', 'x-ext-authz-path': request.url });
  response.end(allowed ? '' : 'denied by ext_authz');
});
http.listen(8_000);

const check: AuthorizationServer['check'] = ({ request }, callback) => {
  const { request: asked, source } = request.attributes ?? {};
  const headers = asked?.http?.headers;
  const allowed = headers ? headers['x-ext-authz'] === 'allow' : (process.env['PRINCIPALS'] ?? '').split(',').includes(source?.principal ?? '');
  const result = [{ header: { key: 'x-ext-authz-result', value: allowed ? 'allowed' : 'denied' } }];
  callback(
    null,
    CheckResponse.fromPartial({
      status: { code: allowed ? status.OK : status.PERMISSION_DENIED },
      http_response: allowed ? { $case: 'ok_response', value: { headers: result } } : { $case: 'denied_response', value: { status: { code: 403 }, headers: result, body: 'denied by ext_authz' } },
    }),
  );
};
const grpc = new Server();
grpc.addService(AuthorizationService, { check });
grpc.bindAsync('0.0.0.0:9000', ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
});
