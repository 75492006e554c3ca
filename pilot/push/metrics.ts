/** What the push pipeline does, under istiod's names. */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { TYPE } from '../generate/resource.js';

const SHORT: Readonly<Record<string, string>> = {
  [TYPE.cluster]: 'cds',
  [TYPE.endpoint]: 'eds',
  [TYPE.listener]: 'lds',
  [TYPE.route]: 'rds',
  [TYPE.extensionConfig]: 'ecds',
  [TYPE.nameTable]: 'nds',
  [TYPE.address]: 'wds',
  [TYPE.authorization]: 'authz',
  [TYPE.secret]: 'sds',
};

/** istiod's word for a type: `cds`, `eds`, … */
export function shortType(typeUrl: string): string {
  return SHORT[typeUrl] ?? typeUrl.slice(typeUrl.lastIndexOf('.') + 1).toLowerCase();
}

/** istiod's words for what comes in. @param key `GROUP/KIND/NAMESPACE/NAME` */
export function inboundType(key: string, isGone: boolean): string {
  const [, kind = ''] = key.split('/');
  if (kind === 'Service') return isGone ? 'svcdelete' : 'svc';
  return ['EndpointSlice', 'Pod'].includes(kind) ? 'eds' : 'config';
}

const SECONDS = [0.01, 0.1, 0.25, 0.5, 1, 3, 5, 10, 20, 30];
const SIZES = [1_000, 10_000, 100_000, 1_000_000, 4_000_000, 10_000_000, 40_000_000];

export class PushMetrics {
  readonly registry = new Registry();
  readonly connections = new Gauge({ name: 'pilot_xds', help: 'Clients connected by xDS', labelNames: ['version'], registers: [this.registry] });
  readonly pushes = new Counter({ name: 'pilot_xds_pushes', help: 'Responses sent, by type', labelNames: ['type'], registers: [this.registry] });
  readonly rejects = new Counter({ name: 'pilot_total_xds_rejects', help: 'Responses that a client refused, by type', labelNames: ['type'], registers: [this.registry] });
  readonly expiredNonces = new Counter({ name: 'pilot_xds_expired_nonce', help: 'Requests with a nonce that a newer response has overtaken, by type', labelNames: ['type'], registers: [this.registry] });
  readonly refusedStreams = new Counter({ name: 'pilot_xds_refused_streams', help: 'Streams ended for going beyond their limits: no request in time, too many of one peer, too many names', labelNames: ['reason'], registers: [this.registry] });
  readonly refusedHealthReports = new Counter({ name: 'pilot_hds_refused_reports', help: "Health reports about another node's endpoints than the reporter's", registers: [this.registry] });
  readonly internalErrors = new Counter({ name: 'pilot_total_xds_internal_errors', help: 'Streams ended by an error of this control plane', registers: [this.registry] });
  readonly triggers = new Counter({ name: 'pilot_push_triggers', help: 'What made a push necessary', labelNames: ['type'], registers: [this.registry] });
  readonly inboundUpdates = new Counter({ name: 'pilot_inbound_updates', help: 'Changes that came in, by kind', labelNames: ['type'], registers: [this.registry] });
  readonly configSize = new Histogram({ name: 'pilot_xds_config_size_bytes', help: 'Bytes of a response, by type', labelNames: ['type'], buckets: SIZES, registers: [this.registry] });
  readonly pushTime = new Histogram({ name: 'pilot_xds_push_time', help: 'Seconds that making and handing over one response took, by type', labelNames: ['type'], buckets: [0.001, ...SECONDS], registers: [this.registry] });
  readonly queueTime = new Histogram({ name: 'pilot_proxy_queue_time', help: 'Seconds that a client waited in the push queue', buckets: SECONDS, registers: [this.registry] });
  readonly convergence = new Histogram({ name: 'pilot_proxy_convergence_time', help: 'Seconds from a change to the acknowledgement of all that it altered for a client', buckets: SECONDS, registers: [this.registry] });
  readonly debounce = new Histogram({ name: 'pilot_debounce_time', help: 'Seconds from the first change of a burst to its push', buckets: SECONDS, registers: [this.registry] });
  readonly services = new Gauge({ name: 'pilot_services', help: 'Services in the mesh', registers: [this.registry] });
  readonly virtualServices = new Gauge({ name: 'pilot_virt_services', help: 'VirtualServices in force', registers: [this.registry] });
  readonly info = new Gauge({ name: 'pilot_info', help: 'Version of this control plane', labelNames: ['version'], registers: [this.registry] });
}
