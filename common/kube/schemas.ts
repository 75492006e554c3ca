/** The schemas of all kinds that are checked, and the check of one object. */
import { anything, bool, checkSchema, integer, list, nearest, object, open, port, stringMap, text, type Problem, type Schema } from './schema.js';
import { istioSchemas, istioVersions, unservedIstioKinds } from './istio-schemas.js';
import { apiGroup, type KubeObject } from './types.js';

const dnsLabel = (what: string, pattern: RegExp, expected: string): Schema => ({
  type: 'string',
  nonEmpty: true,
  check: (value, report) => {
    if (typeof value === 'string' && value !== '' && (!pattern.test(value) || value.length > 253)) report(`found ${JSON.stringify(value)}, expected ${what}: ${expected}`);
  },
});

const objectName = dnsLabel('a name', /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/, 'lower-case letters, digits, "-" and ".", beginning and ending with a letter or digit');
const namespaceName = dnsLabel('a namespace', /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/, 'at most 63 lower-case letters, digits and "-"');

const labelValue: Schema = {
  type: 'string',
  check: (value, report) => {
    if (typeof value === 'string' && !/^(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?$/.test(value)) {
      report(`found ${JSON.stringify(value)}, expected a label's value: at most 63 letters, digits, "-", "_" and ".", beginning and ending with a letter or digit`);
    }
  },
};

const metadata: Schema = open({ name: objectName, namespace: namespaceName, labels: { type: 'map', values: labelValue }, annotations: stringMap }, ['name']);
const templateMetadata: Schema = open({ labels: { type: 'map', values: labelValue }, annotations: stringMap });

const container: Schema = open(
  {
    name: text,
    image: text,
    command: list(text),
    args: list(text),
    workingDir: text,
    env: list(open({ name: text, value: text }, ['name'])),
    ports: list(open({ name: text, containerPort: port, protocol: { type: 'string', values: ['TCP', 'UDP', 'SCTP'] } }, ['containerPort'])),
  },
  ['name'],
);

const podSpec: Schema = open({ nodeName: text, serviceAccountName: text, hostNetwork: bool, initContainers: list(container), containers: list(container, 1) }, ['containers']);

const serviceSpec: Schema = open({
  type: { type: 'string', values: ['ClusterIP', 'NodePort', 'LoadBalancer', 'ExternalName'] },
  selector: stringMap,
  clusterIP: text,
  clusterIPs: list(text),
  ports: {
    type: 'array',
    items: open(
      { name: text, port, targetPort: { type: 'intOrString' }, protocol: { type: 'string', values: ['TCP', 'UDP', 'SCTP'] }, appProtocol: text },
      ['port'],
    ),
    check: (value, report) => {
      const ports = value as { name?: string; port: number; protocol?: string }[];
      const names = new Set<string>();
      ports.forEach((entry, index) => {
        if (ports.length > 1 && !entry?.name) report('found nothing, a port needs a name when a Service has several', [index, 'name']);
        if (entry?.name && names.has(entry.name)) report(`found "${entry.name}" again, expected each port's name once`, [index, 'name']);
        if (entry?.name) names.add(entry.name);
      });
    },
  },
});

const coreSchemas: Record<string, Schema> = {
  '/Namespace': open({ metadata }),
  '/Node': open({ metadata, status: open({ addresses: list(open({ type: text, address: text })) }) }),
  '/Pod': open({ metadata, spec: podSpec, status: open({ phase: text, podIP: text, podIPs: list(open({ ip: text })), conditions: list(anything) }) }, ['spec']),
  '/Service': open({ metadata, spec: serviceSpec }, ['spec']),
  '/ServiceAccount': open({ metadata }),
  '/ConfigMap': open({ metadata, data: stringMap }),
  'discovery.k8s.io/EndpointSlice': open(
    {
      metadata,
      addressType: { type: 'string', values: ['IPv4', 'IPv6', 'FQDN'] },
      endpoints: list(open({ addresses: list(text, 1), conditions: open({ ready: bool, serving: bool, terminating: bool }), nodeName: text, zone: text }, ['addresses'])),
      ports: list(open({ name: text, port, protocol: text, appProtocol: text })),
    },
    ['addressType'],
  ),
  'apps/Deployment': open(
    {
      metadata,
      spec: open(
        {
          replicas: integer(0, 10_000),
          selector: open({ matchLabels: stringMap }),
          template: open({ metadata: templateMetadata, spec: podSpec }, ['spec']),
        },
        ['selector', 'template'],
      ),
    },
    ['spec'],
  ),
};

const istioEnvelope = (spec: Schema): Schema =>
  object({ apiVersion: text, kind: text, metadata, spec, status: anything }, ['spec']);

/** Everything that is wrong with one object by itself; what depends on other objects is pilot's to check. */
export function checkObject(candidate: KubeObject): Problem[] {
  const problems: Problem[] = [];
  for (const field of ['apiVersion', 'kind'] as const) {
    if (typeof candidate[field] !== 'string' || candidate[field] === '') problems.push({ path: [field], message: 'found nothing, this field is required', severity: 'error' });
  }
  if (typeof candidate.metadata !== 'object' || candidate.metadata === null) problems.push({ path: ['metadata'], message: 'found nothing, this field is required', severity: 'error' });
  if (problems.length > 0) return problems;
  const group = apiGroup(candidate.apiVersion);
  const { kind } = candidate;
  const istioSpec = istioSchemas[`${group}/${kind}`];
  if (istioSpec) {
    const versions = istioVersions[group] ?? [];
    const version = candidate.apiVersion.slice(group.length + 1);
    if (!versions.includes(version)) problems.push({ path: ['apiVersion'], message: `found "${candidate.apiVersion}", expected one of ${versions.map((known) => `${group}/${known}`).join(', ')}`, severity: 'error' });
    return [...problems, ...checkSchema(istioEnvelope(istioSpec), candidate)];
  }
  if (group.endsWith('istio.io') || group === 'gateway.networking.k8s.io') {
    if (unservedIstioKinds.has(`${group}/${kind}`)) problems.push({ path: ['kind'], message: `${kind} is not acted on by this version`, severity: 'warning' });
    else {
      const known = [...Object.keys(istioSchemas), ...unservedIstioKinds].map((name) => name.split('/')[1]!);
      const near = nearest(kind, known);
      problems.push({ path: ['kind'], message: `found "${kind}" in ${group}, ${near ? `did you mean ${near}?` : `expected one of ${known.join(', ')}`}`, severity: 'error' });
    }
    return [...problems, ...checkSchema(open({ metadata }), candidate)];
  }
  return [...problems, ...checkSchema(coreSchemas[`${group}/${kind}`] ?? open({ metadata }), candidate)];
}
