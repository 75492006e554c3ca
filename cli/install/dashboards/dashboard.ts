/** Dashboards as Grafana reads them (schema 39: 10.4 and later), out of panels that are a title, queries and a unit. */

export interface Query {
  /** PromQL, with Grafana's variables in it. */
  expr: string;
  legend?: string;
}

interface PanelCommon {
  title: string;
  /** What a reader of the panel has to know. */
  description?: string;
  /** As Grafana names it: https://grafana.com/docs/grafana/latest/panels-visualizations/configure-standard-options/ */
  unit: string;
  /** Of 24. Default: as many as the panels of its row have room for. */
  width?: number;
}

export interface Graph extends PanelCommon {
  kind: 'graph';
  queries: readonly Query[];
  isStacked?: boolean;
  max?: number;
}

/** One number. */
export interface Stat extends PanelCommon {
  kind: 'stat';
  expr: string;
  /** From where on it is bad, and worse. Without: no colours. */
  bad?: { from: number; worse?: number; isLow?: boolean };
}

/** A row for each value of `by`. */
export interface Table {
  kind: 'table';
  title: string;
  description?: string;
  /** The label, its column's title, and where a click on it leads. */
  by: { label: string; title: string; link?: string };
  columns: readonly { title: string; expr: string; unit: string }[];
  width?: number;
}

export type Panel = Graph | Stat | Table;

export interface Row {
  title: string;
  panels: readonly Panel[];
}

export interface Variable {
  name: string;
  label: string;
  /** `label_values(series, label)`, a query and which of its labels, or choices that are always the same. */
  of: string | { query: string; label: string } | readonly string[];
  /** Several, or all, may be chosen: to be matched by `=~`. */
  isMany?: boolean;
}

export interface Dashboard {
  uid: string;
  title: string;
  description: string;
  variables: readonly Variable[];
  rows: readonly Row[];
}

/** Whichever the reader chooses, so that a dashboard can be imported and provisioned as it is. */
const SOURCE = { type: 'prometheus', uid: '${datasource}' };
const HEIGHTS: Record<Panel['kind'], number> = { stat: 4, graph: 8, table: 9 };
const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ';

export function grafanaDashboard({ uid, title, description, variables, rows }: Dashboard): object {
  return {
    uid,
    title,
    description,
    tags: ['underpass'],
    schemaVersion: 39,
    version: 1,
    editable: true,
    graphTooltip: 1,
    refresh: '30s',
    time: { from: 'now-1h', to: 'now' },
    timezone: 'browser',
    links: [{ type: 'dashboards', title: 'Underpass', tags: ['underpass'], asDropdown: true, includeVars: false, keepTime: true }],
    annotations: { list: [] },
    templating: { list: [{ name: 'datasource', label: 'Data source', type: 'datasource', query: 'prometheus', current: {}, hide: 0, refresh: 1, regex: '' }, ...variables.map(grafanaVariable)] },
    panels: laidOut(rows),
  };
}

function grafanaVariable({ name, label, of, isMany }: Variable): object {
  if (isChoices(of)) {
    const [first = ''] = of;
    return { name, label, type: 'custom', query: of.join(','), options: of.map((value) => ({ text: value, value, selected: value === first })), current: { text: first, value: first }, hide: 0, includeAll: false, multi: false };
  }
  const { query, regex } = typeof of === 'string' ? { query: of, regex: '' } : { query: `query_result(${of.query})`, regex: `/${of.label}="([^"]+)"/` };
  const many = isMany === true ? { includeAll: true, allValue: '.*', multi: true, current: { text: ['All'], value: ['$__all'] } } : { includeAll: false, multi: false, current: {} };
  return { name, label, type: 'query', datasource: SOURCE, definition: query, query: { query, refId: name }, refresh: 2, sort: 1, hide: 0, regex, ...many };
}

function isChoices(of: Variable['of']): of is readonly string[] {
  return Array.isArray(of);
}

function laidOut(rows: readonly Row[]): object[] {
  const panels: object[] = [];
  let y = 0;
  for (const { title, panels: own } of rows) {
    panels.push({ id: panels.length + 1, type: 'row', title, collapsed: false, gridPos: { h: 1, w: 24, x: 0, y: y++ }, panels: [] });
    let [x, height] = [0, 0];
    for (const panel of own) {
      const w = panel.width ?? Math.max(Math.floor(24 / own.length), panel.kind === 'stat' ? 3 : 8);
      const h = HEIGHTS[panel.kind];
      if (x + w > 24) [x, y, height] = [0, y + height, 0];
      panels.push({ id: panels.length + 1, title: panel.title, ...(panel.description === undefined ? {} : { description: panel.description }), datasource: SOURCE, gridPos: { h, w, x, y }, ...grafanaPanel(panel) });
      [x, height] = [x + w, Math.max(height, h)];
    }
    y += height;
  }
  return panels;
}

