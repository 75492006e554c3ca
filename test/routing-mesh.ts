/** What routing.test.ts puts into its mesh: two versions of one server of every protocol, clients that differ, and their routes. */
import type { Mode } from './mesh/world.js';

const pod = (namespace: string, name: string, labels: string, containers: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}
spec: {containers: [${containers}]}
`;

const server = (namespace: string, version: string): string =>
  pod(
    namespace,
    `server-${version}`,
    `app: server, version: ${version}`,
    [
      '{name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-raw, containerPort: 9001}]}',
      '{name: grpc, image: grpc-echo, ports: [{name: grpc, containerPort: 7070}]}',
      `{name: tcp, image: tcp-echo-server, args: ["9000", "${version}"], ports: [{name: tcp, containerPort: 9000}]}`,
      '{name: tls, image: tls-echo, env: [{name: TLS_HOSTS, value: "a.example.com,b.example.com"}], ports: [{name: tls, containerPort: 8443}]}',
      '{name: greeter, image: tcp-greeter, ports: [{name: tcp-greet, containerPort: 3306}]}',
    ].join(', '),
  );

/**
 * Remembers the hosts of its requests: what a mirror is asked for, since its answers are dropped. On a second port a
 * forward proxy that says where a tunnel was to lead.
 */
const RECORDER = `
const http = require('node:http');
const seen = {};
http.createServer((q, r) => { if (q.url === '/seen') return r.end(JSON.stringify(seen)); (seen[q.url] ??= []).push(q.headers.host); r.statusCode = 500; r.end('from the mirror'); }).listen(8080, '::');
http.createServer().on('connect', (q, socket) => { socket.write('HTTP/1.1 200 OK\\r\\n\\r\\n'); socket.on('data', (d) => socket.write(q.url + ' ' + d)).on('error', () => {}); }).listen(3128, '::');`;

const service = (namespace: string, name: string, app: string, ports: string, more = ''): string => `
apiVersion: v1
kind: Service
metadata: {name: ${name}, namespace: ${namespace}}
spec: {selector: {app: ${app}}, ports: [${ports}]${more}}
`;

const services = (namespace: string): string[] => [
  service(namespace, 'shop', 'server', '{name: http, port: 80, targetPort: 8080}, {name: http-alt, port: 8081, targetPort: 8080}'),
  service(namespace, 'plain', 'server', '{name: http, port: 80, targetPort: 8080}'),
  service(namespace, 'hashed', 'server', '{name: http, port: 80, targetPort: 8080}'),
  service(namespace, 'cookie', 'server', '{name: http, port: 80, targetPort: 8080}'),
  service(namespace, 'near', 'server', '{name: tcp, port: 9000}'),
  service(namespace, 'private', 'server', '{name: http, port: 80, targetPort: 8080}'),
  service(namespace, 'tunnel', 'recorder', '{name: tcp, port: 3128}'),
  service(namespace, 'mirror', 'recorder', '{name: http, port: 80, targetPort: 8080}'),
  service(namespace, 'grpc', 'server', '{name: grpc, port: 7070}'),
  service(namespace, 'tcp', 'server', '{name: tcp, port: 9000}'),
  service(namespace, 'tls', 'server', '{name: tls, port: 443, targetPort: 8443}'),
  service(namespace, 'greet', 'server', '{name: tcp-greet, port: 9100, targetPort: 3306}, {name: db, port: 3306}'),
  service(namespace, 'sniff', 'server', '{name: foo, port: 7777, targetPort: 8080}, {name: bar, port: 7778, targetPort: 9000}'),
  service(namespace, 'head', 'server', '{name: http, port: 8080}, {name: tcp, port: 9000}', ', clusterIP: None'),
];

const rule = (host: string): string => `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ${host}}
spec: {host: ${host}, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
`;

const hashed = (host: string, key: string): string => `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ${host}}
spec: {host: ${host}, trafficPolicy: {loadBalancer: {consistentHash: {${key}}}}}
`;

const virtualService = (name: string, spec: string, created = '2026-01-01'): string => `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ${name}, creationTimestamp: "${created}T00:00:00Z"}
spec:
${spec}
`;

const to = (subset: string, host = 'shop'): string => `route: [{destination: {host: ${host}, subset: ${subset}}}]`;
/** Requests that match go to v2, all others to v1. */
const matching = (match: string): string => `    - {match: [{${match}}], ${to('v2')}}`;

const MATCHES = [
  matching('uri: {exact: /m/exact}'),
  matching('uri: {prefix: /m/prefix}'),
  matching('uri: {regex: "/m/regex/[0-9]+"}'),
  matching('uri: {prefix: /m/Case}, ignoreUriCase: true'),
  matching('uri: {prefix: /m/header}, headers: {x-exact: {exact: a}, x-prefix: {prefix: b}, x-regex: {regex: "c+"}, x-present: {}}'),
  matching('uri: {prefix: /m/without}, withoutHeaders: {x-no: {}, x-value: {exact: bad}}'),
  matching('uri: {prefix: /m/method}, method: {exact: PUT}'),
  matching('uri: {prefix: /m/authority}, authority: {prefix: shop.}'),
  matching('uri: {prefix: /m/scheme}, scheme: {exact: http}'),
  matching('uri: {prefix: /m/query}, queryParams: {q: {exact: "1"}, r: {regex: "[a-z]"}}'),
  matching('uri: {prefix: /m/port}, port: 8081'),
  matching('uri: {prefix: /m/labels}, sourceLabels: {team: b}'),
  matching('uri: {prefix: /m/namespace}, sourceNamespace: OTHER'),
  matching('uri: {prefix: /m/mesh}, gateways: [mesh]'),
  matching('uri: {prefix: /m/gateway}, gateways: [edge]'),
  matching('uri: {prefix: /m/first}'),
  `    - {match: [{uri: {prefix: /m/first}}], ${to('v1')}}`,
  `    - {match: [{uri: {exact: /m/or}}, {headers: {x-or: {exact: "1"}}, uri: {prefix: /m/either}}], ${to('v2')}}`,
].join('\n');

const SHOP = `  hosts: [shop]
  http:
