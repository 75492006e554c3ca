/** `make chart`: the Helm chart, the manifests for kubectl and the table of docs/install.md, out of the objects and settings here. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { stringify } from 'yaml';
import { projectRoot } from '../../common/paths.js';
import { VERSION } from '../../common/version.js';
import { AGENT_CAPABILITIES, ENVOY_CAPABILITIES, type Capability } from './agent-objects.js';
import { grafanaDashboards } from './dashboards/index.js';
import { helmText } from './helm.js';
import { uninstallHooks } from './helm-hooks.js';
import { FILES, installationObjects } from './objects.js';
import { PILOT_ACCOUNT, ROOT_NAMESPACE, account, agentRbac, namespace, pilotRbac, podTokensRbac, remoteRbac, AGENT, AGENT_NAMESPACE } from './rbac.js';
import { RULE_GROUPS } from './rules.js';
import { DEFAULTS, settings, type Setting, type Values } from './settings.js';
import type { Template } from './template.js';

const BY = 'Written by `make chart` out of cli/install/: change it there.';
const CHART = 'deploy/helm/underpass';
const part = (name: string): RegExp => new RegExp(`(?<=<!-- ${name} -->\\n)[\\s\\S]*(?=<!-- /${name} -->)`);

/** By path within the project. */
export function chartFiles(): Record<string, string> {
  const header = `# ${BY}\n`;
  const manifest = (what: string, templates: readonly Template[]): string => `# ${what}\n${header}${helmText(templates)}`;
  const whole = (values: Partial<Values>): string => installationObjects({ ...DEFAULTS, ...values }).map((object) => `---\n${stringify(object, { lineWidth: 0 })}`).join('');
  return {
    [`${CHART}/Chart.yaml`]: header + stringify({ apiVersion: 'v2', name: 'underpass', version: VERSION, appVersion: VERSION, type: 'application', kubeVersion: '>=1.25.0-0', description: 'A service mesh without sidecars: the kernel moves the bytes, one Envoy per node decides' }),
    [`${CHART}/values.yaml`]: header + valuesYaml(),
    [`${CHART}/values.schema.json`]: `${JSON.stringify(schema(), null, 2)}\n`,
    ...Object.fromEntries(Object.entries({ ...FILES, uninstall: uninstallHooks() }).map(([name, templates]) => [`${CHART}/templates/${name}.yaml`, `{{- /* ${BY} */}}\n${helmText(templates)}`])),
    'deploy/underpass.yaml': `# Underpass with its own control plane, all values as they come: kubectl apply --server-side -f deploy/underpass.yaml\n${header}${whole({})}`,
    'deploy/underpass-istiod.yaml': `# Underpass with an istiod that is there already, all values as they come: kubectl apply --server-side -f deploy/underpass-istiod.yaml\n${header}${whole({ controlPlane: 'istiod' })}`,
    ...Object.fromEntries(Object.entries(grafanaDashboards()).map(([name, dashboard]) => [`deploy/grafana/${name}.json`, `${JSON.stringify(dashboard, null, 1)}\n`])),
    'deploy/prometheus/rules.yaml': `# Recordings and alerts for Prometheus (rule_files); docs/observability.md.\n${header}${stringify({ groups: RULE_GROUPS }, { lineWidth: 0, aliasDuplicateObjects: false })}`,
    'deploy/agent-rbac.yaml': manifest('What the node agent may do in its cluster, and no more; docs/architecture.md says what each is for.', [namespace(AGENT_NAMESPACE), account(AGENT, AGENT_NAMESPACE), ...agentRbac()]),
    'deploy/agent-pod-tokens.yaml': manifest('For agents with --ca-pod-tokens alone (docs/control-plane.md).', podTokensRbac()),
    'deploy/pilot-rbac.yaml': manifest('What pilot may do in the cluster that has the configuration, and no more; docs/control-plane.md says what each is for.', [account(PILOT_ACCOUNT, ROOT_NAMESPACE), ...pilotRbac()]),
    'deploy/remote-rbac.yaml': manifest('What pilot may do in a remote cluster: a kubeconfig with a token of this account goes into a Secret of the cluster that has the configuration (label istio/multiCluster: "true").', remoteRbac()),
    'docs/observability.md': readFileSync(join(projectRoot, 'docs', 'observability.md'), 'utf8').replace(part('alerts'), alerts()),
    'docs/install.md': readFileSync(join(projectRoot, 'docs', 'install.md'), 'utf8').replace(part('values'), table()).replace(part('capabilities'), capabilities()),
  };
}

