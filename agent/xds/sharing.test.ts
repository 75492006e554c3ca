import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encode, pack } from '../../common/xds/any.js';
import { ClusterLoadAssignment } from '../../proto/generated/envoy/config/endpoint/v3/endpoint.js';
import { Address, Workload } from '../../proto/generated/istio/workload/workload.js';
import { foldAssignment } from '../proxy/fold-endpoints.js';
import { AddressType, EndpointType } from './resource-types.js';

const workload = (uid: string, more: Partial<Workload> = {}): Workload => {
  const message = Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid, namespace: 'shop', services: { 'shop/web': { ports: [{ service_port: 80, target_port: 8_080 }] } }, locality: { region: 'r', zone: 'z' }, ...more }) } });
  const { type } = new AddressType().decode(uid, '1', pack(Address, message)).message;
  assert.deepEqual(type, message.type, 'what is said is what was sent');
  return type!.value as Workload;
};

test('what workloads say alike of their services and places is one object, and what they say differently is not', () => {
  const [one, two] = [workload('a'), workload('b')];
  assert.equal(one.services, two.services);
  assert.equal(one.locality, two.locality);
  const other = workload('c', { services: { 'shop/web': { ports: [{ service_port: 80, target_port: 9_090 }] } } as unknown as Workload['services'] });
  assert.notEqual(other.services, one.services);
  assert.deepEqual(workload('d').services, one.services);
});

const assignment = ClusterLoadAssignment.fromPartial({
  cluster_name: 'c',
  endpoints: [{
    lb_endpoints: ['10.0.0.1', '10.0.0.2', '10.0.0.3'].map((address, index) => ({
      host_identifier: { $case: 'endpoint' as const, value: { address: { address: { $case: 'socket_address' as const, value: { address, port_specifier: { $case: 'port_value' as const, value: 80 } } } } } },
      metadata: { filter_metadata: { istio: { workload: 'web;shop;web;;Kubernetes' }, 'envoy.transport_socket_match': { tlsMode: index === 2 ? 'disabled' : 'istio' } } },
    })),
  }],
});

test('metadata that endpoints have alike is one object; folding changes those that it has to, and none that another holds', () => {
  const { message } = new EndpointType().decode('c', '1', pack(ClusterLoadAssignment, assignment));
  const [one, two, three] = message.endpoints[0]!.lb_endpoints;
  assert.equal(one!.metadata, two!.metadata);
  assert.notEqual(three!.metadata, one!.metadata);
  const folded = foldAssignment(message).endpoints[0]!.lb_endpoints;
  assert.equal(folded[0], one);
  assert.deepEqual(Object.keys(folded[2]!.metadata!.filter_metadata), ['istio']);
  assert.deepEqual(encode(ClusterLoadAssignment, message), encode(ClusterLoadAssignment, assignment), 'the source is as it was');
});