${MATCHES}
    - {match: [{uri: {prefix: /weights}}], route: [{destination: {host: shop, subset: v1}, weight: 80}, {destination: {host: shop, subset: v2}, weight: 20}]}
    - {match: [{uri: {prefix: /rewrite/prefix}}], rewrite: {uri: /new}, ${to('v1')}}
    - {match: [{uri: {exact: /rewrite/exact}}], rewrite: {uri: /exactly}, ${to('v1')}}
    - {match: [{uri: {prefix: /rewrite/pattern}}], rewrite: {uriRegexRewrite: {match: "^/rewrite/pattern/([a-z]+)/([a-z]+)$", rewrite: '/\\2/\\1'}}, ${to('v1')}}
    - {match: [{uri: {prefix: /rewrite/authority}}], rewrite: {authority: other.example.com}, ${to('v1')}}
    - {match: [{uri: {prefix: /redirect/all}}], redirect: {uri: /there, authority: other.example.com, redirectCode: 307}}
    - {match: [{uri: {prefix: /redirect/port}}], redirect: {scheme: https, port: 8443}}
    - {match: [{uri: {prefix: /direct/text}}], directResponse: {status: 418, body: {string: short and stout}}, headers: {response: {add: {x-tea: pot}}}}
    - {match: [{uri: {prefix: /direct/bytes}}], directResponse: {status: 299, body: {bytes: aGk=}}}
    - match: [{uri: {prefix: /headers}}]
      headers:
        request: {set: {x-set: route, x-both: route}, add: {x-add: route}, remove: [x-remove]}
        response: {set: {x-answer: route}, remove: [x-pod]}
      route: [{destination: {host: shop, subset: v1}, headers: {request: {set: {x-both: destination}}, response: {add: {x-answer: destination}}}}]
    - {match: [{uri: {prefix: /authority}}], headers: {request: {set: {":authority": set.example.com}}}, ${to('v1')}}
    - {match: [{uri: {prefix: /delegate}}], delegate: {name: part}}
    - {match: [{uri: {prefix: /mirror}}], mirror: {host: mirror}, mirrorPercentage: {value: 100}, ${to('v1')}}
    - {match: [{uri: {prefix: /unmirrored}}], mirror: {host: mirror}, mirrorPercentage: {value: 0}, ${to('v1')}}
    - {match: [{uri: {prefix: /abort/all}}], fault: {abort: {httpStatus: 451, percentage: {value: 100}}}, ${to('v1')}}
    - {match: [{uri: {prefix: /abort/none}}], fault: {abort: {httpStatus: 451, percentage: {value: 0}}}, ${to('v1')}}
    - {match: [{uri: {prefix: /abort/half}}], fault: {abort: {httpStatus: 451, percentage: {value: 50}}}, ${to('v1')}}
    - {match: [{uri: {prefix: /delay}}], fault: {delay: {fixedDelay: 250ms, percentage: {value: 100}}}, ${to('v1')}}
    - {match: [{uri: {prefix: /timeout}}], timeout: 200ms, rewrite: {uri: /hang}, ${to('v1')}}
    - {match: [{uri: {prefix: /retried}}], retries: {attempts: 3, retryOn: "503"}, rewrite: {uri: /flaky/2/503}, ${to('v1')}}
    - {match: [{uri: {prefix: /exhausted}}], retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}, rewrite: {uri: /status/500}, ${to('v1')}}
    - {match: [{uri: {prefix: /unretried}}], retries: {attempts: 0}, rewrite: {uri: /status/503}, ${to('v1')}}
    - {match: [{uri: {prefix: /tries}}], timeout: 10s, retries: {attempts: 1, perTryTimeout: 100ms, retryOn: 5xx}, rewrite: {uri: /hang/tries}, ${to('v1')}}
    - {match: [{uri: {prefix: /cors}}], corsPolicy: {allowOrigins: [{exact: "https://a.example"}], allowMethods: [GET, PUT], maxAge: 1h}, ${to('v1')}}
    - {name: rest, ${to('v1')}}`;

const PART = `  http:
    - {match: [{uri: {prefix: /delegate/v2}}], ${to('v2')}}
    - {match: [{uri: {prefix: /elsewhere}}], directResponse: {status: 500}}
    - {headers: {response: {set: {x-by: delegate}}}, ${to('v1')}}`;

const GRPC = `  hosts: [grpc]
  http:
    - {match: [{headers: {x-abort: {exact: "1"}}}], fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}, ${to('v1', 'grpc')}}
    - {match: [{headers: {x-retry: {exact: "1"}}}], retries: {attempts: 2, retryOn: unavailable}, ${to('v1', 'grpc')}}
    - {match: [{uri: {regex: ".*/(ServerStream|BidiStream)"}}], ${to('v2', 'grpc')}}
    - {match: [{headers: {x-half: {}}}], route: [{destination: {host: grpc, subset: v1}, weight: 50}, {destination: {host: grpc, subset: v2}, weight: 50}]}
    - {${to('v1', 'grpc')}}`;

/** Pods and Services. */
export const workloads = (namespace: Mode): string =>
  [
    pod(namespace, 'client-b', 'app: client, team: b', '{name: client, image: client}'),
    server(namespace, 'v1'),
    server(namespace, 'v2'),
    pod(namespace, 'recorder', 'app: recorder', `{name: recorder, image: recorder, command: [${JSON.stringify(process.execPath)}, -e, ${JSON.stringify(RECORDER)}], ports: [{containerPort: 8080}, {containerPort: 3128}]}`),
    ...services(namespace),
  ].join('---\n');

/** Routes and rules. @param other the namespace of the other mode, whose clients are told apart */
export const configuration = (other: Mode): string =>
  [
    ...['shop', 'plain', 'grpc', 'tcp', 'tls', 'sniff'].map(rule),
    hashed('hashed', 'httpHeaderName: x-user'),
    hashed('cookie', 'httpCookie: {name: user, ttl: 3600s}'),
    hashed('near', 'useSourceIp: true'),
    'apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: tunnel}\nspec: {host: tunnel, trafficPolicy: {tunnel: {protocol: CONNECT, targetHost: far.example.com, targetPort: 443}}}\n',
    virtualService('private', '  hosts: [private]\n  exportTo: ["."]\n  http: [{directResponse: {status: 299}}]'),
    virtualService('shop', SHOP.replace('OTHER', other)),
    virtualService('part', PART),
    virtualService('grpc', GRPC),
    virtualService('plain-old', `  hosts: [plain]\n  http: [{${to('v2', 'plain')}}]`, '2026-01-02'),
    virtualService('plain-young', `  hosts: [plain]\n  http: [{${to('v1', 'plain')}}]`, '2026-01-03'),
    virtualService('foreign', `  hosts: [foreign.example.com]\n  exportTo: ["."]\n  http: [{${to('v2', 'plain')}}]`),
    virtualService('sniff', `  hosts: [sniff]\n  http: [{match: [{port: 7777}], ${to('v2', 'sniff')}}]`),
    virtualService('tcp', '  hosts: [tcp]\n  tcp: [{match: [{port: 9000, sourceLabels: {team: b}}], route: [{destination: {host: tcp, subset: v2}}]}, {route: [{destination: {host: tcp, subset: v1}, weight: 75}, {destination: {host: tcp, subset: v2}, weight: 25}]}]'),
    virtualService('tls', `  hosts: [tls, a.example.com, "*.b.example.com"]\n  tls: [{match: [{port: 443, sniHosts: [a.example.com]}], ${to('v1', 'tls')}}, {match: [{port: 443, sniHosts: ["*.b.example.com"]}], ${to('v2', 'tls')}}]`),
  ].join('---\n');
