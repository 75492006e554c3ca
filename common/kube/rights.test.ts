import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../paths.js';
import { missingRule, placeOfRule } from './rights.js';

test('missingRule: the rule that a refusal asks for; other refusals ask for none', () => {
  assert.equal(missingRule('pods is forbidden: User "system:serviceaccount:a:b" cannot list resource "pods" in API group "" at the cluster scope'), '{apiGroups: [""], resources: [pods], verbs: [list]}');
  assert.equal(missingRule('x is forbidden: User "u" cannot patch resource "gateways/status" in API group "gateway.networking.k8s.io" in the namespace "shop"'), '{apiGroups: ["gateway.networking.k8s.io"], resources: [gateways/status], verbs: [patch]} in namespace shop');
  assert.equal(missingRule('pods "web" is forbidden: exceeded quota'), undefined);
});

test('placeOfRule: the line of the manifest where the verb is granted; the manifest alone where it is not', async () => {
  const manifest = 'deploy/agent-rbac.yaml';
  const refusal = (verb: string, resource: string, group = ''): string => `x is forbidden: User "u" cannot ${verb} resource "${resource}" in API group "${group}" at the cluster scope`;
  const lineOf = async (said: string): Promise<string> => {
    const [, line] = /^deploy\/agent-rbac\.yaml:(\d+)$/.exec(await placeOfRule(manifest, said)) ?? assert.fail(said);
    return readFileSync(join(projectRoot, manifest), 'utf8').split('\n')[Number(line) - 1]!.trim();
  };
  assert.equal(await lineOf(refusal('watch', 'pods')), 'verbs: [get, list, watch, patch]');
  assert.equal(await lineOf(refusal('create', 'events')), 'verbs: [create, get, patch]');
  assert.equal(await lineOf(refusal('get', 'daemonsets', 'apps')), 'verbs: [get]');
  assert.equal(await placeOfRule(manifest, refusal('delete', 'pods')), manifest);
  assert.equal(await placeOfRule('deploy/none.yaml', refusal('watch', 'pods')), 'deploy/none.yaml');
});