interface Group {
  [name: string]: Setting | Group;
}

const isGroup = (node: Setting | Group): node is Group => typeof node.description !== 'string';

function tree(): Group {
  const top: Group = {};
  for (const [path, setting] of settings) {
    const names = path.split('.');
    const last = names.pop()!;
    let group = top;
    for (const name of names) group = (group[name] ??= {}) as Group;
    group[last] = setting;
  }
  return top;
}

function valuesYaml(group = tree(), indent = ''): string {
  return Object.entries(group)
    .map(([name, node]) => {
      if (isGroup(node)) return `${indent}${name}:\n${valuesYaml(node, `${indent}  `)}`;
      const choices = node.type === 'string' && node.values ? `; ${node.values.join(', ')}` : '';
      return `${indent}# ${node.description.replaceAll('`', '').replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1')}${choices}\n${stringify({ [name]: node.default }, { lineWidth: 0 }).replace(/^/gm, indent).trimEnd()}\n`;
    })
    .join('');
}

function schema(): object {
  const of = (node: Setting | Group): object => {
    if (isGroup(node)) return { type: 'object', additionalProperties: false, properties: Object.fromEntries(Object.entries(node).map(([name, inner]) => [name, of(inner)])) };
    const { description, type } = node;
    if (node.type === 'string') return { description, type, ...(node.values ? { enum: node.values } : {}), ...(node.pattern === undefined ? {} : { pattern: node.pattern }) };
    if (node.type === 'integer') return { description, type, minimum: node.minimum, ...(node.maximum === undefined ? {} : { maximum: node.maximum }) };
    if (node.type === 'array') return { description, type, items: { type: node.items } };
    return { description, type };
  };
  const top = of(tree()) as { properties: object };
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title: 'values of the chart underpass',
    ...top,
    // Helm has one of its own.
    properties: { ...top.properties, global: { type: 'object' } },
    if: { properties: { gateways: { properties: { eastWest: { properties: { enabled: { const: true } } } } } } },
    then: { properties: { gateways: { properties: { eastWest: { properties: { network: { minLength: 1 } } } } } } },
  };
}

function table(): string {
  const rows = settings.map(([path, setting]) => {
    const choices = setting.type === 'string' && setting.values ? `: ${setting.values.map((choice) => `\`${choice}\``).join(', ')}` : '';
    return `| \`${path}\` | \`${JSON.stringify(setting.default)}\` | ${setting.description}${choices} |\n`;
  });
  return `| value | default | |\n|---|---|---|\n${rows.join('')}`;
}

function alerts(): string {
  const rows = RULE_GROUPS.flatMap(({ rules }) => rules.flatMap((rule) => ('alert' in rule ? [`| \`${rule.alert}\` | ${rule.labels.severity} | \`${rule.expr.replaceAll('|', '\\|')}\`${rule.for === '0m' ? '' : `, for ${rule.for}`} |\n`] : [])));
  return `| alert | severity | when |\n|---|---|---|\n${rows.join('')}`;
}

function capabilities(): string {
  const names = new Set([...AGENT_CAPABILITIES, ...ENVOY_CAPABILITIES].map(({ name }) => name));
  const why = (list: readonly Capability[], wanted: string): string => list.find(({ name }) => name === wanted)?.why ?? '';
  return `| capability | agent | Envoy |\n|---|---|---|\n${[...names].map((name) => `| \`${name}\` | ${why(AGENT_CAPABILITIES, name)} | ${why(ENVOY_CAPABILITIES, name)} |\n`).join('')}`;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  for (const [path, content] of Object.entries(chartFiles())) {
    const target = join(projectRoot, path);
    mkdirSync(dirname(target), { recursive: true });
    writeFileSync(target, content);
  }
}
