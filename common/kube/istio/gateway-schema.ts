/** Gateway and Sidecar: the kinds that open listeners, with what Istio's own validation asks of one by itself. */
import { choice, ignored, integer, list, noted, object, refused, text, withCheck, word, type Report, type Schema } from '../schema.js';
import { connectionPool } from './destination-rule-schema.js';
import { destination, dnsLabel, ipAddress, labels, protocol, scopedHost, serverTlsFields, workloadSelector } from './fields.js';
import type { Gateway, GatewayServer, ServerTls, Sidecar, SidecarEgress, SidecarIngress } from './networking.js';
import { isHttpProtocol, isIpAddress, isTlsProtocol, isUnixAddress } from './syntax.js';

const CIPHERS = [
  'ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-RSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-AES256-GCM-SHA384', 'ECDHE-RSA-AES256-GCM-SHA384', 'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-RSA-CHACHA20-POLY1305', 'ECDHE-ECDSA-AES128-SHA', 'ECDHE-RSA-AES128-SHA', 'ECDHE-ECDSA-AES256-SHA', 'ECDHE-RSA-AES256-SHA', 'AES128-GCM-SHA256',
  'AES256-GCM-SHA384', 'AES128-SHA', 'AES256-SHA', 'DES-CBC3-SHA',
];

/** Whether Envoy knows the suite; names that begin with a sign are OpenSSL's expressions, which it reads itself. */
export const isCipherSuite = (suite: string): boolean => !/^[A-Za-z0-9]/.test(suite) || suite === 'ALL' || CIPHERS.includes(suite);

const SOURCES = ['credentialName', 'credentialNames', 'tlsCertificates', 'serverCertificate'] as const;

const isSet = (value: unknown): boolean => (Array.isArray(value) ? value.length > 0 : value !== undefined && value !== '');

export function checkServerTls(tls: ServerTls, report: Report, warn: Report): void {
  const { mode = 'PASSTHROUGH' } = tls;
  if (/^TLSV1_[01]$/.test(tls.minProtocolVersion ?? '') && !tls.cipherSuites?.length) warn('found an old version of TLS: it also needs cipherSuites that fit it', ['minProtocolVersion']);
  tls.cipherSuites?.forEach((suite, index) => {
    if (!isCipherSuite(suite)) warn(`found "${suite}", which is no cipher suite of Envoy's and is left out`, ['cipherSuites', index]);
    else if (tls.cipherSuites!.indexOf(suite) < index) warn(`found "${suite}" again`, ['cipherSuites', index]);
  });
  if (mode === 'ISTIO_MUTUAL') {
    for (const key of [...SOURCES, 'privateKey', 'caCertificates'] as const) if (isSet(tls[key])) report(`found ${key} with mode ISTIO_MUTUAL, whose certificates are the mesh's own, expected none`, [key]);
    return;
  }
  const sources = SOURCES.filter((key) => isSet(tls[key]));
  if (mode === 'PASSTHROUGH' || mode === 'AUTO_PASSTHROUGH') {
    if (sources.length > 0) warn(`found certificates with mode ${mode}, which uses none`, [sources[0]!]);
    return;
  }
  if (sources.length > 1) report(`found ${sources.join(' and ')}, expected one of them`, [sources[1]!]);
  if (isSet(tls.credentialName) || isSet(tls.credentialNames)) return;
  if (mode !== 'SIMPLE' && !isSet(tls.caCertificates)) report(`found nothing, mode ${mode} needs the certificates of clients' CAs (or credentialName)`, ['caCertificates']);
  if (isSet(tls.tlsCertificates)) {
    if (tls.tlsCertificates!.length > 2) warn('found more than two certificates: only two are used', ['tlsCertificates']);
    tls.tlsCertificates!.forEach((pair, index) => {
      for (const key of ['serverCertificate', 'privateKey'] as const) if (!pair[key]) report('found nothing, this field is required', ['tlsCertificates', index, key]);
    });
  } else {
    for (const key of ['serverCertificate', 'privateKey'] as const) if (!isSet(tls[key])) report(`found nothing, mode ${mode} needs it (or credentialName)`, [key]);
  }
}

const serverTls: Schema = withCheck<ServerTls>(object(serverTlsFields), checkServerTls);

const bind: Schema = withCheck<string>(noted(text, 'Unix sockets are refused'), (value, report) => {
  if (value.startsWith('unix://')) report(`found ${JSON.stringify(value)}, expected an address: this version listens on no Unix sockets`);
  else if (value !== '' && !isIpAddress(value)) report(`found ${JSON.stringify(value)}, expected an address`);
});

function checkServer(server: GatewayServer, report: Report, warn: Report): void {
  const { port: listener, tls } = server;
  const encrypted = isTlsProtocol(listener.protocol);
  const http = isHttpProtocol(listener.protocol);
  if (listener.number === 0 && !server.bind?.startsWith('unix://')) report('found 0, expected a whole number from 1 to 65535', ['port', 'number']);
  if (listener.targetPort) report('found a port that Gateways do not use, expected nothing', ['port', 'targetPort']);
  if (encrypted && !tls) report(`found nothing, protocol ${listener.protocol} needs it`, ['tls']);
  if (!encrypted && tls) {
    // Only the redirect to HTTPS makes sense there.
    const plain = (tls.mode === undefined || tls.mode === 'PASSTHROUGH') && !isSet(tls.serverCertificate) && !isSet(tls.privateKey) && !isSet(tls.caCertificates);
    if (!http || !plain) report(`found TLS settings with protocol ${listener.protocol}, expected HTTPS or TLS${http ? ', or httpsRedirect alone' : ''}`, ['tls']);
  }
  if (tls?.httpsRedirect && !http) warn(`found httpsRedirect with protocol ${listener.protocol}: only HTTP can be redirected`, ['tls', 'httpsRedirect']);
}

