import { specCases } from '../testing.js';

const HTTPS = 'ports: [{number: 443, name: https, protocol: TLS}]';

specCases({
  apiVersion: 'networking.istio.io/v1',
  kind: 'ServiceEntry',
  good: {
    'DNS by its own name': `{hosts: [api.example.com], location: MESH_EXTERNAL, resolution: DNS, ${HTTPS}}`,
    'DNS with endpoints': `{hosts: [api.example.com], resolution: DNS, ${HTTPS}, endpoints: [{address: us.example.com, ports: {https: 8443}, locality: us/a, weight: 2}, {address: 10.0.0.1}]}`,
    'STATIC with addresses and workloads': '{hosts: [db.internal], addresses: [10.1.0.0/16, "2001:db8::1"], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 3306, name: tcp, protocol: MySQL, targetPort: 3307}], workloadSelector: {labels: {app: db}}}',
    'STATIC over a socket': '{hosts: [db.internal], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: "unix:///run/db.sock"}]}',
    'a wildcard with NONE': `{hosts: ["*.example.com"], resolution: NONE, ${HTTPS}, exportTo: ["."]}`,
    'DNS_ROUND_ROBIN, seen by nobody': `{hosts: [a.example.com], resolution: DNS_ROUND_ROBIN, ${HTTPS}, exportTo: ["~"], subjectAltNames: [spiffe://a]}`,
    'a short host with endpoints': '{hosts: [external], resolution: STATIC, ports: [{number: 80, name: http, protocol: http}], endpoints: [{address: 10.0.0.1, network: n, serviceAccount: sa, labels: {version: v1}}]}',
  },
  bad: [
    ['no host', '{hosts: []}', 'spec.hosts', /at least 1 item/],
    ['everything', '{hosts: ["*"], resolution: NONE}', 'spec.hosts[0]', /everything is no service/],
    ['a selector and endpoints', '{hosts: [a.b], resolution: STATIC, workloadSelector: {labels: {a: b}}, endpoints: [{address: 10.0.0.1}]}', 'spec.endpoints', /found workloadSelector and endpoints/],
    ['endpoints with NONE', '{hosts: [a.b], resolution: NONE, endpoints: [{address: 10.0.0.1}]}', 'spec.endpoints', /goes where the client meant to/],
    ['a block of addresses with DNS', '{hosts: [a.b], resolution: DNS, addresses: [10.0.0.0/8]}', 'spec.addresses[0]', /blocks go with/],
    ['an address that is none', '{hosts: [a.b], resolution: STATIC, addresses: [10.0.0]}', 'spec.addresses[0]', /an IP address/],
    ['a wildcard that DNS can not look up', '{hosts: ["*.b"], resolution: DNS}', 'spec.hosts[0]', /DNS can look up, or endpoints/],
    ['a name with STATIC', '{hosts: [a.b], resolution: STATIC, endpoints: [{address: a.b}]}', 'spec.endpoints[0].address', /IP address with resolution STATIC/],
    ['several endpoints with DNS_ROUND_ROBIN', '{hosts: [a.b], resolution: DNS_ROUND_ROBIN, endpoints: [{address: a.b}, {address: c.d}]}', 'spec.endpoints', /at most one/],
    ['an endpoint without an address', '{hosts: [a.b], resolution: STATIC, endpoints: [{}]}', 'spec.endpoints[0].address', /expected an address/],
    ['an endpoint\'s port that the entry lacks', `{hosts: [a.b], resolution: STATIC, ${HTTPS}, endpoints: [{address: 10.0.0.1, ports: {http: 80}}]}`, 'spec.endpoints[0].ports.http', /expected one of the ports: https/],
    ['a name of a port twice', '{hosts: [a.b], ports: [{number: 80, name: a, protocol: HTTP}, {number: 81, name: a, protocol: HTTP}]}', 'spec.ports[1].name', /found "a" again/],
    ['a port twice', '{hosts: [a.b], ports: [{number: 80, name: a, protocol: HTTP}, {number: 80, name: b, protocol: HTTP}]}', 'spec.ports[1].number', /found 80 again/],
    ['a port without a name', '{hosts: [a.b], ports: [{number: 80}]}', 'spec.ports[0].name', /required/],
    ['an unknown protocol', '{hosts: [a.b], ports: [{number: 80, name: a, protocol: SMTP}]}', 'spec.ports[0].protocol', /expected one of/],
    ['several hosts on TCP', '{hosts: [a.b, c.d], resolution: DNS, ports: [{number: 80, name: a, protocol: TCP}]}', 'spec.ports[0].protocol', /which one is meant/],
    ['an unknown resolution', '{hosts: [a.b], resolution: STATC}', 'spec.resolution', /did you mean STATIC/],
    ['a plain host with DYNAMIC_DNS', `{hosts: [a.b], resolution: DYNAMIC_DNS, ${HTTPS}}`, 'spec.hosts[0]', /expected a wildcard/],
  ],
  warned: [
    ['a wildcard that DNS looks up on demand', `{hosts: ["*.example.com"], resolution: DYNAMIC_DNS, ${HTTPS}}`, 'spec.resolution', /counts as NONE/],
    ['a wildcard within a label', `{hosts: ["*a.example.com"], resolution: NONE, ${HTTPS}}`, 'spec.hosts[0]', /whole labels/],
    ['a selector with NONE', '{hosts: [a.b], resolution: NONE, workloadSelector: {labels: {a: b}}}', 'spec.workloadSelector', /goes where the client meant to/],
  ],
});

specCases({
  apiVersion: 'networking.istio.io/v1beta1',
  kind: 'WorkloadEntry',
  good: {
    'an address with ports': '{address: 10.0.0.1, ports: {http: 8080}, labels: {app: a}, serviceAccount: a, network: n, locality: a/b/c, weight: 1}',
    'a socket': '{address: "unix:///run/a.sock"}',
  },
  bad: [
    ['no address', '{labels: {app: a}}', 'spec.address', /expected an address, or a network/],
    ['a socket with ports', '{address: "unix:///a", ports: {a: 1}}', 'spec.ports', /expected none/],
    ['a directory as a socket', '{address: "unix:///a/"}', 'spec.address', /absolute path/],
    ['an address that is none', '{address: "a b"}', 'spec.address', /IP address or a host name/],
    ['a port out of range', '{address: 10.0.0.1, ports: {a: 0}}', 'spec.ports.a', /from 1 to 65535/],
  ],
  warned: [['a network alone', '{network: n}', 'spec.address', /gateway of network "n"/]],
});

specCases({
  apiVersion: 'networking.istio.io/v1',
  kind: 'WorkloadGroup',
  good: { 'a template': '{metadata: {labels: {app: a}}, template: {ports: {http: 80}, serviceAccount: a}}' },
  bad: [
    ['no template', '{metadata: {}}', 'spec.template', /required/],
    ['a probe of nothing', '{template: {}, probe: {periodSeconds: 1}}', 'spec.probe', /found none of them/],
    ['two probes', '{template: {}, probe: {tcpSocket: {port: 1}, exec: {command: [a]}}}', 'spec.probe', /found tcpSocket and exec/],
    ['an unknown scheme', '{template: {}, probe: {httpGet: {port: 1, scheme: http}}}', 'spec.probe.httpGet.scheme', /did you mean HTTP/],
  ],
  warned: [['a probe', '{template: {}, probe: {periodSeconds: 5, httpGet: {path: /, port: 80, scheme: HTTP, httpHeaders: [{name: A, value: b}]}}}', 'spec.probe', /own agent probes/]],
});
