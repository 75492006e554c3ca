/** The objects by which the API server comes to call the webhooks, with Istio's selectors. */
export interface ConfigurationOptions {
  revision: string;
  caPem: string;
  /** Where the API server finds the webhooks: a Service, or for a control plane outside of the cluster a URL. */
  target: { service: { name: string; namespace: string; port?: number } } | { url: string };
}

type Expression = { key: string; operator: 'In' | 'NotIn' | 'Exists' | 'DoesNotExist'; values?: string[] };

const expression = (key: string, operator: Expression['operator'], ...values: string[]): Expression => ({ key, operator, ...(values.length ? { values } : {}) });
const selector = (...matchExpressions: Expression[]): { matchExpressions: Expression[] } => ({ matchExpressions });

const INJECT = 'sidecar.istio.io/inject';
const INJECTION = 'istio-injection';
const REVISION = 'istio.io/rev';

/** Of the two objects: one pair a revision. */
export function configurationNames(revision: string): { mutating: string; validating: string } {
  const suffix = revision === 'default' ? '' : `-${revision}`;
  return { mutating: `underpass-sidecar-injector${suffix}`, validating: `underpass-validator${suffix}` };
}

export function webhookConfigurations({ revision, caPem, target }: ConfigurationOptions): object[] {
  const client = (path: string): object => {
    const to = 'url' in target ? { url: `${target.url.replace(/\/$/, '')}${path}` } : { service: { ...target.service, path } };
    return { ...to, caBundle: Buffer.from(caPem).toString('base64') };
  };
  const names = configurationNames(revision);
  const common = { admissionReviewVersions: ['v1'], sideEffects: 'None', failurePolicy: 'Fail', matchPolicy: 'Equivalent' };
  const pods = { ...common, clientConfig: client('/inject'), rules: [{ apiGroups: [''], apiVersions: ['v1'], operations: ['CREATE'], resources: ['pods'] }], reinvocationPolicy: 'Never' };
  const revisions = revision === 'default' ? expression(REVISION, 'DoesNotExist') : expression(REVISION, 'In', revision);
  // Namespaces of a mode that the node's proxy serves still have gateways: those ask for injection themselves.
  const webhooks = [
    ...(revision === 'default'
      ? [{ name: 'namespace.sidecar-injector.istio.io', namespaceSelector: selector(expression(INJECTION, 'In', 'enabled')), objectSelector: selector(expression(INJECT, 'NotIn', 'false')), ...pods }]
      : []),
    { name: 'rev.namespace.sidecar-injector.istio.io', namespaceSelector: selector(expression(REVISION, 'In', revision), expression(INJECTION, 'DoesNotExist')), objectSelector: selector(expression(INJECT, 'NotIn', 'false')), ...pods },
    { name: 'object.sidecar-injector.istio.io', namespaceSelector: selector(expression(INJECTION, 'DoesNotExist'), expression(REVISION, 'DoesNotExist')), objectSelector: selector(expression(INJECT, 'In', 'true'), revisions), ...pods },
    { name: 'mode.sidecar-injector.underpass.io', namespaceSelector: selector(expression('underpass.io/mode', 'In', 'sidecar')), objectSelector: selector(expression(INJECT, 'NotIn', 'false')), ...pods },
  ];
  const validated = ['networking.istio.io', 'security.istio.io', 'telemetry.istio.io', 'extensions.istio.io', 'gateway.networking.k8s.io'];
  return [
    { apiVersion: 'admissionregistration.k8s.io/v1', kind: 'MutatingWebhookConfiguration', metadata: { name: names.mutating, labels: { [REVISION]: revision } }, webhooks },
    {
      apiVersion: 'admissionregistration.k8s.io/v1',
      kind: 'ValidatingWebhookConfiguration',
      metadata: { name: names.validating, labels: { [REVISION]: revision } },
      webhooks: [{ name: 'validation.istio.io', ...common, clientConfig: client('/validate'), rules: [{ apiGroups: validated, apiVersions: ['*'], operations: ['CREATE', 'UPDATE'], resources: ['*'] }] }],
    },
  ];
}
