import assert from 'node:assert/strict';
import { test } from 'node:test';
import { enrolmentOf, enrolsNamespace, type EnrolmentDefaults } from './enrolment.js';
import type { PodRecord } from './source.js';

const defaults: EnrolmentDefaults = { acceleration: 'l4', redirection: 'auto' };

function pod(change: Partial<PodRecord> = {}): PodRecord {
  return {
    uid: 'u1', name: 'client', namespace: 'shop', labels: {}, annotations: {}, namespaceLabels: {}, nodeName: 'n1',
    serviceAccount: 'default', ips: ['10.1.0.2'], netns: '/run/netns/x', cgroup: '/sys/fs/cgroup/x', hostNetwork: false,
    phase: 'Running', ready: true, terminating: false, hasSidecar: false, containers: [], ...change,
  };
}

test('enrolmentOf: a pod without labels is off and takes the defaults', () => {
  assert.deepEqual(enrolmentOf(pod(), defaults), { mode: 'off', acceleration: 'l4', redirection: 'auto', unknown: [] });
});

test('enrolmentOf: the namespace enrols, the pod\'s own label beats it', () => {
  const namespaceLabels = { 'underpass.io/mode': 'node', 'underpass.io/acceleration': 'off', 'underpass.io/redirection': 'iptables' };
  assert.deepEqual(enrolmentOf(pod({ namespaceLabels }), defaults), { mode: 'node', acceleration: 'off', redirection: 'iptables', unknown: [] });
  const labels = { 'underpass.io/mode': 'off', 'underpass.io/acceleration': 'force', 'underpass.io/redirection': 'bpf' };
  assert.deepEqual(enrolmentOf(pod({ namespaceLabels, labels }), defaults), { mode: 'off', acceleration: 'force', redirection: 'bpf', unknown: [] });
});

test('enrolmentOf: l7 is a level of its own, by label and as the default', () => {
  assert.equal(enrolmentOf(pod({ labels: { 'underpass.io/acceleration': 'l7' } }), { ...defaults, acceleration: 'off' }).acceleration, 'l7');
  assert.equal(enrolmentOf(pod(), { ...defaults, acceleration: 'l7' }).acceleration, 'l7');
});

test('enrolmentOf: unknown values are reported and count as off or as the default, also when they name a property of objects', () => {
  const labels = { 'underpass.io/mode': 'toString', 'underpass.io/acceleration': 'L4', 'underpass.io/redirection': '' };
  const result = enrolmentOf(pod({ labels, namespaceLabels: { 'underpass.io/mode': 'node' } }), { acceleration: 'force', redirection: 'bpf' });
  assert.equal(result.mode, 'off');
  assert.equal(result.acceleration, 'force');
  assert.equal(result.redirection, 'bpf');
  assert.deepEqual(result.unknown.map(({ label, value, on, usedInstead }) => [label, value, on, usedInstead]), [
    ['underpass.io/mode', 'toString', 'pod', 'off'],
    ['underpass.io/acceleration', 'L4', 'pod', 'force'],
    ['underpass.io/redirection', '', 'pod', 'bpf'],
  ]);
});

const node = { 'underpass.io/mode': 'node' };
const sidecar = { 'underpass.io/mode': 'sidecar' };
const cases: [string, Partial<PodRecord>, 'node' | 'sidecar' | 'off'][] = [
  ['hostNetwork', { namespaceLabels: node, hostNetwork: true }, 'off'],
  ['completed', { namespaceLabels: node, phase: 'Succeeded' }, 'off'],
  ['failed', { namespaceLabels: node, phase: 'Failed' }, 'off'],
  ['pending', { namespaceLabels: node, phase: 'Pending' }, 'off'],
  ['without an address', { namespaceLabels: node, ips: [] }, 'off'],
  ['with its own sidecar in mode node', { namespaceLabels: node, hasSidecar: true }, 'off'],
  ['with its own sidecar in mode sidecar', { namespaceLabels: sidecar, hasSidecar: true }, 'sidecar'],
  ['that is a gateway in mode node', { namespaceLabels: node, isGateway: true }, 'off'],
  ['that is a waypoint', { namespaceLabels: node, labels: { 'gateway.networking.k8s.io/gateway-name': 'wp' } }, 'off'],
  ['that is a gateway in mode sidecar', { namespaceLabels: sidecar, isGateway: true }, 'off'],
  ['without a sidecar in mode sidecar', { namespaceLabels: sidecar }, 'off'],
  ['not ready but running', { namespaceLabels: node, ready: false }, 'node'],
];
for (const [name, change, mode] of cases) {
  test(`enrolmentOf: a pod ${name} is ${mode === 'off' ? 'left alone with a reason' : mode}`, () => {
    const result = enrolmentOf(pod(change), defaults);
    assert.equal(result.mode, mode);
    assert.equal(result.reason === undefined, mode !== 'off');
  });
}

test('enrolmentOf: the label for request ids is yes or no; the pod\'s beats its namespace\'s', () => {
  const of = (labels: Record<string, string>, namespaceLabels: Record<string, string> = {}): boolean | undefined => enrolmentOf(pod({ labels, namespaceLabels }), defaults).requestIds;
  const label = 'underpass.io/request-id';
  assert.deepEqual([of({}), of({ [label]: 'true' }), of({}, { [label]: 'true' }), of({ [label]: 'false' }, { [label]: 'true' }), of({ [label]: 'always' })], [undefined, true, true, undefined, undefined]);
});

