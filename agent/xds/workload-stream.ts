/** The node's WDS stream: workloads, services and L4 authorization, as ztunnel gets them. */
import { Node } from '../../proto/generated/envoy/config/core/v3/base.js';
import type { Authorization } from '../../proto/generated/istio/security/authorization.js';
import type { Address } from '../../proto/generated/istio/workload/workload.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import type { Backoff } from '../../common/retry.js';
import type { StreamOpener } from './channel.js';
import { DeltaAdsStream, type Change, type StreamStatus } from './delta-stream.js';
import { AddressType, AuthorizationType } from './resource-types.js';
import type { XdsResource } from './resource-type.js';

const addressType = new AddressType();
const authorizationType = new AuthorizationType();

export interface WorkloadStreamOptions {
  channel: StreamOpener;
  nodeName: string;
  /** The node's own address, for the node id; istiod needs one that parses. */
  nodeAddress: string;
  /** As which account the control plane knows the agent, where it asks; default that of a ztunnel beside istiod. */
  account?: { namespace: string; serviceAccount: string };
  clusterId?: string;
  logger: Logger;
  onChange?: (change: Change) => void;
  backoff?: Backoff;
}

export class WorkloadStream implements Closable {
  readonly #stream: DeltaAdsStream;
  #revision = 0;

  constructor(options: WorkloadStreamOptions) {
    const { nodeName, nodeAddress, account = { namespace: 'istio-system', serviceAccount: 'underpass' }, clusterId = 'Kubernetes' } = options;
    const { namespace, serviceAccount } = account;
    this.#stream = new DeltaAdsStream({
      channel: options.channel,
      node: Node.fromPartial({
        id: `ztunnel~${nodeAddress}~underpass-${nodeName}.${namespace}~${namespace}.svc.cluster.local`,
        metadata: { NAMESPACE: namespace, NAME: `underpass-${nodeName}`, NODE_NAME: nodeName, CLUSTER_ID: clusterId, SERVICE_ACCOUNT: serviceAccount },
      }),
      types: [addressType, authorizationType],
      onChange: (change) => {
        this.#revision++;
        options.onChange?.(change);
      },
      logger: options.logger,
      ...(options.backoff ? { backoff: options.backoff } : {}),
    });
  }

  /** By resource name: a workload's uid, or `<namespace>/<hostname>` of a service. */
  get addresses(): ReadonlyMap<string, XdsResource<Address>> {
    return this.#stream.state(addressType).resources;
  }

  get authorizations(): ReadonlyMap<string, XdsResource<Authorization>> {
    return this.#stream.state(authorizationType).resources;
  }

  /** Grows with every change. */
  get revision(): number {
    return this.#revision;
  }

  /** Policies whose newest version was refused, and why; `authorizations` has the last good one. */
  get rejectedAuthorizations(): ReadonlyMap<string, string> {
    return this.#stream.state(authorizationType).rejected;
  }

  get synced(): boolean {
    return this.#stream.state(addressType).answered && this.#stream.state(authorizationType).answered;
  }

  get status(): Readonly<StreamStatus> {
    return this.#stream.status;
  }

  start(): void {
    this.#stream.start();
  }

  close(): void {
    this.#stream.close();
  }
}
