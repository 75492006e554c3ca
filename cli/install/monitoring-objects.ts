/** What people look at: dashboards for Grafana, rules for Prometheus' operator. Each only if asked for. */
import { grafanaDashboards } from './dashboards/index.js';
import { AGENT_NAMESPACE, LABELS } from './rbac.js';
import { RULE_GROUPS } from './rules.js';
import { Merged, value, when, type Mapping, type Template } from './template.js';

export function monitoringObjects(): Template[] {
  const dashboards: Mapping[] = Object.entries(grafanaDashboards()).map(([name, dashboard]) => ({
    apiVersion: 'v1',
    kind: 'ConfigMap',
    metadata: { name: `underpass-dashboard-${name}`, namespace: AGENT_NAMESPACE, labels: new Merged('monitoring.dashboardLabels', LABELS) },
    data: { [`underpass-${name}.json`]: JSON.stringify(dashboard) },
  }));
  const rules: Mapping = {
    apiVersion: 'monitoring.coreos.com/v1',
    kind: 'PrometheusRule',
    metadata: { name: 'underpass', namespace: AGENT_NAMESPACE, labels: new Merged('monitoring.labels', LABELS) },
    spec: { groups: RULE_GROUPS as unknown as readonly Template[] },
  };
  return [...dashboards.map((object) => when(value('monitoring.dashboards'), object)), when(value('monitoring.prometheusRule'), rules)];
}
