/**
 * Parts of messages that are equal in very many of them, and that every decoder makes anew: of fifty thousand workloads most
 * names, and all that a workload says of its services, are those of thousands of others. What is equal becomes one object.
 */
import type { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import { Address as AddressCodec } from '../../proto/generated/istio/workload/workload.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import type { MessageCodec } from './resource-type.js';

/** Beyond it the table begins anew: what is equal later is then held twice, and nothing else happens. */
const MOST_PARTS = 50_000;

/** Values by what tells them apart. */
class Shared<V> {
  readonly #known = new Map<string, V>();

  get(key: string, value: V): V {
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    if (this.#known.size >= MOST_PARTS) this.#known.clear();
    this.#known.set(key, value);
    return value;
  }
}

const strings = new Shared<string>();
const services = new Shared<Workload['services']>();
const localities = new Shared<NonNullable<Workload['locality']>>();
const NOTHING: never[] = [];

/** Fields of a workload that are rarely its own. */
const COMMON_NAMES = ['namespace', 'network', 'trust_domain', 'service_account', 'node', 'canonical_name', 'canonical_revision', 'workload_name', 'cluster_id'] as const satisfies readonly (keyof Workload)[];

export const SharedAddress: MessageCodec<Address> = {
  $type: AddressCodec.$type,
  encode: (message, writer) => AddressCodec.encode(message, writer),
  decode(input) {
    const address = AddressCodec.decode(input);
    if (address.type?.$case === 'workload') share(address.type.value);
    return address;
  },
};

function share(workload: Workload): void {
  for (const name of COMMON_NAMES) workload[name] = strings.get(workload[name], workload[name]);
  workload.services = services.get(JSON.stringify(workload.services), workload.services);
  const { locality } = workload;
  if (locality) workload.locality = localities.get(JSON.stringify(locality), locality);
  if (workload.extensions.length === 0) workload.extensions = NOTHING;
  if (workload.authorization_policies.length === 0) workload.authorization_policies = NOTHING;
}

type EndpointMetadata = NonNullable<ClusterLoadAssignment['endpoints'][number]['lb_endpoints'][number]['metadata']>;
const metadatas = new Shared<EndpointMetadata>();

export const SharedEndpoints: MessageCodec<ClusterLoadAssignment> = {
  $type: ClusterLoadAssignment.$type,
  encode: (message, writer) => ClusterLoadAssignment.encode(message, writer),
  decode(input) {
    const assignment = ClusterLoadAssignment.decode(input);
    for (const { lb_endpoints } of assignment.endpoints) {
      for (const endpoint of lb_endpoints) {
        const { metadata } = endpoint;
        // Any's bytes are not told apart here, and have no place in Istio's.
        if (metadata && Object.keys(metadata.typed_filter_metadata).length === 0) endpoint.metadata = metadatas.get(JSON.stringify(metadata.filter_metadata), metadata);
      }
    }
    return assignment;
  },
};
