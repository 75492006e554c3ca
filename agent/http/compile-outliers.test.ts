/** Which outlier detection is the kernel's, and up to how many ejected endpoints its draw is Envoy's. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Cluster, Cluster_CommonLbConfig } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { OutlierDetection } from '../../proto/generated/envoy/config/cluster/v3/outlier_detection.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { drawOf } from './compile-cluster.js';
import { ejectionBounds, outlierSettings, type OutlierSettings, type Population } from './compile-outliers.js';

/** As Istio writes it: the rate of success is not enforced. */
const istio = (settings: object): OutlierDetection => OutlierDetection.fromJSON({ enforcing_success_rate: 0, ...settings });
const DEFAULTS: OutlierSettings = { consecutive5xx: 5, consecutiveGatewayFailure: 0, intervalMs: 10_000, baseEjectionMs: 30_000, maxEjectionMs: 300_000, maxEjectionPercent: 10, alwaysEjectOneHost: false };

describe('outlierSettings', () => {
  it('has Envoy\'s defaults for what is not said', () => {
    assert.equal(outlierSettings(undefined), undefined);
    assert.deepEqual(outlierSettings(istio({})), DEFAULTS);
    assert.deepEqual(outlierSettings(istio({ base_ejection_time: { seconds: '600' } })), { ...DEFAULTS, baseEjectionMs: 600_000, maxEjectionMs: 600_000 }, 'the longest time is no shorter than the base');
  });

  it('reads what Istio sets', () => {
    const all = istio({ consecutive_5xx: 7, enforcing_consecutive_5xx: 100, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100, interval: { seconds: '1', nanos: 500_000_000 }, base_ejection_time: { seconds: '3' }, max_ejection_percent: 100 });
    assert.deepEqual(outlierSettings(all), { ...DEFAULTS, consecutive5xx: 7, consecutiveGatewayFailure: 2, intervalMs: 1_500, baseEjectionMs: 3_000, maxEjectionPercent: 100 });
    assert.deepEqual(outlierSettings(istio({ consecutive_5xx: 0, enforcing_consecutive_5xx: 0, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100 })), { ...DEFAULTS, consecutive5xx: 0, consecutiveGatewayFailure: 2 });
    assert.equal(outlierSettings(istio({ consecutive_5xx: 0, enforcing_consecutive_5xx: 0 })), undefined, 'nobody is ever ejected');
  });

  const envoys: [object, RegExp][] = [
    [{ enforcing_success_rate: 100 }, /rate of success/], [{ enforcing_failure_percentage: 1 }, /share of failures/], [{ split_external_local_origin_errors: true }, /apart from 5xx/],
    [{ enforcing_consecutive_5xx: 50 }, /by chance/], [{ enforcing_consecutive_gateway_failure: 1 }, /by chance/], [{ max_ejection_time_jitter: { seconds: '1' } }, /drawn/], [{ monitors: [{ name: 'own' }] }, /extension/],
  ];
  for (const [settings, reason] of envoys) it(`is Envoy's with ${JSON.stringify(settings)}, with a reason`, () => assert.match(String(outlierSettings(istio(settings))), reason));
});

describe('ejectionBounds', () => {
  const of = (changes: Partial<Population>, panic?: number): { spare: number; panic: number } => ejectionBounds({ hosts: 10, ofPriority: 10, healthy: 10, hasPriorities: false, hasShares: false, overprovisioning: 140, ...changes }, panic === undefined ? undefined : Cluster_CommonLbConfig.fromPartial({ healthy_panic_threshold: { value: panic } }));

  it('all but one may be out without a panic threshold, which is Istio\'s default', () => assert.deepEqual(of({}, 0), { spare: 9, panic: Infinity }));
  it('below the panic threshold all are drawn: Envoy\'s own is 50 %', () => {
    assert.deepEqual(of({}), { spare: 5, panic: 6 });
    assert.deepEqual(of({ ofPriority: 2, healthy: 2 }, 60), { spare: 0, panic: 1 });
  });
  it('no panic while 1.4 times the healthy ones are enough', () => assert.deepEqual(of({}, 90), { spare: 2, panic: 3 }));
  it('other priorities take a part as soon as those of the first are not enough, and that is Envoy\'s', () => {
    assert.deepEqual(of({ hasPriorities: true }, 0), { spare: 2, panic: Infinity });
    assert.deepEqual(of({ hasPriorities: true, ofPriority: 2, healthy: 2 }, 0), { spare: 0, panic: Infinity });
  });
  it('shares of localities hold only while nobody is out', () => assert.deepEqual(of({ hasShares: true }, 0), { spare: 0, panic: Infinity }));
  it('in panic those are drawn too that the control plane knows to be unhealthy: Envoy\'s', () => assert.deepEqual(of({ healthy: 8 }, 50), { spare: 3, panic: Infinity }));
});

describe('drawOf', () => {
  const endpoint = (last: number): object => ({ endpoint: { address: { socket_address: { address: `10.0.0.${last}`, port_value: 80 } } } });
  const assignment = ClusterLoadAssignment.fromJSON({ endpoints: [{ lb_endpoints: [endpoint(1), endpoint(2), endpoint(3)] }, { priority: 1, lb_endpoints: [endpoint(4)] }] });

  it('counts the endpoints of all priorities for how many may be out, and draws from the first', () => {
    const cluster = Cluster.fromJSON({ name: 'web', type: 'EDS', common_lb_config: { healthy_panic_threshold: {} }, outlier_detection: { enforcing_success_rate: 0, max_ejection_percent: 50 } });
    const draw = drawOf({ cluster, assignment });
    assert.ok(!('reason' in draw), JSON.stringify(draw));
    assert.deepEqual([draw.outlierDetection, draw.endpoints.length], [{ ...DEFAULTS, maxEjectionPercent: 50, hosts: 4, spare: 0, panic: Infinity }, 3]);
  });

  it('has no detection where nobody is ever ejected, and gives the reason of what is Envoy\'s', () => {
    const of = (outliers: object): object => drawOf({ cluster: Cluster.fromJSON({ name: 'web', type: 'EDS', outlier_detection: outliers }), assignment });
    assert.equal('outlierDetection' in of({ enforcing_success_rate: 0, enforcing_consecutive_5xx: 0 }), false);
    assert.match(JSON.stringify(of({})), /rate of success/);
  });
});
