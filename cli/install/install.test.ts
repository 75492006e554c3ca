import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { parse } from 'yaml';
import { projectRoot } from '../../common/paths.js';
import { DEFAULT_NODE_ACCOUNTS } from '../../pilot/ca/node-proxies.js';
import { chartFiles } from './chart.js';
import { installationObjects } from './objects.js';
import { AGENT, AGENT_NAMESPACE } from './rbac.js';
import { DEFAULTS } from './settings.js';
import { readValues } from './values.js';

test('the chart, the manifests and the table of values are what `make chart` writes', () => {
  for (const [path, content] of Object.entries(chartFiles())) {
    const file = join(projectRoot, path);
    assert.equal(existsSync(file) ? readFileSync(file, 'utf8') : '', content, `${path}: run \`make chart\``);
  }
});

const withFile = (text: string, then: (file: string) => void): void => {
  const folder = mkdtempSync(join(tmpdir(), 'up-values-'));
  try {
    const file = join(folder, 'values.yaml');
    writeFileSync(file, text);
    then(file);
  } finally {
    rmSync(folder, { recursive: true });
  }
};

test('values: files override each other and --set overrides files; mappings are merged, null takes a key away', () => {
  withFile('agent: {acceleration: l7, nodeSelector: {kubernetes.io/os: null, mesh: "yes"}}\npilot: {replicas: 3}\n', (file) => {
    const values = readValues([file], ['pilot.replicas=5', 'agent.resources.limits.memory=1Gi', 'image.tag=1.0', 'agent.extraArgs=["--flow-log"]']);
    assert.deepEqual(
      [values['agent.acceleration'], values['agent.nodeSelector'], values['pilot.replicas'], values['agent.resources'], values['image.tag'], values['agent.extraArgs']],
      ['l7', { mesh: 'yes' }, 5, { requests: { cpu: '100m', memory: '150Mi' }, limits: { memory: '1Gi' } }, '1.0', ['--flow-log']],
    );
  });
  assert.deepEqual(readValues([], []), DEFAULTS);
  const typed = readValues([], ['meshConfig.enableAutoMtls=false', 'meshConfig.defaultConfig.concurrency=2', 'meshConfig.accessLogFile=/dev/stdout', 'meshConfig.defaultConfig.x=[1]', 'agent.podAnnotations.a=true']);
  assert.deepEqual([typed.meshConfig, typed['agent.podAnnotations']], [{ enableAutoMtls: false, defaultConfig: { concurrency: 2, x: [1] }, accessLogFile: '/dev/stdout' }, { a: 'true' }]);
});

test('values that are wrong are named by file or option, path and what was expected', () => {
  const wrong: [string, RegExp][] = [
    ['agent: {acceleration: fast}', /values\.yaml: agent\.acceleration: found "fast", expected one of off, l4, l7, force$/],
    ['agent: {accelerate: l4}', /values\.yaml: agent\.accelerate: is no value; expected one of ambientLabel, acceleration,/],
    ['agent: 1', /values\.yaml: agent: found 1, expected a mapping$/],
    ['pilot: {replicas: 0}', /pilot\.replicas: found 0, expected a whole number from 1$/],
    ['image: {digest: "sha256:1"}', /image\.digest: found "sha256:1", expected sha256: and 64/],
    ['agent: {metricsPort: 65536}', /agent\.metricsPort: found 65536, expected a whole number from 0 to 65535$/],
    [`pilot: {proxyImage: 'proxy", initImage: "other'}`, /pilot\.proxyImage: found .*, expected the name of an image$/],
    [`pilot: {proxyImage: 'proxy"}}'}`, /pilot\.proxyImage: found .*, expected the name of an image$/],
    ['pilot: {proxyImage: "a\\\\b"}', /pilot\.proxyImage: found .*, expected the name of an image$/],
    ['imagePullSecrets: [a]', /imagePullSecrets: found \["a"\], expected a list of mappings$/],
    ['gateways: {eastWest: {enabled: true}}', /^gateways\.eastWest\.network: found nothing/],
    ['- a', /values\.yaml: found no mapping/],
    ['a: [', /values\.yaml: reading values: /],
  ];
  for (const [text, message] of wrong) withFile(text, (file) => assert.throws(() => readValues([file], []), (error: Error) => message.test(error.message) || assert.fail(`${text}: ${error.message}`)));
  for (const [word, message] of [['agent', /--set agent: expected path=value/], ['nothing=1', /nothing is no value; expected one of controlPlane,/], ['pilot.replicas=two', /--set pilot\.replicas=two: found "two", expected a whole number/], ['agent.x=1', /agent\.x is no value; expected one of ambientLabel/]] as const) {
    assert.throws(() => readValues([], [word]), { message });
  }
});