export const gateway: Schema = withCheck<Gateway['spec']>(
  object(
    {
      servers: list(
        withCheck<GatewayServer>(
          object(
            {
              port: object({ number: integer(0, 65_535), protocol: { ...protocol, nonEmpty: true } as Schema, name: word, targetPort: noted(integer(0, 65_535), 'deprecated: Istio refuses any value but 0') }, ['number', 'protocol', 'name']),
              bind,
              hosts: list(scopedHost('gateway'), 1),
              tls: serverTls,
              defaultEndpoint: refused(text, 'Istio does not act on it either'),
              name: text,
            },
            ['port', 'hosts'],
          ),
          checkServer,
        ),
        1,
      ),
      selector: labels,
    },
    ['servers'],
  ),
  ({ servers = [] }, report) => {
    const names = servers.map(({ port }) => port.name);
    names.forEach((name, index) => names.indexOf(name) < index && report(`found "${name}" again, expected the name of each server's port once`, ['servers', index, 'port', 'name']));
  },
);

const captureMode = choice('DEFAULT', 'IPTABLES', 'NONE');
const sidecarPort = object({ number: integer(0, 65_535), protocol, name: dnsLabel, targetPort: noted(integer(0, 0), 'deprecated: Istio refuses any value but 0') }, ['number']);

const LOCAL_ENDPOINT = /^(127\.0\.0\.1|0\.0\.0\.0|\[::1\]|\[::\]|):([0-9]+)$/;

const ingressListener: Schema = withCheck<SidecarIngress>(
  object(
    {
      port: sidecarPort,
      bind: ignored(ipAddress, "the workload's own addresses are listened on"),
      captureMode: noted(captureMode, '`NONE` is refused'),
      defaultEndpoint: text,
      tls: noted(withCheck<ServerTls>(object(serverTlsFields), checkServerTls), 'where the port takes no mutual TLS of the mesh'),
      connectionPool,
    },
    ['port'],
  ),
  (value, report, warn) => {
    const { port: listener, defaultEndpoint } = value;
    if (listener.number === 0) report('found 0, expected a whole number from 1 to 65535', ['port', 'number']);
    if (defaultEndpoint && !isUnixAddress(defaultEndpoint)) {
      const number = Number(LOCAL_ENDPOINT.exec(defaultEndpoint)?.[2] ?? 0);
      if (number < 1 || number > 65_535) report(`found "${defaultEndpoint}", expected 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:///PATH`, ['defaultEndpoint']);
    }
    if (value.captureMode === 'NONE') report('found NONE, expected DEFAULT or IPTABLES: ports that the workload listens on itself are not served by this version', ['captureMode']);
    if (value.connectionPool?.http && !isHttpProtocol(listener.protocol ?? '')) warn('found HTTP settings for a port that is not HTTP: only those for TCP count', ['connectionPool', 'http']);
  },
);

const egressListener: Schema = withCheck<SidecarEgress>(object({ port: sidecarPort, bind, captureMode, hosts: list(scopedHost('sidecar'), 1) }, ['hosts']), (value, report, warn) => {
  if (value.port?.number === 0 && !value.bind?.startsWith('unix://')) report('found 0, expected a whole number from 1 to 65535', ['port', 'number']);
  value.hosts.forEach((host, index) => {
    if (value.hosts.indexOf(host) < index) warn(`found "${host}" again`, ['hosts', index]);
  });
  if (value.hosts.includes('*/*') && value.hosts.length > 1) warn('found "*/*" with others: it selects everything', ['hosts']);
});

function checkSidecar(spec: Sidecar['spec'], report: Report): void {
  const { ingress = [], egress = [] } = spec;
  if (ingress.length === 0 && egress.length === 0 && !spec.outboundTrafficPolicy && !spec.inboundConnectionPool) report('found no setting, expected egress, ingress, outboundTrafficPolicy or inboundConnectionPool');
  const inbound = ingress.map(({ port }) => port.number);
  inbound.forEach((number, index) => inbound.indexOf(number) < index && report(`found ${number} again, expected each port once`, ['ingress', index, 'port', 'number']));
  const outbound = egress.map(({ port, bind: address }) => (port ? (port.number === 0 ? address : port.number) : undefined));
  outbound.forEach((listener, index) => {
    if (listener === undefined) {
      if (index < egress.length - 1) report('found a listener without a port before others, expected it at the end: it takes all that they leave', ['egress', index]);
    } else if (outbound.indexOf(listener) < index) report(`found ${listener} again, expected each listener once`, ['egress', index, 'port', 'number']);
  });
  const proxy = spec.outboundTrafficPolicy?.egressProxy;
  if (proxy && spec.outboundTrafficPolicy?.mode !== 'ALLOW_ANY') report('found egressProxy, expected mode ALLOW_ANY with it', ['outboundTrafficPolicy', 'mode']);
  if (proxy && !proxy.port) report('found nothing, egressProxy needs it', ['outboundTrafficPolicy', 'egressProxy', 'port']);
}

export const sidecar: Schema = withCheck<Sidecar['spec']>(
  object({
    workloadSelector,
    ingress: list(ingressListener),
    egress: list(egressListener),
    inboundConnectionPool: connectionPool,
    outboundTrafficPolicy: object({ mode: choice('ALLOW_ANY', 'REGISTRY_ONLY'), egressProxy: destination }),
  }),
  checkSidecar,
);
