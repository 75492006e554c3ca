/** The control plane of `bench-services`: WDS with so many services and endpoints, and a change of one endpoint on each line of stdin. */
import { createInterface } from 'node:readline';
import { Address, Service, Workload } from '../../proto/generated/istio/workload/workload.js';
import { Any } from '../../proto/generated/google/protobuf/any.js';
import { pack } from '../../common/xds/any.js';
import { TableControlPlane } from '../testing/control-plane.js';

const [socket = '', services = '', endpoints = ''] = process.argv.slice(2);
const perService = Number(endpoints) / Number(services);

const name = (index: number): string => `ns${index % 100}/service-${index}.ns${index % 100}.svc.cluster.local`;

function service(index: number): Any {
  const [namespace = '', hostname = ''] = name(index).split('/');
  const value = Service.fromPartial({
    name: `service-${index}`, namespace, hostname, addresses: [{ address: Buffer.from([10, 96 + (index >> 16), (index >> 8) & 255, index & 255]) }],
    ports: [{ service_port: 80, target_port: 8080 }], canonical: true,
  });
  return pack(Address, Address.fromPartial({ type: { $case: 'service', value } }));
}

function workload(index: number, capacity: number): Any {
  const of = Math.floor(index / perService);
  const value = Workload.fromPartial({
    uid: `Kubernetes//Pod/ns${of % 100}/service-${of}-7d4b9c6f5-${index}`, name: `service-${of}-7d4b9c6f5-${index}`, namespace: `ns${of % 100}`, addresses: [Buffer.from([11, index >> 16, (index >> 8) & 255, index & 255])],
    service_account: 'default', node: 'here', canonical_name: `service-${of}`, canonical_revision: 'latest', workload_name: `service-${of}`, cluster_id: 'Kubernetes',
    locality: { region: 'region', zone: 'zone-a' }, services: { [name(of)]: { ports: [{ service_port: 80, target_port: 8080 }] } }, capacity,
  });
  return pack(Address, Address.fromPartial({ type: { $case: 'workload', value } }));
}

const uid = (index: number): string => `Kubernetes//Pod/ns${Math.floor(index / perService) % 100}/service-${Math.floor(index / perService)}-7d4b9c6f5-${index}`;

const plane = new TableControlPlane(`unix:${socket}`);
const addressUrl = workload(0, 1).type_url;
for (let index = 0; index < Number(services); index++) plane.set(service(index), name(index));
for (let index = 0; index < Number(endpoints); index++) plane.set(workload(index, 1), uid(index));
await plane.start();
process.stdout.write('up\n');
let capacity = 1;
createInterface({ input: process.stdin }).on('line', (line) => {
  const index = Number(line);
  const resource = workload(index, ++capacity);
  process.stdout.write(`${process.hrtime.bigint()}\n`);
  plane.stream.send({ type_url: addressUrl, resources: [{ name: uid(index), resource, version: '', aliases: [], resource_name: undefined, ttl: undefined, cache_control: undefined, metadata: undefined }] });
}).on('close', () => plane.stop());
