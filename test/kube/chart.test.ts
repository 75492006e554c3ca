// The Helm chart, rendered by Helm itself, is the same objects as `underpass install` has; its schema takes and refuses the same values.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments, stringify } from 'yaml';
import { named } from '../../cli/install/cluster.js';
import { installationObjects } from '../../cli/install/objects.js';
import { readValues } from '../../cli/install/values.js';
import type { KubeObject } from '../../common/kube/types.js';
import type { RunResult } from '../../common/process.js';
import { KubeCluster } from './cluster.js';
import { CHART, chartFor, helmOf } from './helm.js';

let folder: string;
before(() => void (folder = mkdtempSync(join(tmpdir(), 'up-chart-'))));
after(() => rmSync(folder, { recursive: true, force: true }));

const helm = (...args: string[]): Promise<RunResult> => helmOf(folder)(...args);

const file = (values: object): string => {
  const path = join(folder, 'values.yaml');
  writeFileSync(path, stringify(values, { version: '1.1' }));
  return path;
};
const inOrder = (objects: readonly KubeObject[]): KubeObject[] => [...objects].sort((a, b) => (`${a.apiVersion} ${named(a)}` < `${b.apiVersion} ${named(b)}` ? -1 : 1));

const HARD = 'a "quoted" text: {{ .Values }} <with> & #all, \\ that\nmeans something';
const VARIANTS: Record<string, object> = {
  'as they come': {},
  istiod: { controlPlane: 'istiod', agent: { ambientLabel: true, podTokens: true }, discoveryAddress: 'istiod-canary.mesh.svc:15012' },
  'all gateways': { gateways: { ingress: { enabled: true, serviceAnnotations: { a: HARD } }, egress: { enabled: true, replicas: 1 }, eastWest: { enabled: true, network: 'network-1' } } },
  'no policies': { networkPolicy: { enabled: false }, gateways: { ingress: { enabled: true } } },
  'metrics elsewhere': { agent: { metricsPort: 9100, podMonitor: true, podAnnotations: { 'prometheus.io/scrape': 'false' } } },
  'no metrics': { agent: { metricsPort: 0, podMonitor: true, podAnnotations: { a: 'b' } } },
  'all that is looked at': { agent: { podMonitor: true }, pilot: { podMonitor: true, podAnnotations: { 'prometheus.io/port': '15015' } }, monitoring: { dashboards: true, dashboardLabels: { grafana_dashboard: null, grafana: 'yes' }, prometheusRule: true, labels: { release: HARD } } },
  digest: { image: { repository: 'registry.example:5000/mesh/underpass', digest: `sha256:${'0123456789abcdef'.repeat(4)}`, pullPolicy: 'Always' }, imagePullSecrets: [{ name: 'registry' }] },
  'texts that YAML and Go read otherwise': {
    clusterId: 'true', trustDomain: '0x10', meshConfig: { accessLogFormat: HARD, b: [1, { z: null, a: true }] },
    image: { tag: '1.0' },
    agent: { extraArgs: ['--flow-log', HARD, '1e3', ''], podAnnotations: { 'a/b': HARD, n: '010' }, nodeSelector: { 'kubernetes.io/os': null, x: 'no' }, tolerations: [], terminationGracePeriodSeconds: 2_000_000 },
    pilot: { replicas: 7, affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [{ matchExpressions: [{ key: 'a', operator: 'Exists' }] }] } } }, resources: { limits: { memory: '1Gi' } } },
  },
};

for (const [name, values] of Object.entries(VARIANTS)) {
  test(`values ${name}: Helm renders object by object what underpass install has`, async () => {
    const path = file(values);
    const { stdout, stderr, code } = await helm('template', 'underpass', CHART, '--kube-version', '1.34.2', '-f', path);
    assert.equal(code, 0, stderr);
    const rendered = parseAllDocuments(stdout).flatMap((document) => (document.toJS() as KubeObject | null) ?? []);
    const isHook = ({ metadata }: KubeObject): boolean => metadata.annotations?.['helm.sh/hook'] !== undefined;
    assert.deepEqual([...new Set(rendered.filter(isHook).map(({ metadata }) => metadata.name))], ['underpass-uninstall']);
    assert.deepEqual(inOrder(rendered.filter((object) => !isHook(object))), inOrder(installationObjects(readValues([path], []))));
  });
}

test('the chart is one that Helm finds nothing wrong with', async () => {
  const { code, stdout } = await helm('lint', '--strict', CHART);
  assert.equal(code, 0, stdout);
});

test('Helm refuses by the schema what underpass install refuses', async () => {
  const wrong: object[] = [
    { controlPlane: 'other' }, { agent: { acceleration: 'fast' } }, { agent: { accelerate: 'l4' } }, { pilot: { replicas: 0 } }, { pilot: { replicas: 1.5 } }, { image: { digest: 'sha256:1' } }, { imagePullSecrets: ['a'] },
    { discoveryAddress: 'istiod' }, { agent: { cniConfDir: 'etc/cni' } }, { gateways: { eastWest: { enabled: true } } }, { nothing: 1 }, { agent: { extraArgs: 'one' } }, { networkPolicy: { enabled: 'yes' } }, { agent: { resources: [] } }, { agent: { metricsPort: 65536 } }, { pilot: { proxyImage: 'a", initImage: "b' } },
  ];
  for (const values of wrong) {
    const path = file(values);
    assert.throws(() => readValues([path], []), { code: 'UNDERPASS_BAD_VALUE' }, JSON.stringify(values));
    const { code, stderr } = await helm('template', 'underpass', CHART, '--kube-version', '1.34.2', '-f', path);
    assert.deepEqual([code, /don't meet the specifications of the schema/.test(stderr)], [1, true], `${JSON.stringify(values)}: ${stderr}`);
  }
});

test('Helm installs the chart into an API server, upgrades it to other values, and takes all of it away', async () => {
  const cluster = await KubeCluster.start();
  try {
    await cluster.apply(`
{apiVersion: v1, kind: ServiceAccount, metadata: {name: admin, namespace: default}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: the-admin}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, subjects: [{kind: ServiceAccount, name: admin, namespace: default}]}`);
    const chart = chartFor(folder);
    const kubeconfig = join(folder, 'kubeconfig');
    writeFileSync(kubeconfig, await cluster.kubeconfigOf('default', 'admin'), { mode: 0o600 });
    const there = async (objects: readonly KubeObject[]): Promise<string[]> => {
      const found: string[] = [];
      for (const object of objects) if (await cluster.get(object.apiVersion, object.kind, object.metadata)) found.push(named(object));
      return found;
    };
    const of = (values: object): KubeObject[] => installationObjects(readValues([file(values)], [])).filter(({ kind }) => kind !== 'Namespace');
    const [first, second] = [of({}), of({ controlPlane: 'istiod' })];
    const path = file({});
    const done = await helm('install', 'underpass', chart, '--kubeconfig', kubeconfig, '-f', path);
    assert.equal(done.code, 0, done.stderr);
    assert.deepEqual(await there(first), first.map(named));
    const upgraded = await helm('upgrade', 'underpass', chart, '--kubeconfig', kubeconfig, '-f', file({ controlPlane: 'istiod' }));
    assert.equal(upgraded.code, 0, upgraded.stderr);
    assert.deepEqual(await there(first), second.map(named));
    const gone = await helm('uninstall', 'underpass', '--kubeconfig', kubeconfig, '--no-hooks');
    assert.equal(gone.code, 0, gone.stderr);
    assert.deepEqual(await there(first), []);
  } finally {
    await cluster.close();
  }
});
