import { isIP } from 'node:net';
import { HBONE_PORT } from '../../common/istio-iptables.js';
import { GatewayAddress } from '../../proto/generated/istio/workload/workload.js';
import type { Model } from '../model/model.js';
import type { Waypoint } from '../model/waypoints.js';
import { addressBytes } from './address-bytes.js';

export function gatewayAddress(model: Model, waypoint: Waypoint | undefined): GatewayAddress | undefined {
  if (!waypoint) return undefined;
  const { address, namespace } = waypoint;
  const destination: GatewayAddress['destination'] = isIP(address) !== 0
    ? { $case: 'address', value: { network: model.clusters.networkOf(''), address: addressBytes(address) } }
    : { $case: 'hostname', value: { namespace, hostname: address } };
  return GatewayAddress.fromPartial({ destination, hbone_mtls_port: HBONE_PORT });
}
