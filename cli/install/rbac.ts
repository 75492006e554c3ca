/** What agent, pilot and remote readers may do, and no more: a test compares it with the requests that they make. */
import { comment, type Mapping, type Template } from './template.js';

export const AGENT_NAMESPACE = 'underpass-system';
/** The mesh's root namespace, with the control plane's Service. */
export const ROOT_NAMESPACE = 'istio-system';
/** Sidecars and gateways know the control plane by the SPIFFE id of this account. */
export const PILOT_ACCOUNT = 'istiod';
export const AGENT = 'underpass-agent';

const RBAC = 'rbac.authorization.k8s.io';
/** On all that is installed: by this it is found again. */
export const LABELS = { 'app.kubernetes.io/part-of': 'underpass', 'app.kubernetes.io/instance': 'underpass' };

export interface Rule {
  apiGroups: readonly string[];
  resources: readonly string[];
  resourceNames?: readonly string[];
  verbs: readonly string[];
}
type WrittenRule = Rule | { comment: string; rule: Rule };

export const rule = (group: string, resources: readonly string[], verbs: readonly string[], resourceNames?: readonly string[]): Rule => ({ apiGroups: [group], resources, ...(resourceNames ? { resourceNames } : {}), verbs });
const because = (why: string, of: Rule): WrittenRule => ({ comment: why, rule: of });

export function namespace(name: string, more: Readonly<Record<string, string>> = {}): Mapping {
  return { apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels: { ...LABELS, ...more } } };
}

export function account(name: string, of: string): Mapping {
  return { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name, namespace: of, labels: LABELS } };
}

/** A role and its binding; without a namespace for the whole cluster. */
export function role(name: string, rules: readonly WrittenRule[], subject: { name: string; namespace: string }, of?: string): Mapping[] {
  const scope = of === undefined ? 'Cluster' : '';
  const metadata = { name, ...(of === undefined ? {} : { namespace: of }), labels: LABELS };
  return [
    { apiVersion: `${RBAC}/v1`, kind: `${scope}Role`, metadata, rules: rules.map((written): Template => ('rule' in written ? comment(written.comment, { ...written.rule }) : { ...written })) },
    { apiVersion: `${RBAC}/v1`, kind: `${scope}RoleBinding`, metadata, roleRef: { apiGroup: RBAC, kind: `${scope}Role`, name }, subjects: [{ kind: 'ServiceAccount', ...subject }] },
  ];
}

const READ = ['list', 'watch'];

export function agentRbac(): Mapping[] {
  const subject = { name: AGENT, namespace: AGENT_NAMESPACE };
  return [
    ...role(AGENT, [
      because('The node\'s own pods (it asks for no others), and one alone when it starts before the watch has told of it. A patch says to callers that a pod takes HBONE or mutual TLS, and takes it back.', rule('', ['pods'], ['get', ...READ, 'patch'])),
      because('Their labels.', rule('', ['namespaces'], READ)),
      because('One on a namespace or a pod whose label has a value that nobody knows, and how often it was so.', rule('', ['events'], ['create', 'get', 'patch'])),
    ], subject),
    ...role(AGENT, [because('Whether it ends because it is uninstalled: then it cleans up its node.', rule('apps', ['daemonsets'], ['get'], [AGENT]))], subject, AGENT_NAMESPACE),
  ];
}

/** For agents with --ca-pod-tokens alone. */
export function podTokensRbac(): Mapping[] {
  return role(`${AGENT}-pod-tokens`, [
    because("Where the CA does not let the agent ask for its node's pods. Kubernetes can't bind this right to the node: whoever takes over one agent can then have tokens of every service account of the cluster, while a CA that trusts the agent gives out identities of its node's pods only.", rule('', ['serviceaccounts/token'], ['create'])),
  ], { name: AGENT, namespace: AGENT_NAMESPACE });
}

export function pilotRbac(): Mapping[] {
  const subject = { name: PILOT_ACCOUNT, namespace: ROOT_NAMESPACE };
  const gatewayApi = 'gateway.networking.k8s.io';
  const routes = ['httproutes', 'grpcroutes', 'tlsroutes', 'tcproutes'];
  const webhooks = 'admissionregistration.k8s.io';
  return [
    ...role('underpass-pilot', [
      rule('', ['namespaces', 'nodes', 'serviceaccounts', 'services', 'pods', 'secrets', 'configmaps'], READ),
      rule('discovery.k8s.io', ['endpointslices'], READ),
      rule('networking.istio.io', ['gateways', 'virtualservices', 'destinationrules', 'serviceentries', 'workloadentries', 'workloadgroups', 'sidecars', 'envoyfilters'], READ),
      rule('security.istio.io', ['authorizationpolicies', 'peerauthentications', 'requestauthentications'], READ),
      rule('telemetry.istio.io', ['telemetries'], READ),
      rule('extensions.istio.io', ['wasmplugins'], READ),
      rule(gatewayApi, ['gatewayclasses', 'gateways', ...routes, 'referencegrants'], READ),
      because('Whose tokens callers have.', rule('authentication.k8s.io', ['tokenreviews'], ['create'])),
      because("The mesh's roots in every namespace.", rule('', ['configmaps'], ['create', 'patch'], ['istio-ca-root-cert'])),
      rule(gatewayApi, ['gatewayclasses', 'gateways', ...routes].map((kind) => `${kind}/status`), ['patch']),
      because('Whether an object is held back, and why.', rule('networking.istio.io', ['gateways', 'virtualservices', 'destinationrules', 'serviceentries', 'workloadentries', 'workloadgroups', 'sidecars', 'envoyfilters'].map((kind) => `${kind}/status`), ['patch'])),
      rule('security.istio.io', ['authorizationpolicies/status', 'requestauthentications/status'], ['patch']),
      because('What Gateways of the Gateway API bring up.', rule('', ['serviceaccounts', 'services'], ['create', 'patch', 'get'])),
      rule('apps', ['deployments'], ['create', 'patch', 'get', ...READ]),
      because('The CA of the webhooks; with a revision the names end in it.', rule(webhooks, ['mutatingwebhookconfigurations'], [...READ, 'patch'], ['underpass-sidecar-injector'])),
      rule(webhooks, ['validatingwebhookconfigurations'], [...READ, 'patch'], ['underpass-validator']),
    ], subject),
    ...role('underpass-pilot', [
      because('Which of several pilots writes.', rule('coordination.k8s.io', ['leases'], ['create'])),
      rule('coordination.k8s.io', ['leases'], ['get', 'patch'], ['underpass-pilot']),
      because('The self-signed CA that all pilots share.', rule('', ['secrets'], ['create'])),
      rule('', ['secrets'], ['get', 'patch'], ['underpass-ca']),
    ], subject, ROOT_NAMESPACE),
  ];
}

/** In a remote cluster: a kubeconfig with a token of this account goes into a Secret of the cluster that has the configuration. */
export function remoteRbac(): Mapping[] {
  const subject = { name: 'istio-reader', namespace: ROOT_NAMESPACE };
  return [
    account(subject.name, ROOT_NAMESPACE),
    ...role('underpass-remote-reader', [rule('', ['namespaces', 'nodes', 'serviceaccounts', 'services', 'pods'], READ), rule('discovery.k8s.io', ['endpointslices'], READ)], subject),
  ];
}
