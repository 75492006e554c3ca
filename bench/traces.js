/** Istio's tracing as one has it by naming a provider and nothing more, and somebody who takes the spans. */
export const COLLECTOR = { namespace: 'bench-traces', name: 'collector' };
const PORT = 9411;
const PROVIDER = 'bench';
/** Takes spans as Zipkin does and counts the traces that they begin; says how many to whoever asks. */
const PROGRAM = `
let traces = 0;
require('node:http').createServer((request, answer) => {
  if (request.method !== 'POST') return answer.end(String(traces));
  let text = '';
  request.on('data', (part) => { if (text.length < 1 << 24) text += part; }).on('end', () => {
    traces += JSON.parse(text).filter((span) => span.parentId === undefined).length;
    answer.writeHead(202).end();
  });
}).listen(${PORT}, '::');`;
export const ASK_COLLECTOR = ['curl', '--silent', '--fail', '--max-time', '5', `http://127.0.0.1:${PORT}/`];
export function collectorObjects(nodeName) {
    const { namespace, name } = COLLECTOR;
    const mesh = { extensionProviders: [{ name: PROVIDER, zipkin: { service: `${name}.${namespace}.svc.cluster.local`, port: PORT } }] };
    return [
        { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } },
        { apiVersion: 'v1', kind: 'Pod', metadata: { name, namespace, labels: { app: name } }, spec: { nodeName, containers: [{ name, image: 'node', command: ['node', '-e', PROGRAM], ports: [{ containerPort: PORT }] }] } },
        { apiVersion: 'v1', kind: 'Service', metadata: { name, namespace }, spec: { selector: { app: name }, ports: [{ name: 'http', port: PORT }] } },
        { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'istio', namespace: 'istio-system' }, data: { mesh: JSON.stringify(mesh) } },
    ];
}
/** Without a percentage: Istio's own is 1. */
export function tracing(namespace) {
    return { apiVersion: 'telemetry.istio.io/v1', kind: 'Telemetry', metadata: { name: 'tracing', namespace }, spec: { tracing: [{ providers: [{ name: PROVIDER }] }] } };
}
//# sourceMappingURL=traces.js.map