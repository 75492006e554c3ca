/**
 * How many lines of access logs the shared Envoy writes in a second, of all its pods together: one pod's log is not to take the
 * disk, or the time, of all. Envoy's own token bucket for this is configured by a file, which it reads again when it is replaced.
 */
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AccessLogFilter, type AccessLog } from '../../proto/generated/envoy/config/accesslog/v3/accesslog.js';
import { ApiVersion } from '../../proto/generated/envoy/config/core/v3/config_source.js';
import { ProcessRateLimitFilter } from '../../proto/generated/envoy/extensions/access_loggers/filters/process_ratelimit/v3/process_ratelimit.js';
import { both } from '../../common/telemetry/stats-logger.js';
import { pack } from '../../common/xds/any.js';
import type { EnvoyExtensions } from './extensions.js';

export const DEFAULT_ACCESS_LOG_RATE = 10_000;
const EXTENSION = 'envoy.access_loggers.extension_filters.process_ratelimit';
const BUCKET = 'underpass.access-log';

export const logBoundPath = (runDir: string): string => join(runDir, 'access-log-bound.json');

/** @param rate lines a second; a burst may have as many at once */
export function writeLogBound(runDir: string, rate = DEFAULT_ACCESS_LOG_RATE): void {
  const resource = { '@type': 'type.googleapis.com/envoy.type.v3.TokenBucket', max_tokens: rate, tokens_per_fill: rate, fill_interval: '1s' };
  const response = { version_info: String(rate), resources: [{ '@type': 'type.googleapis.com/envoy.service.discovery.v3.Resource', name: BUCKET, version: String(rate), resource }] };
  const path = logBoundPath(runDir);
  writeFileSync(`${path}.part`, JSON.stringify(response), { mode: 0o600 });
  renameSync(`${path}.part`, path);
}

/** The logger with lines that count against the bound, those that its own filter takes. */
export function bounded(log: AccessLog, extensions: EnvoyExtensions): AccessLog {
  if (extensions.logBound === undefined || !extensions.hasName(EXTENSION)) return log;
  const config = ProcessRateLimitFilter.fromPartial({ dynamic_config: { resource_name: BUCKET, config_source: { config_source_specifier: { $case: 'path_config_source', value: { path: extensions.logBound } }, resource_api_version: ApiVersion.V3 } } });
  const rate = AccessLogFilter.fromPartial({ filter_specifier: { $case: 'extension_filter', value: { name: EXTENSION, config_type: { $case: 'typed_config', value: pack(ProcessRateLimitFilter, config) } } } });
  return { ...log, filter: both(...(log.filter ? [log.filter] : []), rate) };
}