test('enrolmentOf: the splice label is yes, no, or for the agent to find out; the pod\'s beats its namespace\'s', () => {
  const of = (labels: Record<string, string>, namespaceLabels: Record<string, string> = {}) => enrolmentOf(pod({ labels, namespaceLabels }), defaults);
  const label = 'underpass.io/splice';
  assert.equal(of({ [label]: 'true' }).splices, true);
  assert.equal(of({}, { [label]: 'true' }).splices, true);
  assert.equal(of({ [label]: 'false' }, { [label]: 'true' }).splices, false);
  assert.equal(of({}).splices, undefined);
  const unknown = of({ [label]: 'yes' });
  assert.deepEqual([unknown.splices, unknown.unknown.map(({ value, expected }) => [value, expected])], [undefined, [['yes', ['true', 'false']]]]);
});

test('enrolment: the l7 label is the pod\'s or its namespace\'s; without one, and with an unknown value, HTTP always has its proxy', () => {
  const of = (labels: Record<string, string>, namespaceLabels: Record<string, string> = {}) => enrolmentOf(pod({ labels, namespaceLabels }), defaults);
  const label = 'underpass.io/l7';
  assert.equal(of({ [label]: 'auto' }).l7Auto, true);
  assert.equal(of({}, { [label]: 'auto' }).l7Auto, true);
  assert.equal(of({ [label]: 'always' }, { [label]: 'auto' }).l7Auto, undefined);
  assert.equal(of({}).l7Auto, undefined);
  const unknown = of({ [label]: 'sometimes' });
  assert.deepEqual([unknown.l7Auto, unknown.unknown.map(({ value, usedInstead }) => [value, usedInstead])], [undefined, [['sometimes', 'always']]]);
});

const ambient = { 'istio.io/dataplane-mode': 'ambient' };
const none = { 'istio.io/dataplane-mode': 'none' };
const withAmbient = { ...defaults, ambientLabel: true };
const off = { 'underpass.io/mode': 'off' };

test('enrolmentOf: Istio\'s label of ambient mode counts only where it is asked for', () => {
  assert.deepEqual(enrolmentOf(pod({ namespaceLabels: ambient }), defaults), { mode: 'off', acceleration: 'l4', redirection: 'auto', unknown: [] });
  assert.deepEqual(enrolmentOf(pod({ namespaceLabels: ambient }), withAmbient), { mode: 'node', acceleration: 'l4', redirection: 'auto', unknown: [] });
});

const labelled: [string, Record<string, string>, Record<string, string>, string, string | undefined][] = [
  ['a pod\'s own', ambient, {}, 'node', undefined],
  ['a pod\'s none in a namespace that is ambient', none, ambient, 'off', undefined],
  ['a pod\'s none in a namespace of mode node', none, node, 'off', undefined],
  ['both, alike', {}, { ...ambient, ...node }, 'node', undefined],
  ['both on the namespace, at odds', {}, { ...ambient, ...off }, 'off', 'the namespace has underpass.io/mode=off, which counts, and istio.io/dataplane-mode=ambient'],
  ['both on the pod, at odds', { ...none, ...node }, ambient, 'node', 'the pod has underpass.io/mode=node, which counts, and istio.io/dataplane-mode=none'],
  ['its own mode on a pod in a namespace that is ambient', off, ambient, 'off', undefined],
];
for (const [what, labels, namespaceLabels, mode, conflict] of labelled) {
  test(`enrolmentOf with Istio's label: ${what}`, () => {
    const found = enrolmentOf(pod({ labels, namespaceLabels }), withAmbient);
    assert.deepEqual([found.mode, found.conflict, found.unknown], [mode, conflict, []]);
  });
}

test('enrolmentOf with Istio\'s label: pods that Istio leaves alone are left alone, and say why', () => {
  const sidecarPod = enrolmentOf(pod({ namespaceLabels: ambient, hasSidecar: true }), withAmbient);
  assert.equal(sidecarPod.mode, 'off');
  assert.match(sidecarPod.reason ?? '', /sidecar of its own/);
  assert.equal(enrolmentOf(pod({ namespaceLabels: ambient, hostNetwork: true }), withAmbient).mode, 'off');
});

test('enrolmentOf with Istio\'s label: a value that Istio does not know is reported and counts as no label', () => {
  const found = enrolmentOf(pod({ labels: { 'istio.io/dataplane-mode': 'toString' }, namespaceLabels: ambient }), withAmbient);
  assert.deepEqual([found.mode, found.unknown], ['node', [{ label: 'istio.io/dataplane-mode', value: 'toString', on: 'pod', expected: ['ambient', 'none'], usedInstead: 'no such label' }]]);
});

test('enrolsNamespace: which namespaces the CNI plugin waits in while no agent answers', () => {
  const asked = [node, ambient, none, { ...ambient, ...off }, {}];
  assert.deepEqual(asked.map((labels) => enrolsNamespace(labels, { ambientLabel: true })), [true, true, false, false, false]);
  assert.deepEqual(asked.map((labels) => enrolsNamespace(labels, {})), [true, false, false, false, false]);
});
