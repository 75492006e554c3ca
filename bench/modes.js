/** The worlds that are compared, as plain Kubernetes and Istio YAML. */
import { join } from 'node:path';
import { buildDir } from '../common/paths.js';
import { collectorObjects, tracing } from './traces.js';
import { namespaceOf, REWRITTEN_PATH, workloadsOf } from './workloads.js';
export const HTTP_PORT = 80;
export const TCP_PORT = 9000;
/** Not the servers' own: a port that a Service has is one for which Envoy is asked, whichever address is dialled. */
export const TCP_SERVICE_PORT = 9100;
export const CLIENT = 'client';
export const SERVERS = ['nginx-v1', 'nginx-v2'];
export const TCP_SERVER = 'tcp-server';
export const tcpBench = join(buildDir, 'tcp-bench');
/** Plain, by sidecars and by HBONE, over the same network. */
function betweenNodes(protocol) {
    const common = { protocol, betweenNodes: true };
    const what = protocol === 'http' ? 'HTTP' : 'TCP';
    const by = protocol === 'http' ? 'Service and canary route' : 'Service';
    return [
        { ...common, id: `nodes-${protocol}`, title: `between nodes: ${what}, no mesh`, namespace: `nodes-${protocol}`, target: 'pod', sharedProxy: false, namespaceLabels: {}, description: `${what} straight to the address of a pod on another node` },
        { ...common, id: `nodes-${protocol}-sidecars`, title: `between nodes: ${what}, sidecars`, namespace: `nodes-${protocol}-sidecars`, target: 'service', sharedProxy: false, namespaceLabels: { 'istio-injection': 'enabled' }, description: `the same by its ${by}: an Envoy in each pod, mutual TLS between them` },
        { ...common, id: `nodes-${protocol}-hbone`, title: `between nodes: ${what}, HBONE`, namespace: `nodes-${protocol}-hbone`, target: 'service', sharedProxy: true, namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'bpf' }, hbone: true, description: `the same by its ${by}: one Envoy on each node, HBONE between them` },
    ];
}
export const MODES = [
    {
        id: 'no-mesh',
        title: 'no mesh',
        protocol: 'http',
        namespace: 'no-mesh',
        target: 'pod',
        sharedProxy: false,
        namespaceLabels: {},
        description: 'HTTP straight to one pod\'s address, with no Service, no address translation and no routing: the cheapest way there is, and one that no mesh gives',
    },
    {
        id: 'sidecars',
        title: 'sidecars',
        protocol: 'http',
        namespace: 'sidecars',
        target: 'service',
        sharedProxy: false,
        namespaceLabels: { 'istio-injection': 'enabled' },
        description: 'an Envoy in the client\'s and in each server\'s pod, mTLS between them, Istio\'s iptables rules; header route and 75/25 canary',
    },
    {
        id: 'sidecars-short-circuited',
        title: 'sidecars, short-circuited',
        protocol: 'http',
        namespace: 'sidecars-short',
        target: 'service',
        sharedProxy: false,
        namespaceLabels: { 'underpass.io/mode': 'sidecar' },
        description: 'the same sidecars, mTLS and routes; their sockets are paired by BPF (underpass.io/mode=sidecar)',
    },
    {
        id: 'shared-iptables',
        title: 'shared proxy, iptables',
        protocol: 'http',
        namespace: 'shared-iptables',
        target: 'service',
        sharedProxy: true,
        namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'iptables' },
        description: 'one Envoy for the node, reached by iptables redirection: the fallback where BPF can\'t be used; the same routes',
    },
    {
        id: 'shared-bpf',
        title: 'shared proxy, BPF',
        protocol: 'http',
        namespace: 'shared-bpf',
        target: 'service',
        sharedProxy: true,
        namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'bpf' },
        description: 'one Envoy for the node, reached by BPF, both hops short-circuited; the same routes',
    },
    {
        id: 'fast-path',
        title: 'HTTP fast path',
        protocol: 'http',
        namespace: 'fast-path',
        target: 'service',
        sharedProxy: true,
        allowed: true,
        namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'bpf', 'underpass.io/acceleration': 'l7' },
        description: 'the same routes, and the servers let in the client\'s service account and paths below / alone: what Envoy has shown the way of once, the kernel moves from the client\'s socket into the server\'s (underpass.io/acceleration=l7)',
    },
    {
        id: 'tcp-no-mesh',
        title: 'plain TCP, no mesh',
        protocol: 'tcp',
        namespace: 'tcp-no-mesh',
        target: 'pod',
        sharedProxy: false,
        namespaceLabels: {},
        description: 'TCP from pod to pod over the node\'s bridge',
    },
    {
        id: 'tcp-short-circuited',
        title: 'plain TCP, short-circuited',
        protocol: 'tcp',
        namespace: 'tcp-short',
        target: 'pod',
        sharedProxy: true,
        namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'bpf' },
        description: 'the same programs in enrolled pods: the two sockets are paired, no proxy is met',
    },
    {
        id: 'tcp-service',
        title: 'TCP by a Service, short-circuited',
        protocol: 'tcp',
        namespace: 'tcp-service',
        target: 'service',
        sharedProxy: true,
        namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'bpf' },
        description: 'the same by the Service\'s address: connect() draws the endpoint, no proxy is met',
    },
    {
        id: 'tcp-policy',
        title: 'TCP by a Service with an ALLOW policy',
        protocol: 'tcp',
        namespace: 'tcp-policy',
        target: 'service',
        sharedProxy: true,
        allowed: true,
        namespaceLabels: { 'underpass.io/mode': 'node', 'underpass.io/redirection': 'bpf' },
        description: 'the same, and the server lets in the client\'s service account alone: the kernel judges it at connect()',
    },
    ...['http', 'tcp'].flatMap(betweenNodes),
];
export function modeById(id) {
    return MODES.find((mode) => mode.id === id);
}
export const NODES = ['node-1', 'node-2'];
function isResolved({ protocol, sharedProxy, betweenNodes }) {
    return protocol === 'tcp' && sharedProxy && !betweenNodes;
}
function pod(mode, name, labels, container) {
    // A pod that asks for addresses only, or whose Services are decided at connect(), meets no rule for Services on its way.
    const annotations = mode.target === 'pod' || isResolved(mode) ? { 'lab.underpass.io/service-proxy': 'none' } : {};
    return { apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace: mode.namespace, labels, annotations }, spec: { nodeName: NODES[mode.betweenNodes && name !== CLIENT ? 1 : 0], containers: [container] } };
}
/** Who else calls pods of this app is refused. */
function allowing({ namespace }, app, more = {}) {
    const principals = [`cluster.local/ns/${namespace}/sa/default`];
    return { apiVersion: 'security.istio.io/v1', kind: 'AuthorizationPolicy', metadata: { name: app, namespace }, spec: { selector: { matchLabels: { app } }, action: 'ALLOW', rules: [{ from: [{ source: { principals } }], ...more }] } };
}
/** One namespace of a mode: a client, its servers, and the canary's routes where the mode asks a Service. */
export function modeObjects(mode, variant) {
    const { namespace } = mode;
    const objects = [
        { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace, labels: mode.namespaceLabels } },
        pod(mode, CLIENT, { app: 'client' }, { name: 'client', image: 'client' }),
    ];
    if (mode.protocol === 'tcp') {
        const ports = [{ name: 'tcp', containerPort: TCP_PORT }];
        objects.push(pod(mode, TCP_SERVER, { app: TCP_SERVER }, { name: 'server', image: 'underpass/tcp-bench', command: [tcpBench, 'server', '--port', String(TCP_PORT)], ports }));
        if (mode.target === 'service')
            objects.push({ apiVersion: 'v1', kind: 'Service', metadata: { name: TCP_SERVER, namespace }, spec: { selector: { app: TCP_SERVER }, ports: [{ name: 'tcp', port: TCP_SERVICE_PORT, targetPort: TCP_PORT }] } });
        if (mode.allowed)
            objects.push(allowing(mode, TCP_SERVER));
        return objects;
    }
    for (const name of SERVERS) {
        const version = name.slice(name.lastIndexOf('-') + 1);
        objects.push(pod(mode, name, { app: 'nginx', version }, { name: 'nginx', image: 'nginx', ports: [{ name: 'http', containerPort: HTTP_PORT }] }));
    }
    if (mode.target === 'pod')
        return objects;
    if (mode.allowed)
        objects.push(allowing(mode, 'nginx', { to: [{ operation: { paths: ['/*'] } }] }));
    if (variant === 'traced')
        objects.push(tracing(namespace));
    const route = (subset, weight) => ({ destination: { host: 'nginx', subset }, ...(weight === undefined ? {} : { weight }) });
    const canary = [route('v1', 75), route('v2', 25)];
    objects.push({
        apiVersion: 'v1',
        kind: 'Service',
        metadata: { name: 'nginx', namespace },
        spec: { selector: { app: 'nginx' }, ports: [{ name: 'http', port: HTTP_PORT, targetPort: HTTP_PORT }] },
    }, {
        apiVersion: 'networking.istio.io/v1',
        kind: 'VirtualService',
        metadata: { name: 'nginx', namespace },
        spec: {
            hosts: ['nginx'],
            http: [
                { name: 'jesse', match: [{ headers: { user: { exact: 'jesse' } } }], route: [route('v2')] },
                ...(variant === 'mixed' ? [{ name: 'rewritten', match: [{ uri: { prefix: REWRITTEN_PATH } }], rewrite: { uri: '/' }, route: canary }] : []),
                { name: 'canary', route: canary },
            ],
        },
    }, {
        apiVersion: 'networking.istio.io/v1',
        kind: 'DestinationRule',
        metadata: { name: 'nginx', namespace },
        spec: { host: 'nginx', subsets: ['v1', 'v2'].map((version) => ({ name: version, labels: { version } })) },
    });
    return objects;
}
/** What the loads of these modes need. JSON is YAML: one document an object. */
export function worldYaml(modes, workloads) {
    const namespaces = new Map(modes.flatMap((mode) => workloadsOf(mode, workloads).map(({ variant }) => [namespaceOf(mode, variant), { mode, variant }])));
    const objects = [...namespaces].flatMap(([namespace, { mode, variant }]) => modeObjects({ ...mode, namespace }, variant));
    if ([...namespaces.values()].some(({ variant }) => variant === 'traced'))
        objects.push(...collectorObjects(NODES[0]));
    return objects.map((object) => `---\n${JSON.stringify(object, null, 2)}\n`).join('');
}
//# sourceMappingURL=modes.js.map