test('metrics: the agent listens where the annotations say, which a user may replace; no port of the node is taken from the next agent', () => {
  const daemonSet = (...sets: string[]): { template: { metadata: { annotations?: object }; spec: { containers: { args?: string[]; ports?: unknown }[] } } } => (installationObjects(readValues([], sets)).find(({ kind }) => kind === 'DaemonSet') as unknown as { spec: ReturnType<typeof daemonSet> }).spec;
  const told = (...sets: string[]): unknown[] => {
    const { metadata, spec } = daemonSet(...sets).template;
    return [metadata.annotations, spec.containers[0]!.args!.find((word) => word.startsWith('--metrics-address'))];
  };
  const scraped = (port: string): Record<string, string> => ({ 'prometheus.io/scrape': 'true', 'prometheus.io/port': port, 'prometheus.io/path': '/metrics' });
  assert.deepEqual(told(), [scraped('15020'), '--metrics-address=$(NODE_ADDRESS):15020']);
  assert.deepEqual(told('agent.metricsPort=9100', 'agent.podAnnotations={"prometheus.io/scrape":"false","a":"b"}'), [{ ...scraped('9100'), 'prometheus.io/scrape': 'false', a: 'b' }, '--metrics-address=$(NODE_ADDRESS):9100']);
  assert.deepEqual(told('agent.metricsPort=0'), [undefined, undefined]);
  assert.deepEqual(daemonSet().template.spec.containers.map(({ ports }) => ports), [undefined, undefined]);
});

test('the dashboard of an agent is served where it is asked for, and nowhere else', () => {
  const told = (...sets: string[]): string[] => (installationObjects(readValues([], sets)).find(({ kind }) => kind === 'DaemonSet') as unknown as { spec: { template: { spec: { containers: { args?: string[] }[] } } } }).spec.template.spec.containers[0]!.args!.filter((word) => word.includes('dashboard'));
  assert.deepEqual([told(), told('agent.dashboardPort=15040')], [[], ['--dashboard-port=15040']]);
});

test('the image of proxies is in the injection as it was given', () => {
  for (const image of ['docker.io/istio/proxyv2:1.27.0', '[fd00::1]:5000/proxy@sha256:0a']) {
    const injection = installationObjects(readValues([], [`pilot.proxyImage=${image}`])).find(({ kind, metadata }) => kind === 'ConfigMap' && metadata.name === 'underpass-injection') as unknown as { data: Record<string, string> };
    assert.deepEqual(parse(injection.data['injection.yaml']!), { values: { proxyImage: image, initImage: image } });
  }
});

interface Container { name: string; securityContext: { privileged?: boolean; capabilities?: { add?: string[]; drop?: string[] }; readOnlyRootFilesystem?: boolean }; volumeMounts: { mountPropagation?: string }[] }
interface Workload { kind: string; metadata: { name: string }; spec: { template: { spec: { containers: Container[]; securityContext?: { runAsNonRoot?: boolean } } } } }

test('no container but the agent is privileged, and that one is because Kubernetes asks it of Bidirectional mounts; pilot has no capability and is not root', () => {
  const workloads = installationObjects(DEFAULTS).filter(({ kind }) => kind === 'DaemonSet' || kind === 'Deployment') as unknown as Workload[];
  const containers = workloads.flatMap(({ spec }) => spec.template.spec.containers);
  assert.deepEqual(containers.map(({ name, securityContext, volumeMounts }) => [name, securityContext.privileged === true, volumeMounts.some(({ mountPropagation }) => mountPropagation === 'Bidirectional')]), [['agent', true, true], ['envoy', false, false], ['pilot', false, false]]);
  for (const { securityContext } of containers) assert.equal(securityContext.readOnlyRootFilesystem, true);
  for (const { securityContext } of containers.slice(1)) assert.deepEqual(securityContext.capabilities?.drop, ['ALL']);
  assert.deepEqual(containers[2]!.securityContext.capabilities?.add, undefined);
  assert.equal(workloads[1]!.spec.template.spec.securityContext?.runAsNonRoot, true);
});

test('pilot trusts by itself no account with the identities of a node\'s pods but the one that is installed, and ztunnel\'s', () => {
  assert.deepEqual(DEFAULT_NODE_ACCOUNTS, ['istio-system/ztunnel', `${AGENT_NAMESPACE}/${AGENT}`]);
});
