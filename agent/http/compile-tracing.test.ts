import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Tracing } from '../../proto/generated/envoy/config/route/v3/route_components.js';
import '../../proto/generated/envoy/extensions/filters/http/router/v3/router.js';
import { HttpConnectionManager } from '../../proto/generated/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.js';
import { tracedAs, tracedRoute, type Traced } from './compile-tracing.js';
import { OTEL, ZIPKIN } from './compile-testing.js';

const of = (tracing: object, more: object = {}): ReturnType<typeof tracedAs> => tracedAs(HttpConnectionManager.fromJSON({ tracing, ...more }));
const ids = (config: object): object => ({ request_id_extension: { typed_config: { '@type': 'type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig', ...config } } });

test('tracedAs: by Zipkin or OpenTelemetry, at the lower of two percentages, in ten-thousandths as Envoy rounds them', () => {
  assert.deepEqual(of({ provider: ZIPKIN, random_sampling: { value: 1 }, overall_sampling: { value: 100 }, client_sampling: { value: 100 } }), { kind: 'b3', sampled: 0.01 });
  assert.deepEqual(of({ provider: OTEL, random_sampling: { value: 20 }, overall_sampling: { value: 5 }, custom_tags: [{ tag: 'a', literal: { value: 'b' } }] }), { kind: 'w3c', sampled: 0.05 });
  assert.deepEqual(of({ provider: ZIPKIN, random_sampling: { value: 0.014 } }), { kind: 'b3', sampled: 0.0001 });
  assert.deepEqual(of({ provider: ZIPKIN, random_sampling: { value: 0.001 } }), { kind: 'b3', sampled: 0 });
  assert.deepEqual(of({ provider: ZIPKIN, random_sampling: {} }), { kind: 'b3', sampled: 0 });
  assert.deepEqual(of({ provider: ZIPKIN, random_sampling: { value: 1 } }, ids({ use_request_id_for_trace_sampling: true })), { kind: 'b3', sampled: 0.01 });
  // What is left out is 100 %.
  assert.deepEqual(of({ provider: ZIPKIN }), { kind: 'b3', sampled: 1 });
});

test('tracedAs: without a provider nothing is traced', () => {
  assert.equal(tracedAs(HttpConnectionManager.fromJSON({})), undefined);
  assert.equal(of({ random_sampling: { value: 1 } }), undefined);
});

test('tracedAs: what decides in another way is Envoy\'s, with a reason', () => {
  const reason = (tracing: object, more: object = {}): string => (of(tracing, more) as { reason: string }).reason;
  assert.match(reason({ provider: { name: 'envoy.tracers.datadog' } }), /traced by envoy.tracers.datadog/);
  assert.match(reason({ provider: { ...OTEL, typed_config: { ...OTEL.typed_config, sampler: { name: 'envoy.tracers.opentelemetry.samplers.always_on' } } } }), /sampler of its own/);
  assert.match(reason({ provider: ZIPKIN }, ids({ use_request_id_for_trace_sampling: false })), /all requests are traced/);
  assert.match(reason({ provider: ZIPKIN }, { request_id_extension: { typed_config: { '@type': 'type.googleapis.com/envoy.extensions.filters.http.router.v3.Router' } } }), /ids are made in a way of their own/);
  const manager = HttpConnectionManager.fromJSON({ tracing: { provider: ZIPKIN } });
  manager.tracing!._unknownFields = { [(11 << 3) | 0]: [new Uint8Array([1])] };
  assert.match((tracedAs(manager) as { reason: string }).reason, /settings of their own/);
});

test('tracedRoute: a route\'s own percentages take the place of the others, both being asked of one remainder of 10,000', () => {
  const traced: Traced = { kind: 'b3', sampled: 0.01 };
  const route = (settings: object): unknown => tracedRoute(traced, Tracing.fromJSON(settings));
  assert.deepEqual(tracedRoute(traced, undefined), { kind: 'b3', sampled: 0.01 });
  assert.deepEqual(route({ random_sampling: { numerator: 20 } }), { kind: 'b3', sampled: 0.2 });
  assert.deepEqual(route({ random_sampling: { numerator: 5, denominator: 'TEN_THOUSAND' }, custom_tags: [{ tag: 'a', literal: { value: 'b' } }] }), { kind: 'b3', sampled: 0.0005 });
  // A remainder is never more than 9,999.
  assert.deepEqual(route({ random_sampling: { numerator: 5_000, denominator: 'MILLION' } }), { kind: 'b3', sampled: 0.5 });
  assert.match((route({ random_sampling: { numerator: 10_000, denominator: 'MILLION' } }) as { reason: string }).reason, /all of its requests/);
  // 20 of each hundred, in the first 5,000.
  assert.deepEqual(route({ random_sampling: { numerator: 20 }, overall_sampling: { numerator: 5_000, denominator: 'TEN_THOUSAND' } }), { kind: 'b3', sampled: 0.1 });
  assert.match((route({}) as { reason: string }).reason, /all of its requests/);
  assert.match((tracedRoute({ kind: 'w3c', sampled: 1 }, undefined) as { reason: string }).reason, /all of its requests/);
  assert.deepEqual(tracedRoute({ kind: 'w3c', sampled: 1 }, Tracing.fromJSON({ random_sampling: {} })), { kind: 'w3c', sampled: 0 });
});
