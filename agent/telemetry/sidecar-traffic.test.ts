import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HTTP_BOUNDS } from './http-bounds.js';
import { SidecarTraffic, sidecarSeries, type SidecarPod } from './sidecar-traffic.js';

const LABELS = 'reporter="source",source_workload="client",source_workload_namespace="shop",destination_workload="web",destination_workload_namespace="other",destination_service_name="web",destination_service_namespace="other",request_protocol="http",connection_security_policy="unknown"';
const ANSWER = `# TYPE istio_requests_total counter
istio_requests_total{${LABELS},response_code="200",response_flags="-"} 9
istio_requests_total{${LABELS},response_code="503",response_flags="UF"} 2
istio_request_duration_milliseconds_bucket{${LABELS},response_code="200",response_flags="-",le="1"} 4
istio_request_duration_milliseconds_bucket{${LABELS},response_code="200",response_flags="-",le="3"} 8
istio_request_duration_milliseconds_bucket{${LABELS},response_code="200",response_flags="-",le="+Inf"} 9
istio_request_bytes_sum{${LABELS},response_code="200",response_flags="-"} 1.5e+3
istio_tcp_connections_opened_total{${LABELS.replace('request_protocol="http"', 'request_protocol="tcp"')},response_flags="-"} 3
istio_tcp_connections_closed_total{${LABELS.replace('request_protocol="http"', 'request_protocol="tcp"')},response_flags="UF,URX"} 1
istio_requests_total{${LABELS.replace('"shop"', '"elsewhere"')},response_code="200"} 1000
istio_requests_total{${LABELS.replace('"source"', '"nobody"')},response_code="200"} 1000
istio_requests_total{no labels at all} x
app_requests_total{reporter="source"} 7
`;

test('SidecarTraffic: what a sidecar counts of its own pod is read: requests, failures, bytes, durations in the agent\'s buckets, connections; of others nothing', async () => {
  const series = await sidecarSeries(ANSWER, 'shop');
  const of = (code: string): unknown => series.find(({ labels }) => labels['response_code'] === code)?.totals;
  const times = new Array<number>(HTTP_BOUNDS.length + 1).fill(0);
  times[HTTP_BOUNDS.indexOf(1)] = 4;
  times[HTTP_BOUNDS.indexOf(5)] = 4;
  times[HTTP_BOUNDS.length] = 1;
  assert.deepEqual([of('200'), of('503')], [{ count: 9, failed: 0, received: 1_500, sent: 0, times }, { count: 2, failed: 2, received: 0, sent: 0, times: [] }]);
  const tcp = series.filter(({ labels }) => labels['request_protocol'] === 'tcp').map(({ totals }) => totals);
  assert.deepEqual([tcp.reduce((sum, { count }) => sum + count, 0), tcp.reduce((sum, { failed }) => sum + failed, 0)], [3, 1]);
  assert.equal(series.length, 4);
  assert.ok(series.every(({ labels }) => labels['source_workload_namespace'] === 'shop'));
});

test('SidecarTraffic: a pod that says more than any sidecar has, or what is no number or label, costs no more than its limits', async () => {
  const many = Array.from({ length: 5_000 }, (_, index) => `istio_requests_total{${LABELS},response_code="${index}"} 1`).join('\n');
  assert.equal((await sidecarSeries(many, 'shop')).length, 2_000);
  const [long] = await sidecarSeries(`istio_requests_total{${LABELS},destination_canonical_service="${'x'.repeat(100_000)}\\""} 1`, 'shop');
  assert.equal(long?.labels['destination_canonical_service']?.length, 253);
});

test('SidecarTraffic: pods without a sidecar are not asked, one that does not answer holds up nobody, and what is gone is forgotten', async () => {
  const pod = (uid: string, hasSidecar = true): SidecarPod => ({ uid, namespace: 'shop', netns: `/run/netns/${uid}`, hasSidecar, phase: 'Running' });
  const asked: string[] = [];
  const traffic = new SidecarTraffic(() => [pod('a'), pod('b', false), pod('c'), { ...pod('d'), phase: 'Pending' }], (of) => {
    asked.push(of.uid);
    return of.uid === 'c' ? Promise.reject(new Error('ECONNREFUSED')) : Promise.resolve(ANSWER);
  });
  assert.equal((await traffic.series()).length, 4);
  assert.equal((await traffic.series()).length, 4);
  assert.deepEqual(asked, ['a', 'c'], 'within five seconds each is asked once');
});
