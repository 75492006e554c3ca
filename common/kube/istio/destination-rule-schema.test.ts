import { specCases } from '../testing.js';

const policy = (text: string): string => `{host: web, trafficPolicy: {${text}}}`;
const POLICY = 'spec.trafficPolicy';

specCases({
  apiVersion: 'networking.istio.io/v1beta1',
  kind: 'DestinationRule',
  good: {
    'a policy in full, with ports and subsets': `
host: "*.shop.svc.cluster.local"
exportTo: ["*"]
trafficPolicy:
  loadBalancer: {simple: LEAST_REQUEST, warmup: {duration: 30s, minimumPercent: 10, aggression: 1.5}, localityLbSetting: {enabled: true, failover: [{from: a, to: b}]}}
  connectionPool:
    tcp: {maxConnections: 100, connectTimeout: 30ms, idleTimeout: 0s, maxConnectionDuration: 1h, tcpKeepalive: {probes: 3, time: 7200s, interval: 75s}}
    http: {http1MaxPendingRequests: 1, http2MaxRequests: 1, maxRequestsPerConnection: 1, maxRetries: 1, idleTimeout: 1s, h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 9}
  outlierDetection: {consecutive5xxErrors: 7, consecutiveGatewayErrors: 0, interval: 5m, baseEjectionTime: 15m, maxEjectionPercent: 100, minHealthPercent: 10, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3}
  portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, sni: a.b, insecureSkipVerify: true}}, {port: {number: 443}, loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s, attributes: [{name: SameSite, value: Lax}]}, ringHash: {minimumRingSize: 8}}}}]
subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: MUTUAL, credentialName: a}}}]`,
    'hashing with Maglev': policy('loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}}'),
    'distribution over localities': policy('loadBalancer: {localityLbSetting: {distribute: [{from: "us/*", to: {"us/a/*": 80, us/b: 20}}, {from: eu, to: {eu: 100}}]}}'),
    'what is deprecated and still read': policy('loadBalancer: {simple: LEAST_CONN, warmupDurationSecs: 10s}'),
  },
  bad: [
    ['a policy of nothing', policy(''), POLICY, /found no setting/],
    ['simple and consistentHash', policy('loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}'), `${POLICY}.loadBalancer`, /found simple and consistentHash/],
    ['a hash of two things', policy('loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: a}}'), `${POLICY}.loadBalancer.consistentHash`, /found httpHeaderName and useSourceIp/],
    ['a Maglev table that is not prime', policy('loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 1000}}}'), `${POLICY}.loadBalancer.consistentHash.maglev.tableSize`, /prime/],
    ['a cookie without a name', policy('loadBalancer: {consistentHash: {httpCookie: {ttl: 1s}}}'), `${POLICY}.loadBalancer.consistentHash.httpCookie.name`, /required/],
    ['two ways to warm up', policy('loadBalancer: {warmupDurationSecs: 1s, warmup: {duration: 1s}}'), `${POLICY}.loadBalancer`, /found warmupDurationSecs and warmup/],
    ['shares that are not the whole', policy('loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {eu: 50}}]}}'), `${POLICY}.loadBalancer.localityLbSetting.distribute[0].to`, /sum of 50, expected 100/],
    ['overlapping localities', policy('loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {eu: 100}}, {from: us/a, to: {eu: 100}}]}}'), `${POLICY}.loadBalancer.localityLbSetting.distribute[1].from`, /overlaps with "us"/],
    ['failover within a region', policy('outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: us, to: us}]}}'), `${POLICY}.loadBalancer.localityLbSetting.failover[0].to`, /another region/],
    ['distribute and failover', policy('outlierDetection: {}, loadBalancer: {localityLbSetting: {distribute: [{from: us, to: {eu: 100}}], failover: [{from: us, to: eu}]}}'), `${POLICY}.loadBalancer.localityLbSetting.failover`, /found distribute and failover/],
    ['a pool of nothing', policy('connectionPool: {}'), `${POLICY}.connectionPool`, /expected tcp or http/],
    ['negative connections', policy('connectionPool: {tcp: {maxConnections: -1}}'), `${POLICY}.connectionPool.tcp.maxConnections`, /expected a whole number/],
    ['an upgrade with the client\'s protocol', policy('connectionPool: {http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}}'), `${POLICY}.connectionPool.http.useClientProtocol`, /expected one of them/],
    ['local failures that are not told apart', policy('outlierDetection: {consecutiveLocalOriginFailures: 3}'), `${POLICY}.outlierDetection.consecutiveLocalOriginFailures`, /splitExternalLocalOriginErrors/],
    ['more than all ejected', policy('outlierDetection: {maxEjectionPercent: 101}'), `${POLICY}.outlierDetection.maxEjectionPercent`, /from 0 to 100/],
    ['an unknown mode of TLS', policy('tls: {mode: ISTIO_MUTAL}'), `${POLICY}.tls.mode`, /did you mean ISTIO_MUTUAL/],
    ['mutual TLS without a key', policy('tls: {mode: MUTUAL, clientCertificate: /a}'), `${POLICY}.tls.privateKey`, /mode MUTUAL needs it/],
    ['a Secret and files', policy('tls: {mode: SIMPLE, credentialName: a, caCertificates: /b}'), `${POLICY}.tls.caCertificates`, /with credentialName/],
    ['names to verify and no verification', policy('tls: {mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}'), `${POLICY}.tls.subjectAltNames`, /with insecureSkipVerify/],
    ['port settings of nothing', policy('portLevelSettings: [{port: {number: 80}}]'), `${POLICY}.portLevelSettings[0]`, /found no setting/],
    ['port settings without a port', policy('portLevelSettings: [{tls: {mode: DISABLE}}]'), `${POLICY}.portLevelSettings[0].port`, /required/],
    ['a port twice', policy('portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}, {port: {number: 80}, tls: {mode: SIMPLE}}]'), `${POLICY}.portLevelSettings[1].port.number`, /found port 80 again/],
    ['a subset twice', '{host: web, subsets: [{name: v1}, {name: v1}]}', 'spec.subsets[1].name', /found "v1" again/],
    ['a subset without a name', '{host: web, subsets: [{labels: {a: b}}]}', 'spec.subsets[0].name', /required/],
    ['a label that is none', '{host: web, subsets: [{name: a, labels: {a: "b c"}}]}', 'spec.subsets[0].labels.a', /a label's value/],
    ['a tunnel to no port', policy('tunnel: {targetHost: a}'), `${POLICY}.tunnel.targetPort`, /required/],
    ['a rule for workloads that all namespaces see', '{host: web, workloadSelector: {matchLabels: {a: b}}, exportTo: ["*"]}', 'spec.exportTo', /for workloads of it/],
    ['no host', '{trafficPolicy: {tls: {mode: DISABLE}}}', 'spec.host', /required/],
  ],
  warned: [
    ['failover that nothing triggers', policy('loadBalancer: {localityLbSetting: {failoverPriority: [a]}}'), `${POLICY}.loadBalancer.localityLbSetting`, /without outlierDetection/],
    ['consecutiveErrors, which is deprecated', policy('outlierDetection: {consecutiveErrors: 3}'), `${POLICY}.outlierDetection.consecutiveErrors`, /consecutive5xxErrors/],
    ['minimumRingSize, which is deprecated', policy('loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 8}}'), `${POLICY}.loadBalancer.consistentHash.minimumRingSize`, /ringHash\.minimumRingSize/],
  ],
});
