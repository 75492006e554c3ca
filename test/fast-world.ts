/** Parts of the worlds in which the HTTP fast path is tried: the namespace `fast`, its pods and Services. */

export const FAST_NAMESPACE = `apiVersion: v1
kind: Namespace
metadata: {name: fast, labels: {underpass.io/mode: node, underpass.io/acceleration: l7}}
---
`;
export const CURL = 'name: curl, image: curl';
export const ECHO = 'name: echo, image: echo, ports: [{name: http, containerPort: 8080}]';

/** @param name `web-v1`: a version of web, under whose service account it runs */
export function fastPod(name: string, container: string): string {
  const [, app = name, version] = /^(.*)-(v\d)$/.exec(name) ?? [];
  return `apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: fast, labels: {app: ${app}${version === undefined ? '' : `, version: ${version}`}}}
spec: {serviceAccountName: ${app}, containers: [{${container}}]}
---
`;
}

/** Port 80 of all pods of that app. */
export function fastService(name: string): string {
  return `apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: fast}
spec:
  selector: {app: ${name}}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
`;
}
