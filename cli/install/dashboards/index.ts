/** The dashboards, by the names of their files in deploy/grafana/. */
import { CONTROL_PLANE } from './control-plane.js';
import { grafanaDashboard, type Dashboard } from './dashboard.js';
import { MESH } from './mesh.js';
import { NODES } from './node.js';
import { SERVICE } from './service.js';
import { WORKLOAD } from './workload.js';

export const DASHBOARDS: Readonly<Record<string, Dashboard>> = { mesh: MESH, service: SERVICE, workload: WORKLOAD, nodes: NODES, 'control-plane': CONTROL_PLANE };

/** By name, as Grafana imports them. */
export const grafanaDashboards = (): Record<string, object> => Object.fromEntries(Object.entries(DASHBOARDS).map(([name, dashboard]) => [name, grafanaDashboard(dashboard)]));
