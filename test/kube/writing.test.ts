// What pilot writes to a real cluster: roots, status, proxies of Gateways, the webhooks' CA; one of several pilots does, and
// with the rights of the manifest, all of which it uses.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments, stringify } from 'yaml';
import { KubeClient } from '../../common/kube/client.js';
import { parseKubeconfig } from '../../common/kube/kubeconfig.js';
import { projectRoot } from '../../common/paths.js';
import { waitFor } from '../../common/retry.js';
import type { Condition, ConfigMap, Deployment, KubeGateway, KubeObject, RouteStatus, Secret, Service } from '../../common/kube/types.js';
import { bearer, createCertificate } from '../../pilot/ca/testing.js';
import { STATUS_KINDS } from '../../pilot/cluster-writer/istio-status.js';
import { issueServerCertificate } from '../../common/identity/server-certificate.js';
import { base64, KubeCluster, type AuditedRequest } from './cluster.js';
import { pilotKubeconfig, PILOT_USER, startPilot, type KubePilot } from './pilot.js';
import { Relay } from './relay.js';

const WAIT = { everyMs: 50 };
const LEASE_TIMES = { leaseMs: 3_000, renewMs: 2_000, retryMs: 200 };
const GATEWAY_API = 'gateway.networking.k8s.io/v1';

let folder: string;
let cluster: KubeCluster;
let kubeconfig: string;
let relay: Relay;
let kube: KubePilot;

