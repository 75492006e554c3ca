/** What an RBAC refusal says is missing, as the rule that would allow it. */

/** The API server's own words: `User "u" cannot list resource "pods" in API group "" at the cluster scope`. */
const REFUSAL = /cannot (\S+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?/;

/** @returns the line that a Role or ClusterRole lacks; undefined when the refusal is about something else */
export function missingRule(refusal: string): string | undefined {
  const [, verb, resource, group, namespace] = REFUSAL.exec(refusal) ?? [];
  if (verb === undefined || resource === undefined) return undefined;
  return `{apiGroups: ["${group}"], resources: [${resource}], verbs: [${verb}]}${namespace === undefined ? '' : ` in namespace ${namespace}`}`;
}