function grafanaPanel(panel: Panel): object {
  switch (panel.kind) {
    case 'graph':
      return {
        type: 'timeseries',
        fieldConfig: {
          defaults: { unit: panel.unit, min: 0, ...(panel.max === undefined ? {} : { max: panel.max }), custom: { drawStyle: 'line', lineWidth: 1, fillOpacity: panel.isStacked === true ? 30 : 5, showPoints: 'never', spanNulls: false, stacking: { mode: panel.isStacked === true ? 'normal' : 'none', group: 'A' } } },
          overrides: [],
        },
        options: { legend: { displayMode: 'list', placement: 'bottom', calcs: [] }, tooltip: { mode: 'multi', sort: 'desc' } },
        targets: panel.queries.map(({ expr, legend }, index) => target(index, expr, { range: true, legendFormat: legend ?? panel.title })),
      };
    case 'stat':
      return {
        type: 'stat',
        fieldConfig: { defaults: { unit: panel.unit, thresholds: { mode: 'absolute', steps: steps(panel.bad) } }, overrides: [] },
        options: { reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false }, colorMode: panel.bad ? 'value' : 'none', graphMode: 'area', justifyMode: 'auto', orientation: 'auto', textMode: 'auto' },
        targets: [target(0, panel.expr, { range: true, legendFormat: panel.title })],
      };
    case 'table': {
      const { by, columns } = panel;
      const links = by.link === undefined ? [] : [{ id: 'links', value: [{ title: 'its dashboard', url: by.link }] }];
      return {
        type: 'table',
        fieldConfig: {
          defaults: { custom: { align: 'auto', filterable: true } },
          overrides: [
            { matcher: { id: 'byName', options: by.label }, properties: [{ id: 'displayName', value: by.title }, ...links] },
            ...columns.map(({ title, unit }, index) => ({ matcher: { id: 'byName', options: `Value #${LETTERS[index]}` }, properties: [{ id: 'displayName', value: title }, { id: 'unit', value: unit }, { id: 'decimals', value: 2 }] })),
          ],
        },
        options: { showHeader: true, footer: { show: false }, sortBy: [{ displayName: columns[0]!.title, desc: true }] },
        transformations: [{ id: 'merge', options: {} }, { id: 'organize', options: { excludeByName: { Time: true }, indexByName: {}, renameByName: {} } }],
        targets: columns.map(({ expr }, index) => target(index, expr, { instant: true, range: false, format: 'table' })),
      };
    }
  }
}

function target(index: number, expr: string, more: object): object {
  return { refId: LETTERS[index], datasource: SOURCE, editorMode: 'code', expr, ...more };
}

function steps(bad: Stat['bad']): object[] {
  if (!bad) return [{ color: 'text', value: null }];
  const { from, worse, isLow } = bad;
  if (isLow === true) return [{ color: 'red', value: null }, { color: 'green', value: from }];
  return [{ color: 'green', value: null }, { color: worse === undefined ? 'red' : 'orange', value: from }, ...(worse === undefined ? [] : [{ color: 'red', value: worse }])];
}

/** `rate(metric{labels}[…])` over what Grafana thinks fit. */
export const rate = (metric: string, labels = ''): string => `rate(${metric}${labels === '' ? '' : `{${labels}}`}[$__rate_interval])`;

/** Sums of rates, by labels. */
export const rates = (by: string, metric: string, labels = ''): string => `sum${by === '' ? '' : ` by (${by})`} (${rate(metric, labels)})`;

/** The shares of requests that were answered, and not by 5xx, as Istio's dashboards have them. */
export const success = (by: string, labels: string): string => `${rates(by, 'istio_requests_total', `${labels},response_code!~"5.."`)} / ${rates(by, 'istio_requests_total', labels)}`;

/** @param share e.g. 0.99 @param by labels beside `le` */
export const quantile = (share: number, histogram: string, labels: string, by = ''): string => `histogram_quantile(${share}, ${rates(by === '' ? 'le' : `le, ${by}`, `${histogram}_bucket`, labels)})`;

/** p50, p90 and p99 of a histogram as lines of a graph. */
export const quantiles = (histogram: string, labels: string): Query[] => [0.5, 0.9, 0.99].map((share) => ({ expr: quantile(share, histogram, labels), legend: `p${share * 100}` }));
