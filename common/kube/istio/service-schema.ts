/** ServiceEntry, WorkloadEntry and WorkloadGroup, with what Istio's own validation asks of one by itself. */
import { choice, ignored, integer, list, object, open, port, stringMap, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { dnsLabel, exportTo, host, ipBlock, labels, protocol, workloadSelector } from './fields.js';
import type { ServiceEntry, WorkloadEntrySpec } from './services.js';
import { isDnsLabel, isHostName, isHttpProtocol, isIpAddress, isPartialWildcard, isTlsProtocol, isUnixAddress } from './syntax.js';

const workloadFields: Record<string, Schema> = {
  address: text,
  ports: withCheck<Record<string, number>>({ type: 'map', values: port }, (value, report) => {
    for (const name of Object.keys(value)) if (!isDnsLabel(name)) report(`found "${name}", expected the name of a service's port`, [name]);
  }),
  labels,
  network: text,
  locality: text,
  weight: integer(0, 0xffff_ffff),
  serviceAccount: text,
};

function checkWorkload(value: WorkloadEntrySpec, report: Report, warn: Report): void {
  const { address = '', network } = value;
  if (address === '' && !network) report('found nothing, expected an address, or a network whose gateway leads there', ['address']);
  else if (address === '') warn(`found no address: only the gateway of network "${network}" leads there`, ['address']);
  else if (address.startsWith('unix://')) {
    if (!isUnixAddress(address)) report(`found "${address}", expected unix:// and an absolute path to a file`, ['address']);
    if (value.ports && Object.keys(value.ports).length > 0) report('found ports with a Unix socket, expected none', ['ports']);
  } else if (!isIpAddress(address) && !isHostName(address)) report(`found "${address}", expected an IP address or a host name`, ['address']);
}

const workload = withCheck<WorkloadEntrySpec>(object(workloadFields), checkWorkload);

export const workloadEntry: Schema = workload;

const seconds = integer(0, 0x7fff_ffff);

const probe: Schema = {
  type: 'object',
  fields: {
    initialDelaySeconds: seconds, timeoutSeconds: seconds, periodSeconds: seconds, successThreshold: seconds, failureThreshold: seconds,
    httpGet: object({ path: text, port, host: text, scheme: choice('HTTP', 'HTTPS'), httpHeaders: list(object({ name: word, value: text }, ['name'])) }, ['port']),
    tcpSocket: object({ host: text, port }, ['port']),
    exec: object({ command: list(text, 1) }, ['command']),
    grpc: object({ port, service: text }),
  },
  oneOf: ['httpGet', 'tcpSocket', 'exec', 'grpc'],
};

export const workloadGroup: Schema = object({ metadata: object({ labels, annotations: stringMap }), template: object(workloadFields), probe: ignored(probe, "the workload's own agent probes") }, ['template']);

type Spec = ServiceEntry['spec'];

function checkPorts({ ports = [], hosts, resolution = 'NONE' }: Spec, report: Report): void {
  ports.forEach((entry, index) => {
    if (ports.findIndex(({ name }) => name === entry.name) < index) report(`found "${entry.name}" again, expected each port's name once`, ['ports', index, 'name']);
    if (ports.findIndex(({ number }) => number === entry.number) < index) report(`found ${entry.number} again, expected each port once`, ['ports', index, 'number']);
    const kind = entry.protocol ?? '';
    if (resolution !== 'NONE' && hosts.length > 1 && !isHttpProtocol(kind) && !isTlsProtocol(kind)) report(`found ${kind || 'TCP'} with several hosts, expected HTTP or TLS, which say which one is meant`, ['ports', index, 'protocol']);
    if (resolution === 'DYNAMIC_DNS' && !['HTTP', 'HTTP2', 'GRPC', 'TLS'].includes(kind.toUpperCase())) report(`found ${kind || 'TCP'}, expected HTTP, HTTP2, GRPC or TLS with resolution DYNAMIC_DNS`, ['ports', index, 'protocol']);
  });
}

function checkEndpoints({ endpoints = [], ports = [], resolution = 'NONE' }: Spec, report: Report): void {
  const names = ports.map(({ name }) => name);
  endpoints.forEach((endpoint, index) => {
    const address = endpoint.address ?? '';
    const isSocket = address.startsWith('unix://');
    if (resolution === 'STATIC' && address !== '' && !isIpAddress(address) && !isSocket) report(`found "${address}", expected an IP address with resolution STATIC`, ['endpoints', index, 'address']);
    if (resolution.startsWith('DNS') && !isIpAddress(address) && !isHostName(address)) report(`found "${address}", expected a host name or an IP address`, ['endpoints', index, 'address']);
    if (isSocket && ports.length !== 1) report(`found a Unix socket with ${ports.length} ports, expected one`, ['endpoints', index, 'address']);
    for (const name of Object.keys(endpoint.ports ?? {})) {
      if (!names.includes(name)) report(`found "${name}", expected one of the ports: ${names.join(', ') || 'there is none'}`, ['endpoints', index, 'ports', name]);
    }
  });
}

function checkResolution(spec: Spec, report: Report, warn: Report): void {
  const { hosts, addresses = [], endpoints = [], resolution = 'NONE' } = spec;
  if (resolution === 'NONE') {
    if (endpoints.length > 0) report('found endpoints with resolution NONE, which goes where the client meant to, expected STATIC or DNS', ['endpoints']);
    if (spec.workloadSelector) warn('found workloadSelector with resolution NONE, which goes where the client meant to', ['workloadSelector']);
  }
  if (resolution === 'DNS_ROUND_ROBIN' && endpoints.length > 1) report(`found ${endpoints.length} endpoints, expected at most one with resolution DNS_ROUND_ROBIN`, ['endpoints']);
  if ((resolution === 'DNS' || resolution === 'DNS_ROUND_ROBIN') && endpoints.length === 0 && !spec.workloadSelector) {
    hosts.forEach((name, index) => !isHostName(name) && report(`found "${name}", expected a name that DNS can look up, or endpoints`, ['hosts', index]));
  }
  if (resolution === 'DYNAMIC_DNS') {
    warn('found DYNAMIC_DNS, which counts as NONE here: connections go to the address that the client looked up', ['resolution']);
    hosts.forEach((name, index) => !name.startsWith('*') && report(`found "${name}", expected a wildcard with resolution DYNAMIC_DNS`, ['hosts', index]));
    if (addresses.length > 0) report('found addresses with resolution DYNAMIC_DNS, expected none', ['addresses']);
    if (endpoints.length > 0) report('found endpoints with resolution DYNAMIC_DNS, expected none', ['endpoints']);
  }
  if (resolution !== 'NONE' && resolution !== 'STATIC') {
    addresses.forEach((address, index) => address.includes('/') && report(`found "${address}", expected an address: blocks go with resolution NONE and STATIC`, ['addresses', index]));
  }
}

const notStar: Schema = withCheck<string>(host, (value, report) => {
  if (value === '*') report('found "*", expected a host: everything is no service');
});

export const serviceEntry: Schema = withCheck<Spec>(
  object(
    {
      hosts: list(notStar, 1),
      addresses: list(ipBlock),
      ports: list(object({ number: port, protocol, name: dnsLabel, targetPort: port }, ['number', 'name'])),
      location: choice('MESH_EXTERNAL', 'MESH_INTERNAL'),
      resolution: choice('NONE', 'STATIC', 'DNS', 'DNS_ROUND_ROBIN', 'DYNAMIC_DNS'),
      endpoints: list(workload),
      workloadSelector,
      exportTo: exportTo(true),
      subjectAltNames: list(word),
    },
    ['hosts'],
  ),
  (spec, report, warn) => {
    if (spec.workloadSelector && spec.endpoints) report('found workloadSelector and endpoints, expected one of them', ['endpoints']);
    spec.hosts.forEach((name, index) => {
      if (spec.hosts.indexOf(name) < index) warn(`found "${name}" again`, ['hosts', index]);
      if (isPartialWildcard(name) && spec.resolution !== 'DYNAMIC_DNS') warn(`found "${name}", a wildcard within a label: clients' names are compared by whole labels`, ['hosts', index]);
    });
    checkPorts(spec, report);
    checkEndpoints(spec, report);
    checkResolution(spec, report, warn);
  },
);

/** What istiod writes back. */
export const serviceEntryStatus: Schema = open({ addresses: list(open({ value: text, host: text })) });
