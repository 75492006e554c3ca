import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import { pack } from '../../common/xds/any.js';
import { AddressType } from './resource-types.js';

type Message<T extends { fromPartial(object: never): unknown }> = Parameters<T['fromPartial']>[0];

const decode = (address: Address): unknown => new AddressType().decode('x', '1', pack(Address, address));
const service = (more: Message<typeof Service>): Address => Address.fromPartial({ type: { $case: 'service', value: Service.fromPartial({ hostname: 'a.example', ...more }) } });
const workload = (more: Message<typeof Workload>): Address => Address.fromPartial({ type: { $case: 'workload', value: Workload.fromPartial({ uid: 'u', ...more }) } });

test('a service or workload with an address of the wrong length, or a port that is none, is rejected by the field\'s name', () => {
  const cases: [Address, RegExp][] = [
    [service({ addresses: [{ address: Buffer.alloc(4) }, { address: Buffer.alloc(5) }] }), /service\.addresses\[1\]\.address: has 5 bytes, expected 4 or 16/],
    [service({ addresses: [{ address: Buffer.alloc(0) }] }), /service\.addresses\[0\]\.address: has 0 bytes/],
    [service({ ports: [{ service_port: 0, target_port: 80 }] }), /service\.ports\[0\]\.service_port: is 0, expected 1 to 65535/],
    [service({ ports: [{ service_port: 80 }, { service_port: 70_000 }] }), /service\.ports\[1\]\.service_port: is 70000/],
    [service({ ports: [{ service_port: 80, target_port: 65_536 }] }), /service\.ports\[0\]\.target_port: is 65536/],
    [service({ waypoint: { destination: { $case: 'address', value: { address: Buffer.alloc(5) } }, hbone_mtls_port: 15_008 } }), /service\.waypoint\.address\.address: has 5 bytes, expected 4 or 16/],
    [workload({ waypoint: { hbone_mtls_port: 0 } }), /workload\.waypoint\.hbone_mtls_port: is 0, expected 1 to 65535/],
    [workload({ addresses: [Buffer.alloc(3)] }), /workload\.addresses\[0\]: has 3 bytes/],
    [workload({ services: { 'ns/a.example': { ports: [{ service_port: 80, target_port: 70_000 }] } } }), /workload\.services\["ns\/a\.example"\]\.ports\[0\]\.target_port: is 70000/],
  ];
  for (const [address, expected] of cases) assert.throws(() => decode(address), expected);
});

test('both address families, a port that workloads name for themselves, and no address at all are taken', () => {
  decode(service({ addresses: [{ address: Buffer.alloc(4, 1) }, { address: Buffer.alloc(16, 1) }], ports: [{ service_port: 65_535, target_port: 0 }, { service_port: 1, target_port: 65_535 }] }));
  decode(service({}));
  decode(workload({ addresses: [Buffer.alloc(4, 1), Buffer.alloc(16, 1)], services: { 'ns/a.example': { ports: [{ service_port: 80, target_port: 8_080 }] } } }));
});
