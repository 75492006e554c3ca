/** What the webhooks did, under istiod's names. */
import { Counter, Gauge, type Registry } from 'prom-client';

export class WebhookMetrics {
  readonly requests: Counter;
  readonly success: Counter;
  readonly failure: Counter;
  readonly skip: Counter;
  readonly passed: Counter<'group' | 'resource'>;
  readonly failed: Counter<'group' | 'resource' | 'reason'>;
  readonly deviations: Gauge<'configuration' | 'webhook' | 'field'>;

  constructor(registry: Registry) {
    const registers = [registry];
    this.requests = new Counter({ name: 'sidecar_injection_requests_total', help: 'Pods that the injector was asked about', registers });
    this.success = new Counter({ name: 'sidecar_injection_success_total', help: 'Pods that got a proxy', registers });
    this.failure = new Counter({ name: 'sidecar_injection_failure_total', help: 'Pods that were refused', registers });
    this.skip = new Counter({ name: 'sidecar_injection_skip_total', help: 'Pods that were left alone', registers });
    this.deviations = new Gauge({ name: 'underpass_pilot_webhook_deviations', help: "1 for each field of the webhooks' configurations that is another than what belongs to this pilot and is left so; told by the one that writes", labelNames: ['configuration', 'webhook', 'field'], registers });
    this.passed = new Counter({ name: 'galley_validation_passed', help: 'Objects found valid', labelNames: ['group', 'resource'], registers });
    this.failed = new Counter({ name: 'galley_validation_failed', help: 'Objects refused', labelNames: ['group', 'resource', 'reason'], registers });
  }
}
