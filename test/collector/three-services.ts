/** Pods of a MeshWorld by which traces are shown: service0 asks service1, which asks service2 and hands on what Istio asks programs to. */

/** Asks service2 with those headers, and answers with the ones that both got. */
const HANDS_ON = `
const http = require('node:http');
const NAMES = ['x-request-id', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'x-b3-sampled', 'x-b3-flags', 'b3', 'traceparent', 'tracestate', 'x-ot-span-context'];
http.createServer((q, r) => {
  const headers = Object.fromEntries(NAMES.filter((n) => q.headers[n] !== undefined).map((n) => [n, q.headers[n]]));
  http.get({ host: 'service2', path: q.url, headers, agent: false }, (a) => { let b = ''; a.on('data', (d) => b += d).on('end', () => r.end(JSON.stringify({ first: q.headers, second: JSON.parse(b).headers }))); })
    .on('error', () => { r.statusCode = 502; r.end(); });
}).listen(8080, '::');`;
const pod = (namespace: string, name: string, container: string): string => `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: ${name}, version: v1}}
spec: {serviceAccountName: ${name}, containers: [{${container}}]}
---
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec:
  selector: {app: ${name}}
  ports: [{name: http, port: 80, targetPort: 8080}]
`;

export const threeServices = (namespace: string): string => [
  pod(namespace, 'service0', 'name: curl, image: curl'),
  pod(namespace, 'service1', `name: service1, image: node, command: [node, -e, ${JSON.stringify(HANDS_ON)}], ports: [{name: http, containerPort: 8080}]`),
  pod(namespace, 'service2', 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}]'),
].join('---\n');
