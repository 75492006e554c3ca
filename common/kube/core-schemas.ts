/** Schemas of Kubernetes' own kinds, as far as their fields are looked at. */
import { anything, bool, integer, list, open, port, stringMap, text, type Schema } from './schema.js';

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

export const metadata: Schema = open({ name: objectName, namespace: namespaceName, labels: { type: 'map', values: labelValue }, annotations: stringMap }, ['name']);
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

/** What is found in a Secret is never said. */
const secretMap: Schema = {
  type: 'map',
  values: anything,
  check: (value: Record<string, unknown>, report) => {
    for (const [key, item] of Object.entries(value)) {
      if (typeof item !== 'string' || !/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(item)) report('found something that is not base64, expected base64', [key]);
    }
  },
};
const secretStrings: Schema = {
  type: 'map',
  values: anything,
  check: (value: Record<string, unknown>, report) => {
    for (const [key, item] of Object.entries(value)) if (typeof item !== 'string') report('found something that is not text, expected a string (put it in quotes)', [key]);
  },
};

/** By `group/Kind`; the core group is empty. */
export const coreSchemas: Record<string, Schema> = {
  '/Namespace': open({ metadata }),
  '/Node': open({ metadata, status: open({ addresses: list(open({ type: text, address: text })) }) }),
  '/Pod': open({ metadata, spec: podSpec, status: open({ phase: text, podIP: text, podIPs: list(open({ ip: text })), conditions: list(anything) }) }, ['spec']),
  '/Service': open({ metadata, spec: serviceSpec }, ['spec']),
  '/ServiceAccount': open({ metadata }),
  '/ConfigMap': open({ metadata, data: stringMap, binaryData: secretMap }),
  '/Secret': open({ metadata, type: text, data: secretMap, stringData: secretStrings }),
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
