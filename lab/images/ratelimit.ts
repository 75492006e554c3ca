/**
 * The `ratelimit` image (envoyproxy/ratelimit): Envoy's rate limit service over gRPC on 8081, health on 8080 and the limits on
 * 6070 over HTTP. Its configuration is every YAML file below RUNTIME_ROOT/RUNTIME_SUBDIRECTORY/config (default
 * /data/ratelimit/config), read again when a request comes and a file is newer.
 */
import { Server, ServerCredentials } from '@grpc/grpc-js';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { RateLimitResponse, RateLimitResponse_Code as Code, RateLimitResponse_RateLimit_Unit as Unit, RateLimitServiceService, type RateLimitServiceServer } from '../../proto/generated/envoy/service/ratelimit/v3/rls.js';
import { endOnSignal, listenHttp, sendJson, sendText, volumePath } from './http.js';
import { parseDomain, RateLimits } from './rate-limits.js';

const directory = volumePath(join(process.env['RUNTIME_ROOT'] ?? '/data', process.env['RUNTIME_SUBDIRECTORY'] ?? 'ratelimit', 'config'));
let stamp = '';
let limits = new RateLimits([]);

function current(): RateLimits {
  try {
    const files = readdirSync(directory).filter((name) => /\.ya?ml$/.test(name)).map((name) => join(directory, name));
    const newest = files.map((file) => `${file} ${statSync(file).mtimeMs}`).join();
    if (newest !== stamp) {
      limits = new RateLimits(files.map((file) => parseDomain(readFileSync(file, 'utf8'))));
      stamp = newest;
      process.stdout.write(`limits of ${limits.domains.map(({ domain }) => domain).join(', ') || 'no domain'}\n`);
    }
  } catch (error) {
    process.stderr.write(`${(error as Error).message}; the last good limits stay\n`);
  }
  return limits;
}

const implementation: RateLimitServiceServer = {
  shouldRateLimit(call, callback) {
    const { domain, descriptors, hits_addend: hits } = call.request;
    const verdicts = descriptors.map(({ entries }) => current().hit(domain, entries, hits || 1));
    const over = verdicts.some((verdict) => verdict.over);
    callback(null, RateLimitResponse.fromPartial({
      overall_code: over ? Code.OVER_LIMIT : Code.OK,
      statuses: verdicts.map((verdict) => ({
        code: verdict.over ? Code.OVER_LIMIT : Code.OK,
        limit_remaining: Math.min(verdict.remaining, 0xffff_ffff),
        ...(verdict.limit ? { current_limit: { requests_per_unit: verdict.limit.requestsPerUnit, unit: Unit[verdict.limit.unit as keyof typeof Unit] }, duration_until_reset: { seconds: verdict.resetSeconds, nanos: 0 } } : {}),
      })),
    }));
  },
};

const server = new Server();
server.addService(RateLimitServiceService, implementation);
server.bindAsync(`[::]:${process.env['GRPC_PORT'] ?? '8081'}`, ServerCredentials.createInsecure(), (error) => {
  if (!error) return;
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
listenHttp(Number(process.env['PORT'] ?? 8080), (_request, response) => sendText(response, 'OK'));
listenHttp(Number(process.env['DEBUG_PORT'] ?? 6070), (_request, response) => sendJson(response, current().domains));
current();
endOnSignal();