const pilotOptions = { leaseTimes: LEASE_TIMES, security: { listen: ['127.0.0.1:0'], hosts: ['localhost'] } };

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'up-kube-writing-'));
  cluster = await KubeCluster.start();
  relay = new Relay();
  kubeconfig = (await pilotKubeconfig(cluster)).replace(cluster.url, `https://127.0.0.1:${await relay.listen(cluster.ports.api)}`);
  await cluster.namespace('shop');
  kube = await startPilot(kubeconfig, { ...pilotOptions, monitoringListen: '127.0.0.1:0', security: { ...pilotOptions.security, tokenReview: new KubeClient(parseKubeconfig(kubeconfig, { place: 'of the test' })) }, webhooks: { listen: '127.0.0.1:0', configurationsFile: join(folder, 'webhooks.yaml') } });
});
after(async () => {
  await kube?.pilot.stop();
  relay?.close();
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

const writes = (user = PILOT_USER): AuditedRequest[] => cluster.requests().filter((request) => request.user === user && ['create', 'patch', 'update', 'delete'].includes(request.verb));

test("the mesh's roots are in every namespace: a new one gets them, what somebody changes or deletes comes back, Kubernetes' own are left alone", async () => {
  const roots = async (namespace: string): Promise<string | undefined> => (await cluster.get<ConfigMap>('v1', 'ConfigMap', { namespace, name: 'istio-ca-root-cert' }))?.data?.['root-cert.pem'];
  const rootPem = kube.pilot.ca!.rootPem;
  const arrives = (namespace: string) => waitFor(`the roots in ${namespace}`, async () => (await roots(namespace)) === rootPem, WAIT);
  await arrives('shop');
  await arrives('istio-system');
  await cluster.namespace('later');
  await arrives('later');
  await cluster.apply('{apiVersion: v1, kind: ConfigMap, metadata: {name: istio-ca-root-cert, namespace: shop}, data: {root-cert.pem: other}}');
  await arrives('shop');
  await cluster.delete('v1', 'ConfigMap', { namespace: 'later', name: 'istio-ca-root-cert' });
  await arrives('later');
  assert.equal(await roots('kube-system'), undefined);
});

test("the webhooks' caBundle is written into the configurations, and the validator refuses what it can't be asked about; both again when somebody overwrites them, the rest stays as it was installed", async () => {
  const installed = parseAllDocuments(readFileSync(join(folder, 'webhooks.yaml'), 'utf8').replaceAll(/ *caBundle: .*\n/g, '')).map((document) => document.toJS() as KubeObject & { webhooks: { clientConfig: { caBundle?: string } }[] });
  assert.equal(installed.length, 2);
  // Not called: the object selectors match nothing.
  for (const { kind, webhooks } of installed) for (const webhook of webhooks) Object.assign(webhook, { objectSelector: { matchLabels: { nothing: 'has-it' } } }, kind.startsWith('Validating') ? { failurePolicy: 'Ignore' } : {});
  const wanted = Buffer.from(kube.pilot.ca!.rootPem).toString('base64');
  const bundles = async ({ apiVersion, kind, metadata }: KubeObject): Promise<Set<string | undefined>> => new Set((await cluster.get<(typeof installed)[0]>(apiVersion, kind, { name: metadata.name }))?.webhooks.map(({ clientConfig }) => clientConfig.caBundle));
  for (const object of installed) await cluster.apply(stringify(object));
  for (const object of installed) await waitFor(`the CA in ${object.kind}`, async () => [...(await bundles(object))].join() === wanted, WAIT);
  const policies = async (): Promise<unknown[]> => Promise.all(installed.map(async ({ apiVersion, kind, metadata }) => (await cluster.get<KubeObject & { webhooks: { failurePolicy: string }[] }>(apiVersion, kind, { name: metadata.name }))?.webhooks.map(({ failurePolicy }) => failurePolicy).find((policy) => policy !== 'Fail')));
  await waitFor('the policy', async () => (await policies()).join() === ',', WAIT);
  for (const object of installed) {
    for (const { clientConfig } of object.webhooks) clientConfig.caBundle = Buffer.from(readFileSync(join(cluster.folder, 'ca.crt'))).toString('base64');
    await cluster.apply(stringify(object));
    await waitFor(`the CA in ${object.kind} again`, async () => [...(await bundles(object))].join() === wanted, WAIT);
  }
  await waitFor('the policy again', async () => (await policies()).join() === ',', WAIT);
});

test("what makes that no pod starts without its proxy is put back in the injector's configuration; what an administrator may narrow is left, logged once and counted by webhook and field", async () => {
  const place = { name: 'underpass-sidecar-injector' };
  const get = async () => (await cluster.get<KubeObject & { webhooks: (Record<string, unknown> & { name: string; rules: object[] })[] }>('admissionregistration.k8s.io/v1', 'MutatingWebhookConfiguration', place))!;
  const before_ = await get();
  const ofOthers = { ...before_.webhooks[0]!, name: 'other.example.com', failurePolicy: 'Ignore' };
  const edited = before_.webhooks.slice(0, -1).map((webhook) => ({ ...webhook, failurePolicy: 'Ignore', sideEffects: 'NoneOnDryRun', admissionReviewVersions: ['v1beta1', 'v1'], timeoutSeconds: 3, rules: [{ apiGroups: [''], apiVersions: ['v1'], operations: ['DELETE'], resources: ['pods'], scope: '*' }] }));
  await cluster.merge('admissionregistration.k8s.io/v1', 'MutatingWebhookConfiguration', place, { webhooks: [...edited, ofOthers] });
  const kept = (webhook: Record<string, unknown> | undefined): unknown => webhook && [webhook['failurePolicy'], webhook['sideEffects'], webhook['admissionReviewVersions'], webhook['rules']];
  await waitFor('it to be put right', async () => (await get()).webhooks.every((webhook) => webhook.name === ofOthers.name || JSON.stringify(kept(webhook)) === JSON.stringify(kept(before_.webhooks.find(({ name }) => name === webhook.name)))), WAIT);
  const { webhooks } = await get();
  assert.deepEqual(webhooks.map(({ name, timeoutSeconds, objectSelector, failurePolicy }) => [name, timeoutSeconds, objectSelector, failurePolicy]), [
    ...edited.map(({ name }) => [name, 3, { matchLabels: { nothing: 'has-it' } }, 'Fail']),
    [ofOthers.name, 10, { matchLabels: { nothing: 'has-it' } }, 'Ignore'],
  ]);
  const told = (): string[] => kube.log.filter((line) => line.includes('mode.sidecar-injector.underpass.io is not there') && line.includes('timeoutSeconds'));
  await waitFor('the log', () => told().length > 0, WAIT);
  assert.equal(told().length, 1);
  const metrics = await (await fetch(`http://${kube.pilot.monitoringAddress}/metrics`)).text();
  const counted = [...metrics.matchAll(/^underpass_pilot_webhook_deviations\{configuration="underpass-sidecar-injector",webhook="([^"]*)",field="([^"]*)"\} 1$/gm)].map(([, webhook, field]) => `${webhook} ${field}`);
  assert.deepEqual(counted.sort(), ['mode.sidecar-injector.underpass.io name', ...edited.flatMap(({ name }) => [`${name} objectSelector`, `${name} timeoutSeconds`])].sort());
});

test("the CA's Secret: an exchange of the root that one pilot begins is the other's too, and reaches the ConfigMaps; one that is deleted is written again with the same key", async () => {
  const other = await startPilot(kubeconfig, pilotOptions);
  const secret = { namespace: 'istio-system', name: 'underpass-ca' };
  const bundle = async (): Promise<string | undefined> => (await cluster.get<ConfigMap>('v1', 'ConfigMap', { namespace: 'shop', name: 'istio-ca-root-cert' }))?.data?.['root-cert.pem'];
  try {
    const [own, others] = [kube.pilot.ca!, other.pilot.ca!];
    assert.equal(own.rootPem, others.rootPem);
    const before = own.rootPem;
    await others.introduceRoot();
    await waitFor('both roots', () => own.phase === 'introduced' && own.rootPem === others.rootPem && own.since === others.since, WAIT);
    await waitFor('the bundle', async () => (await bundle()) === others.rootPem, WAIT);
    // Both at once, as the clock would have it: one is first, and the other takes that over.
    const steps = await Promise.allSettled([own.switchRoot(), others.switchRoot()]);
    assert.equal(steps.filter(({ status }) => status === 'fulfilled').length, 1);
    await waitFor('one key', () => own.phase === 'retiring' && others.phase === 'retiring' && own.material.privateKeyPem === others.material.privateKeyPem, WAIT);
    await waitFor('what one may take over is what the other may write', () => own.retireRoot().then(() => true, () => false), WAIT);
    await waitFor('the new root alone', () => others.phase === 'steady', WAIT);
    assert.ok(!others.rootPem.includes(before.trim()));
    const { data } = (await cluster.get<Secret>('v1', 'Secret', secret))!;
    assert.deepEqual(Object.keys(data!).sort(), ['ca-cert.pem', 'ca-key.pem', 'since']);
    await cluster.delete('v1', 'Secret', secret);
    await waitFor('the Secret', async () => (await cluster.get<Secret>('v1', 'Secret', secret))?.data?.['ca-key.pem'] === data!['ca-key.pem'], WAIT);
    await cluster.merge('v1', 'Secret', secret, { data: { 'ca-key.pem': base64('nonsense') } });
    await waitFor('the refusal', () => kube.log.some((line) => line.includes('ca-key.pem: no private key')), WAIT);
    assert.equal(own.material.privateKeyPem, Buffer.from(data!['ca-key.pem']!, 'base64').toString());
    await cluster.merge('v1', 'Secret', secret, { data });
    for (const { log } of [kube, other]) assert.ok(!log.some((line) => line.includes('PRIVATE KEY')));
  } finally {
    await other.pilot.stop();
  }
});

const conditionsOf = (conditions: readonly Condition[] | undefined): Record<string, string> => Object.fromEntries((conditions ?? []).map(({ type, status, reason }) => [type, `${status} ${reason}`]));
const gateway = (): Promise<KubeGateway | undefined> => cluster.get<KubeGateway>(GATEWAY_API, 'Gateway', { namespace: 'shop', name: 'web' });
const GATEWAY = `
apiVersion: ${GATEWAY_API}
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: underpass
  listeners:
    - {name: http, port: 80, protocol: HTTP}
    - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-cert, namespace: elsewhere}]}}
---`;
const ROUTE = `
apiVersion: ${GATEWAY_API}
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: web, sectionName: http}], rules: [{backendRefs: [{name: nowhere, port: 80}]}]}
---`;

test('a Gateway brings up its ServiceAccount, Deployment and Service, owned by it; what somebody deletes comes again', async () => {
  await cluster.apply(`{apiVersion: ${GATEWAY_API}, kind: GatewayClass, metadata: {name: underpass}, spec: {controllerName: underpass.io/gateway-controller}}\n---\n${GATEWAY}`);
  const place = { namespace: 'shop', name: 'web-underpass' };
  const deployment = await waitFor('the Deployment', () => cluster.get<Deployment>('apps/v1', 'Deployment', place), WAIT);
  const service = await waitFor('the Service', () => cluster.get<Service>('v1', 'Service', place), WAIT);
  assert.ok(await cluster.get('v1', 'ServiceAccount', place));
  assert.equal(deployment.spec.template.spec.containers[0]?.name, 'istio-proxy');
  assert.deepEqual(service.spec.ports?.map(({ port }) => port), [15021, 80, 443]);
  const { metadata } = (await gateway())!;
  for (const { metadata: { ownerReferences } } of [deployment, service]) assert.deepEqual(ownerReferences?.map(({ kind, uid }) => [kind, uid]), [['Gateway', metadata.uid]]);
  for (const { apiVersion, kind, metadata: { uid } } of [deployment, service]) {
    await cluster.delete(apiVersion, kind, place);
    await waitFor(`another ${kind}`, async () => ![undefined, uid].includes((await cluster.get(apiVersion, kind, place))?.metadata.uid), WAIT);
  }
});

test("what somebody else made under a name that a Gateway's proxy would have is left as it is, and its other parts come", async () => {
  const place = { namespace: 'shop', name: 'theirs' };
  await cluster.apply('apiVersion: v1\nkind: Service\nmetadata: {name: theirs, namespace: shop}\nspec: {selector: {app: theirs}, ports: [{name: http, port: 8080}]}\n');
  await cluster.apply(GATEWAY.replace('name: web, namespace: shop', "name: greedy, namespace: shop, annotations: {gateway.istio.io/name-override: theirs}"));
  await waitFor('the Deployment', () => cluster.get('apps/v1', 'Deployment', place), WAIT);
  await waitFor('the words', () => kube.log.some((line) => line.includes('left alone what is there')), WAIT);
  const service = await cluster.get<Service>('v1', 'Service', place);
  assert.deepEqual([service?.spec.selector, service?.spec.ports?.map(({ port }) => port), service?.metadata.ownerReferences], [{ app: 'theirs' }, [8080], undefined]);
  await cluster.delete(GATEWAY_API, 'Gateway', { namespace: 'shop', name: 'greedy' });
  // No garbage collector runs here.
  for (const [apiVersion, kind] of [['apps/v1', 'Deployment'], ['v1', 'ServiceAccount'], ['v1', 'Service']] as const) await cluster.delete(apiVersion, kind, place);
});

test("status of the Gateway API: class, Gateway with the load balancer's address, listeners, attached routes; a later change moves only what it changes", async () => {
  const gatewayConditions = async (): Promise<string | undefined> => conditionsOf((await gateway())?.status?.conditions)['Programmed'];
  await waitFor('no address yet', async () => (await gatewayConditions()) === 'False AddressNotAssigned', WAIT);
  assert.deepEqual(conditionsOf((await cluster.get<KubeObject & { status: { conditions: Condition[] } }>(GATEWAY_API, 'GatewayClass', { name: 'underpass' }))?.status.conditions), { Accepted: 'True Accepted' });
  await cluster.setStatus('v1', 'Service', { namespace: 'shop', name: 'web-underpass' }, { loadBalancer: { ingress: [{ ip: '10.7.0.1' }] } });
  await waitFor('Programmed', async () => (await gatewayConditions()) === 'True Programmed', WAIT);
  const before = (await gateway())!;
  assert.deepEqual(before.status?.addresses, [{ type: 'IPAddress', value: '10.7.0.1' }]);
  assert.deepEqual(conditionsOf(before.status?.conditions), { Accepted: 'True Accepted', Programmed: 'True Programmed' });
  const [http, https] = before.status?.listeners ?? [];
  assert.deepEqual([http?.attachedRoutes, conditionsOf(http?.conditions)], [0, { Accepted: 'True Accepted', Conflicted: 'False NoConflicts', ResolvedRefs: 'True ResolvedRefs', Programmed: 'True Programmed' }]);
  assert.deepEqual(conditionsOf(https?.conditions), { Accepted: 'True Accepted', Conflicted: 'False NoConflicts', ResolvedRefs: 'False RefNotPermitted', Programmed: 'False Invalid' });
  // As if it had been said long ago.
  const conditions = before.status!.conditions!.map((condition) => ({ ...condition, lastTransitionTime: '2026-01-01T00:00:00Z' }));
  await cluster.setStatus(GATEWAY_API, 'Gateway', { namespace: 'shop', name: 'web' }, { conditions });
  await cluster.apply(ROUTE);
  await waitFor('the route', async () => (await gateway())?.status?.listeners?.[0]?.attachedRoutes === 1, WAIT);
  assert.deepEqual((await gateway())?.status?.conditions, conditions, 'times of conditions that stayed the same');
});

test('a certificate that comes later is a change of its Gateway\'s status, as is the consent to use it', async () => {
  const https = async (): Promise<Record<string, string>> => conditionsOf((await gateway())?.status?.listeners?.find(({ name }) => name === 'https')?.conditions);
  await cluster.namespace('elsewhere');
  await cluster.apply("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: web, namespace: elsewhere}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret}]}\n");
  await waitFor('a Secret that is not there', async () => (await https())['ResolvedRefs'] === 'False InvalidCertificateRef', WAIT);
  const { certificatePem, privateKeyPem } = await issueServerCertificate(cluster.ca, { dnsNames: ['web.test'] });
  await cluster.apply(JSON.stringify({ apiVersion: 'v1', kind: 'Secret', type: 'kubernetes.io/tls', metadata: { name: 'web-cert', namespace: 'elsewhere' }, data: { 'tls.crt': base64(certificatePem), 'tls.key': base64(privateKeyPem) } }));
  await waitFor('its certificate', async () => (await https())['Programmed'] === 'True Programmed', WAIT);
});

test("status of a route: what its parents say and what its backends lack; another controller's words stay; a parent that is no more is taken out", async () => {
  const parents = async (): Promise<RouteStatus['parents']> => (await cluster.get<KubeObject & { status?: RouteStatus }>(GATEWAY_API, 'HTTPRoute', { namespace: 'shop', name: 'web' }))?.status?.parents ?? [];
  const own = (all: RouteStatus['parents']) => all.filter(({ controllerName }) => controllerName === 'underpass.io/gateway-controller');
  const [parent] = await waitFor('its parent', async () => own(await parents()), WAIT);
  assert.deepEqual(conditionsOf(parent?.conditions), { Accepted: 'True Accepted', ResolvedRefs: 'False BackendNotFound' });
  const other = { parentRef: { name: 'web' }, controllerName: 'example.com/other', conditions: [{ type: 'Accepted', status: 'True', reason: 'Accepted', message: '', lastTransitionTime: '2026-01-01T00:00:00Z' }] };
  await cluster.setStatus(GATEWAY_API, 'HTTPRoute', { namespace: 'shop', name: 'web' }, { parents: [...(await parents()), other] });
  await cluster.apply('apiVersion: v1\nkind: Service\nmetadata: {name: nowhere, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n');
  await waitFor('its backend', async () => conditionsOf(own(await parents())[0]?.conditions)['ResolvedRefs'] === 'True ResolvedRefs', WAIT);
  assert.equal((await parents()).length, 2);
  await cluster.apply(ROUTE.replace('name: web, sectionName: http', 'name: others-gateway'));
  await waitFor('the other alone', async () => (await parents()).map(({ controllerName }) => controllerName).join() === 'example.com/other', WAIT);
  await waitFor('no route attached', async () => (await gateway())?.status?.listeners?.[0]?.attachedRoutes === 0, WAIT);
});

test('what is written once and holds is not written again: a quiet cluster sees nothing but the lease', async () => {
  const renewals = async (): Promise<void> => {
    const from = writes().length;
    await waitFor('time for it', () => writes().length >= from + 5, WAIT);
  };
  // The log has a write a moment after it can be seen.
  await renewals();
  const at = writes().filter(({ resource }) => resource !== 'leases').length;
  // A change that concerns status and roots has all of it looked at again.
  await cluster.apply('apiVersion: v1\nkind: Service\nmetadata: {name: quiet, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {some: label}}}');
  await waitFor('the change', () => kube.pilot.object('/Namespace//shop')?.metadata.labels?.['some'] === 'label', WAIT);
  await renewals();
  assert.deepEqual(writes().filter(({ resource }) => resource !== 'leases').slice(at), []);
});

test("status of Istio's objects: one that is held back says so and why, by PassedAnalysis; mended it is True; others' conditions stay, and a good one is not written to", async () => {
  const MISTAKES: Record<string, [apiVersion: string, spec: string, field: string]> = {
    Gateway: ['networking.istio.io/v1', '{selector: {a: b}, servers: [{port: {number: 80, name: http, protocol: NONE}, hosts: [a.b]}]}', 'protocol'],
    VirtualService: ['networking.istio.io/v1', '{hosts: [web], http: [{route: [{destination: {host: web}}], redirect: {uri: /x}}]}', 'spec.http[0].redirect'],
    DestinationRule: ['networking.istio.io/v1', '{host: web, trafficPolicy: {}}', 'spec.trafficPolicy'],
    ServiceEntry: ['networking.istio.io/v1', '{hosts: [a.b], resolution: STATIC, addresses: [10.0.0], ports: [{number: 80, name: http}], endpoints: [{address: 10.0.0.1}]}', 'spec.addresses[0]'],
    WorkloadEntry: ['networking.istio.io/v1', '{address: "a b"}', 'spec.address'],
    WorkloadGroup: ['networking.istio.io/v1', '{template: {}, probe: {periodSeconds: 1}}', 'spec.probe'],
    Sidecar: ['networking.istio.io/v1', '{workloadSelector: {labels: {a: b}}}', 'spec'],
    EnvoyFilter: ['networking.istio.io/v1alpha3', '{configPatches: [{patch: {operation: ADD, value: {name: a}}}]}', 'spec.configPatches[0].applyTo'],
    AuthorizationPolicy: ['security.istio.io/v1', '{action: DENY}', 'spec.rules'],
    RequestAuthentication: ['security.istio.io/v1', '{jwtRules: [{audiences: [a]}]}', 'spec.jwtRules[0].issuer'],
  };
  assert.deepEqual(Object.keys(MISTAKES), STATUS_KINDS);
  const place = { namespace: 'shop', name: 'wrong' };
  const written = (kind: string, spec: string): string => `apiVersion: ${MISTAKES[kind]![0]}\nkind: ${kind}\nmetadata: {name: wrong, namespace: shop}\nspec: ${spec}\n`;
  const statusOf = async (kind: string): Promise<Condition[]> => (await cluster.get<KubeObject & { status?: { conditions?: Condition[] } }>(MISTAKES[kind]![0], kind, place))?.status?.conditions ?? [];
  const isSaid = async (kind: string, status: string): Promise<Condition | undefined> => (await statusOf(kind)).find((item) => item.type === 'PassedAnalysis' && item.status === status);
  for (const [kind, [, spec]] of Object.entries(MISTAKES)) await cluster.apply(written(kind, spec));
  for (const [kind, [, , field]] of Object.entries(MISTAKES)) {
    const condition = await waitFor(`the word of ${kind}`, () => isSaid(kind, 'False'), WAIT).catch((error: unknown) => assert.fail(`${String(error)}: ${JSON.stringify(kube.pilot.status().problems.filter((problem) => problem.kind === kind))}`));
    assert.equal(condition.reason, 'ErrorsFound');
    assert.ok(condition.message!.startsWith('the last good version stays in force: ') && condition.message!.includes(field), condition.message);
  }
  // One that refers to what is not there is good by itself: it is held back all the same. Another controller has said something of it.
  const route = (subset: string): string => written('VirtualService', `{hosts: [nowhere], http: [{route: [{destination: {host: nowhere${subset}}}]}]}`);
  const other = { type: 'example.com/Seen', status: 'True', reason: 'Seen', message: 'yes', lastTransitionTime: '2026-01-01T00:00:00Z' };
  await cluster.setStatus('networking.istio.io/v1', 'VirtualService', place, { conditions: [...(await statusOf('VirtualService')), other] });
  await cluster.apply('apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: nowhere, namespace: shop}\nspec: {host: nowhere, subsets: [{name: v1, labels: {version: v1}}]}\n');
  await cluster.delete('networking.istio.io/v1', 'VirtualService', place);
  await cluster.apply(route(', subset: v2'));
  await waitFor('the missing subset', async () => (await isSaid('VirtualService', 'False'))?.message?.includes('v2'), WAIT);
  await cluster.setStatus('networking.istio.io/v1', 'VirtualService', place, { conditions: [...(await statusOf('VirtualService')), other] });
  await cluster.apply(route(', subset: v1'));
  await waitFor('that it is mended', () => isSaid('VirtualService', 'True'), WAIT);
  assert.deepEqual((await statusOf('VirtualService')).find(({ type }) => type === other.type), other);
  assert.ok(kube.pilot.object('networking.istio.io/VirtualService/shop/wrong'), 'in force');
  // What pilot says of it is no change of it.
  const pushes = (): number => kube.log.filter((line) => line.includes('pushing changes')).length;
  await waitFor('quiet', () => kube.pilot.status().settled, WAIT);
  const before = pushes();
  await cluster.setStatus('networking.istio.io/v1', 'VirtualService', place, { conditions: [other] });
  await cluster.apply('apiVersion: v1\nkind: Service\nmetadata: {name: after, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n');
  await waitFor('what came after it', () => kube.pilot.object('/Service/shop/after'), WAIT);
  await waitFor('quiet', () => kube.pilot.status().settled, WAIT);
  assert.equal(pushes() - before, 1);
  assert.deepEqual(await statusOf('VirtualService'), [other], 'of a good one nothing is said');
  for (const [kind, [apiVersion]] of Object.entries(MISTAKES)) await cluster.delete(apiVersion, kind, place);
});

test("the rights of deploy/pilot-rbac.yaml are all used, and no other is asked for", async () => {
  const routes = (apiVersion: string, kind: string, rest: object): string => stringify({ apiVersion, kind, metadata: { name: kind.toLowerCase(), namespace: 'shop' }, spec: { parentRefs: [{ name: 'web' }], rules: [{ backendRefs: [{ name: 'nowhere', port: 80 }] }], ...rest } });
  await cluster.apply([routes(GATEWAY_API, 'GRPCRoute', {}), routes('gateway.networking.k8s.io/v1alpha2', 'TCPRoute', {}), routes('gateway.networking.k8s.io/v1alpha2', 'TLSRoute', { hostnames: ['web.test'] })].join('---\n'));
  // A caller's token is what TokenReview is for.
  await createCertificate({ csr: '' }, { address: kube.pilot.secureAddresses[0]!.replace('127.0.0.1', 'localhost'), rootPem: kube.pilot.ca!.rootPem, metadata: bearer('none') });
  const granted = new Set(
    parseAllDocuments(readFileSync(join(projectRoot, 'deploy', 'pilot-rbac.yaml'), 'utf8'))
      .map((document) => document.toJS() as { rules?: { apiGroups: string[]; resources: string[]; verbs: string[] }[] })
      .flatMap(({ rules = [] }) => rules)
      .flatMap(({ apiGroups, resources, verbs }) => resources.flatMap((resource) => verbs.map((verb) => `${verb} ${apiGroups[0]}/${resource}`))),
  );
  const used = (): Set<string> =>
    new Set(cluster.requests().filter(({ user }) => user === PILOT_USER).flatMap(({ verb, group, resource, subresource, code }) => {
      const what = `${group}/${resource}${subresource ? `/${subresource}` : ''}`;
      // What apply makes anew needs both rights.
      return verb === 'patch' && code === 201 ? [`patch ${what}`, `create ${what}`] : [`${verb} ${what}`];
    }));
  await waitFor('the last one', () => used().size >= granted.size, WAIT).catch(() => undefined);
  assert.deepEqual([...used()].sort(), [...granted].sort());
  assert.deepEqual(cluster.requests().filter(({ user, code }) => user === PILOT_USER && code === 403), []);
});

test('of two pilots one writes; when it is cut off it stops by itself and the other takes over, and when that one ends the first does', async () => {
  const bindings = parseAllDocuments(readFileSync(join(projectRoot, 'deploy', 'pilot-rbac.yaml'), 'utf8')).map((document) => document.toJS() as KubeObject & { subjects: object[] }).filter(({ kind }) => kind.endsWith('Binding'));
  await cluster.apply([
    { apiVersion: 'v1', kind: 'ServiceAccount', metadata: { name: 'second', namespace: 'istio-system' } },
    ...bindings.map((binding) => ({ ...binding, metadata: { ...binding.metadata, name: 'second' }, subjects: [{ kind: 'ServiceAccount', name: 'second', namespace: 'istio-system' }] })),
  ].map((object) => stringify(object)).join('---\n'));
  const SECOND = 'system:serviceaccount:istio-system:second';
  const second = await startPilot(await cluster.kubeconfigOf('istio-system', 'second'), pilotOptions);
  try {
    const asked = (): number => cluster.requests().filter(({ user, resource }) => user === SECOND && resource === 'leases').length;
    await waitFor('a waiting pilot', () => asked() > 5, WAIT);
    assert.deepEqual([writes(SECOND), kube.pilot.status().isWriter, second.pilot.status().isWriter], [[], true, false]);
    relay.cut(true);
    await waitFor('the end of its term', () => !kube.pilot.status().isWriter, WAIT);
    const roots = { namespace: 'shop', name: 'istio-ca-root-cert' };
    // What is deleted is written again, by whoever writes now.
    const isTheWriter = async ({ pilot }: KubePilot, user: string): Promise<void> => {
      await waitFor('its term', () => pilot.status().isWriter, WAIT);
      const before = writes(user).length;
      await cluster.delete('v1', 'ConfigMap', roots);
      await waitFor('the roots', () => cluster.get('v1', 'ConfigMap', roots), WAIT);
      await waitFor('its write', () => writes(user).slice(before).some(({ resource }) => resource === 'configmaps'), WAIT);
    };
    await isTheWriter(second, SECOND);
    relay.cut(false);
    const [readings, written] = [cluster.requests().filter(({ user, resource }) => user === PILOT_USER && resource === 'leases').length, writes().length];
    await waitFor('the first, which waits now', () => cluster.requests().filter(({ user, resource }) => user === PILOT_USER && resource === 'leases').length > readings + 5, WAIT);
    assert.equal(writes().length, written);
    await second.pilot.stop();
    await isTheWriter(kube, PILOT_USER);
    const lease = await cluster.get<KubeObject & { spec: { leaseTransitions: number } }>('coordination.k8s.io/v1', 'Lease', { namespace: 'istio-system', name: 'underpass-pilot' });
    assert.equal(lease?.spec.leaseTransitions, 2);
  } finally {
    await second.pilot.stop();
  }
});

test('a right that is missing: what it was for is not done, the log names verb and resource, all else goes on', async () => {
  await cluster.apply('{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: istio-system}}');
  const [role] = parseAllDocuments(readFileSync(join(projectRoot, 'deploy', 'pilot-rbac.yaml'), 'utf8')).map((document) => document.toJS() as KubeObject & { rules?: { verbs: string[] }[] }).filter(({ kind }) => kind === 'ClusterRole');
  const rules = role!.rules!.filter(({ verbs }) => verbs.includes('list'));
  await cluster.apply([
    { apiVersion: role!.apiVersion, kind: 'ClusterRole', metadata: { name: 'reader' }, rules },
    // The CA that all share is what none can do without.
    { apiVersion: role!.apiVersion, kind: 'Role', metadata: { name: 'reader', namespace: 'istio-system' }, rules: [{ apiGroups: [''], resources: ['secrets'], resourceNames: ['underpass-ca'], verbs: ['get'] }] },
    { apiVersion: role!.apiVersion, kind: 'RoleBinding', metadata: { name: 'reader', namespace: 'istio-system' }, roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'reader' }, subjects: [{ kind: 'ServiceAccount', name: 'reader', namespace: 'istio-system' }] },
    { apiVersion: role!.apiVersion, kind: 'ClusterRoleBinding', metadata: { name: 'reader' }, roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'reader' }, subjects: [{ kind: 'ServiceAccount', name: 'reader', namespace: 'istio-system' }] },
  ].map((object) => stringify(object)).join('---\n'));
  const reader = await startPilot(await cluster.kubeconfigOf('istio-system', 'reader'), pilotOptions);
  try {
    await waitFor('the words', () => reader.log.some((line) => line.includes('cannot get resource \\"leases\\"') && /deploy\/pilot-rbac\.yaml:\d+ has the rule that is missing/.test(line)), WAIT);
    assert.ok(reader.pilot.object('/Service/shop/nowhere'));
    assert.equal(reader.log.filter((line) => line.includes('cannot get resource')).length, 1);
  } finally {
    await reader.pilot.stop();
  }
});
