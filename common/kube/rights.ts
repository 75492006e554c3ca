/** What an RBAC refusal says is missing, as the rule that would allow it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../paths.js';

/** The API server's own words: `User "u" cannot list resource "pods" in API group "" at the cluster scope`. */
const REFUSAL = /cannot (\S+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?/;

/** @returns the rule that a Role or ClusterRole lacks; undefined when the refusal is about something else */
export function missingRule(refusal: string): string | undefined {
  const [, verb, resource, group, namespace] = REFUSAL.exec(refusal) ?? [];
  if (verb === undefined || resource === undefined) return undefined;
  return `{apiGroups: ["${group}"], resources: [${resource}], verbs: [${verb}]}${namespace === undefined ? '' : ` in namespace ${namespace}`}`;
}

/**
 * Where the manifest grants what a refusal says is missing.
 * @param manifest from the project's folder, e.g. `deploy/agent-rbac.yaml`
 * @returns `PATH:LINE`, the line from 1; the path alone where the manifest cannot be read, or has no such rule
 */
export async function placeOfRule(manifest: string, refusal: string): Promise<string> {
  // Most processes never need it.
  const { isMap, isScalar, isSeq, LineCounter, parseAllDocuments } = await import('yaml');
  const [, verb, resource, group] = REFUSAL.exec(refusal) ?? [];
  const lines = new LineCounter();
  let text: string;
  try {
    text = readFileSync(join(projectRoot, manifest), 'utf8');
  } catch {
    return manifest;
  }
  for (const document of parseAllDocuments(text, { lineCounter: lines })) {
    const rules = document.getIn(['rules']);
    if (!isSeq(rules)) continue;
    for (const rule of rules.items) {
      if (!isMap(rule)) continue;
      const granted = (field: string, value: string | undefined): number | undefined => {
        const list = rule.get(field);
        const found = isSeq(list) ? list.items.find((item) => isScalar(item) && (item.value === value || item.value === '*')) : undefined;
        return isScalar(found) ? (found.range?.[0] ?? 0) : undefined;
      };
      const at = granted('verbs', verb);
      if (at !== undefined && granted('apiGroups', group) !== undefined && granted('resources', resource) !== undefined) return `${manifest}:${lines.linePos(at).line}`;
    }
  }
  return manifest;
}
