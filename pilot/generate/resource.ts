/** One xDS resource, encoded once and sent to all who watch it. */
import { Memo } from '../../common/memo.js';
import { pack, typeUrl, type Codec } from '../../common/xds/any.js';
import { contentVersion } from '../../common/xds/content-version.js';
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { TypedExtensionConfig } from '../../proto/generated/envoy/config/core/v3/extension.js';
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import { Cluster } from '../../proto/generated/envoy/config/cluster/v3/cluster.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Listener } from '../../proto/generated/envoy/config/listener/v3/listener.js';
import { RouteConfiguration } from '../../proto/generated/envoy/config/route/v3/route.js';
import { NameTable } from '../../proto/generated/istio/networking/nds/nds.js';
import { Authorization } from '../../proto/generated/istio/security/authorization.js';
import { Address } from '../../proto/generated/istio/workload/workload.js';

export interface Resource {
  readonly name: string;
  /** Hash of the content: equal content has an equal version, whoever generated it and when. */
  version: string;
  readonly body: Any;
  /** The body's bytes one after the other, where many resources have most of them in common and `body` is put together when it is asked for. */
  readonly parts?: readonly Uint8Array[];
  /** The body's type, of a resource in parts. */
  readonly typeUrl?: string;
}

export const TYPE = {
  cluster: typeUrl(Cluster),
  endpoint: typeUrl(ClusterLoadAssignment),
  listener: typeUrl(Listener),
  route: typeUrl(RouteConfiguration),
  address: typeUrl(Address),
  authorization: typeUrl(Authorization),
  extensionConfig: typeUrl(TypedExtensionConfig),
  secret: typeUrl(Secret),
  nameTable: typeUrl(NameTable),
} as const;

/** Clusters before what names them, routes last: a client never holds a reference to what it has not got. */
export const PUSH_ORDER: readonly string[] = [TYPE.secret, TYPE.cluster, TYPE.endpoint, TYPE.listener, TYPE.route, TYPE.extensionConfig, TYPE.nameTable, TYPE.address, TYPE.authorization];

type Encoder<T> = Pick<Codec<T>, '$type' | 'encode'>;

export function makeResource<T>(name: string, codec: Encoder<T>, message: T): Resource {
  return withVersion(name, pack(codec, message));
}

/** Of parts that many resources have. */
const digests = new Memo<Uint8Array, string>();

/** A resource of parts that others have as well: kept by reference, since a large mesh's route tables would not fit into memory. */
class PartedResource implements Resource {
  readonly version: string;

  constructor(readonly name: string, readonly typeUrl: string, readonly parts: readonly Uint8Array[]) {
    this.version = contentVersion(parts.map((part) => digests.once(part, () => contentVersion(part))).join(''));
  }

  get body(): Any {
    return { type_url: this.typeUrl, value: Buffer.concat(this.parts) };
  }
}

/** The same for a message that is encoded already, in parts. */
export function makePartedResource<T>(name: string, codec: Encoder<T>, parts: readonly Uint8Array[]): Resource {
  return new PartedResource(name, typeUrl(codec), parts);
}

function withVersion(name: string, body: Any): Resource {
  return { name, body, version: contentVersion(body.value) };
}
