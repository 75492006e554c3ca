import assert from 'node:assert/strict';
import { test } from 'node:test';
import { missingRule } from './rights.js';

test('missingRule: the rule that a refusal asks for; other refusals ask for none', () => {
  assert.equal(missingRule('pods is forbidden: User "system:serviceaccount:a:b" cannot list resource "pods" in API group "" at the cluster scope'), '{apiGroups: [""], resources: [pods], verbs: [list]}');
  assert.equal(missingRule('x is forbidden: User "u" cannot patch resource "gateways/status" in API group "gateway.networking.k8s.io" in the namespace "shop"'), '{apiGroups: ["gateway.networking.k8s.io"], resources: [gateways/status], verbs: [patch]} in namespace shop');
  assert.equal(missingRule('pods "web" is forbidden: exceeded quota'), undefined);
});
