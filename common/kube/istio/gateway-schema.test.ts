import { specCases } from '../testing.js';

const server = (text: string): string => `{selector: {istio: ingressgateway}, servers: [{${text}}]}`;
const HTTP = 'port: {number: 80, name: http, protocol: HTTP}';
const HTTPS = 'port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*.shop.example"]';
const SERVER = 'spec.servers[0]';

specCases({
  apiVersion: 'networking.istio.io/v1alpha3',
  kind: 'Gateway',
  good: {
    'servers of every kind': `
selector: {istio: ingressgateway}
servers:
  - {${HTTP}, hosts: ["*", ./a.example, shop/b.example, "*/c.example", 10.0.0.1], tls: {httpsRedirect: true}}
  - {port: {number: 443, name: simple, protocol: HTTPS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-RSA-AES128-GCM-SHA256]}}
  - {port: {number: 444, name: mutual, protocol: https}, hosts: [a.example], tls: {mode: MUTUAL, serverCertificate: /a, privateKey: /b, caCertificates: /c}}
  - {port: {number: 445, name: pass, protocol: TLS}, hosts: [a.example], tls: {mode: PASSTHROUGH}}
  - {port: {number: 15443, name: cross, protocol: TLS}, hosts: ["*.local"], tls: {mode: AUTO_PASSTHROUGH}}
  - {port: {number: 446, name: mesh, protocol: HTTPS}, hosts: ["*"], tls: {mode: ISTIO_MUTUAL}}
  - {port: {number: 447, name: two, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialNames: [rsa, ecdsa]}}
  - {port: {number: 3306, name: db, protocol: MySQL}, hosts: ["*"], bind: 0.0.0.0}`,
  },
  bad: [
    ['no server', '{selector: {a: b}, servers: []}', 'spec.servers', /at least 1 item/],
    ['a server without hosts', server(HTTP), `${SERVER}.hosts`, /required/],
    ['a server without a port', server('hosts: ["*"]'), `${SERVER}.port`, /required/],
    ['a port without a name', server('port: {number: 80, protocol: HTTP}, hosts: ["*"]'), `${SERVER}.port.name`, /required/],
    ['a port out of range', server('port: {number: 70000, name: a, protocol: HTTP}, hosts: ["*"]'), `${SERVER}.port.number`, /from 0 to 65535/],
    ['an unknown protocol', server('port: {number: 80, name: a, protocol: HTTPX}, hosts: ["*"]'), `${SERVER}.port.protocol`, /expected one of HTTP, HTTPS/],
    ['a name of a port twice', `{servers: [{${HTTP}, hosts: ["*"]}, {port: {number: 81, name: http, protocol: HTTP}, hosts: ["*"]}]}`, 'spec.servers[1].port.name', /found "http" again/],
    ['HTTPS without TLS settings', server(HTTPS), `${SERVER}.tls`, /protocol HTTPS needs it/],
    ['TLS settings on HTTP', server(`${HTTP}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: a}`), `${SERVER}.tls`, /with protocol HTTP, expected HTTPS or TLS/],
    ['TLS settings on TCP', server('port: {number: 81, name: a, protocol: TCP}, hosts: ["*"], tls: {mode: PASSTHROUGH}'), `${SERVER}.tls`, /with protocol TCP/],
    ['SIMPLE without a key', server(`${HTTPS}, tls: {mode: SIMPLE, serverCertificate: /a}`), `${SERVER}.tls.privateKey`, /mode SIMPLE needs it/],
    ['MUTUAL without CAs', server(`${HTTPS}, tls: {mode: MUTUAL, serverCertificate: /a, privateKey: /b}`), `${SERVER}.tls.caCertificates`, /mode MUTUAL needs/],
    ['a Secret and files', server(`${HTTPS}, tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b, credentialName: c}`), `${SERVER}.tls.serverCertificate`, /found credentialName and serverCertificate/],
    ['own certificates with ISTIO_MUTUAL', server(`${HTTPS}, tls: {mode: ISTIO_MUTUAL, credentialName: a}`), `${SERVER}.tls.credentialName`, /the mesh's own/],
    ['a list of revocations, which would not be looked at', server(`${HTTPS}, tls: {mode: MUTUAL, credentialName: a, caCrl: /c}`), `${SERVER}.tls.caCrl`, /not supported by this version/],
    ['three Secrets', server(`${HTTPS}, tls: {mode: SIMPLE, credentialNames: [a, b, c]}`), `${SERVER}.tls.credentialNames`, /at most two/],
    ['a short host', server(`${HTTP}, hosts: [web]`), `${SERVER}.hosts[0]`, /short ones are not looked up/],
    ['a wildcard within a label', server(`${HTTP}, hosts: ["*a.example"]`), `${SERVER}.hosts[0]`, /whole label/],
    ['a namespace that is none', server(`${HTTP}, hosts: ["a_b/x.example"]`), `${SERVER}.hosts[0]`, /a namespace before/],
    ['a Unix socket', server('port: {number: 0, name: socket, protocol: HTTP}, hosts: ["*"], bind: "unix:///run/gw.sock"'), `${SERVER}.bind`, /no Unix sockets/],
    ['an address that is none', server(`${HTTP}, hosts: ["*"], bind: 10.0.0`), `${SERVER}.bind`, /expected an address/],
  ],
  warned: [
    ['certificates that PASSTHROUGH does not use', server('port: {number: 443, name: a, protocol: TLS}, hosts: ["*"], tls: {mode: PASSTHROUGH, credentialName: a}'), `${SERVER}.tls.credentialName`, /uses none/],
    ['an old version of TLS', server(`${HTTPS}, tls: {mode: SIMPLE, credentialName: a, minProtocolVersion: TLSV1_0}`), `${SERVER}.tls.minProtocolVersion`, /cipherSuites/],
    ['an unknown cipher suite', server(`${HTTPS}, tls: {mode: SIMPLE, credentialName: a, cipherSuites: [ROT13]}`), `${SERVER}.tls.cipherSuites[0]`, /left out/],
    ['a redirect of what is HTTPS', server(`${HTTPS}, tls: {mode: SIMPLE, credentialName: a, httpsRedirect: true}`), `${SERVER}.tls.httpsRedirect`, /only HTTP/],
  ],
});

const ingress = (text: string): string => `{ingress: [{${text}}]}`;

specCases({
  apiVersion: 'networking.istio.io/v1',
  kind: 'Sidecar',
  good: {
    'egress and ingress in full': `
workloadSelector: {labels: {app: a}}
egress:
  - {port: {number: 9080, protocol: HTTP, name: egresshttp}, bind: 127.0.0.1, captureMode: NONE, hosts: ["prod/*", "~/*"]}
  - {hosts: ["istio-system/*", "*/*.example.com", "~other/*"]}
ingress: [{port: {number: 9080, protocol: HTTP, name: a}, defaultEndpoint: 127.0.0.1:8080, connectionPool: {http: {http1MaxPendingRequests: 1}}}, {port: {number: 9443, protocol: HTTPS}, defaultEndpoint: "unix:///a"}]
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
inboundConnectionPool: {tcp: {maxConnections: 1}}`,
  },
  bad: [
    ['nothing', '{workloadSelector: {labels: {a: b}}}', 'spec', /found no setting/],
    ['a host without a namespace', '{egress: [{hosts: [web]}]}', 'spec.egress[0].hosts[0]', /namespace\/host/],
    ['a short host', '{egress: [{hosts: [./web]}]}', 'spec.egress[0].hosts[0]', /full host name/],
    ['no hosts', '{egress: [{hosts: []}]}', 'spec.egress[0].hosts', /at least 1 item/],
    ['a catch-all before others', '{egress: [{hosts: ["./*"]}, {port: {number: 80, protocol: HTTP}, hosts: ["./*"]}]}', 'spec.egress[0]', /expected it at the end/],
    ['a port twice', '{egress: [{port: {number: 80}, hosts: ["./*"]}, {port: {number: 80}, hosts: ["./*"]}]}', 'spec.egress[1].port.number', /found 80 again/],
    ['a Unix socket', '{egress: [{port: {number: 0}, bind: "unix:///a", hosts: ["./*"]}]}', 'spec.egress[0].bind', /no Unix sockets/],
    ['port 0', '{egress: [{port: {number: 0}, hosts: ["./*"]}]}', 'spec.egress[0].port.number', /from 1 to 65535/],
    ['a wildcard in a selector', '{workloadSelector: {labels: {a: "*"}}, egress: [{hosts: ["./*"]}]}', 'spec.workloadSelector.labels.a', /no wildcard/],
    ['an endpoint elsewhere', ingress('port: {number: 80}, defaultEndpoint: 10.0.0.1:80'), 'spec.ingress[0].defaultEndpoint', /127\.0\.0\.1:PORT/],
    ['an ingress port twice', '{ingress: [{port: {number: 80}}, {port: {number: 80}}]}', 'spec.ingress[1].port.number', /found 80 again/],
    ['an unknown protocol', ingress('port: {number: 80, protocol: HTTPP}'), 'spec.ingress[0].port.protocol', /expected one of/],
    ['a port that nothing leads to the proxy', ingress('port: {number: 80}, captureMode: NONE'), 'spec.ingress[0].captureMode', /not served by this version/],
    ['an unknown mode', '{outboundTrafficPolicy: {mode: ALLOW_ANYTHING}}', 'spec.outboundTrafficPolicy.mode', /expected one of ALLOW_ANY, REGISTRY_ONLY/],
  ],
  warned: [
    ['a selector of everything', '{workloadSelector: {labels: {}}, egress: [{hosts: ["./*"]}]}', 'spec.workloadSelector', /every workload/],
    ['all hosts and more', '{egress: [{hosts: ["*/*", "./*"]}]}', 'spec.egress[0].hosts', /selects everything/],
  ],
});
