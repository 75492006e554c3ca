/**
 * The `tls-echo` image: an HTTPS server (HTTP/1.1 and HTTP/2 by ALPN) that has a certificate for each of its names and says
 * which name was asked for and which was served.
 *   TLS_PORTS      default 8443
 *   TLS_HOSTS      names to make certificates for at start, from a CA of its own, e.g. `a.example.com,*.b.example.com`
 *   TLS_CERT_FILE, TLS_KEY_FILE (or TLS_CERT, TLS_KEY with the PEM itself)   served to names that are not in TLS_HOSTS
 *   TLS_CLIENT_CA_FILE (or TLS_CLIENT_CA)   asks for a client certificate and refuses one that this CA did not sign
 */
import { constants } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext, type SecureContext, type TLSSocket } from 'node:tls';
import { ServerCertificates } from '../server-certificates.js';
import { endOnSignal, identity, listenHttps, portList, sendJson } from './http.js';

const given = (name: string): string | undefined => {
  const file = process.env[`${name}_FILE`];
  return file ? readFileSync(file, 'utf8') : process.env[name];
};

const contexts = new Map<string, SecureContext>();
const [cert, key, clientCa] = [given('TLS_CERT'), given('TLS_KEY'), given('TLS_CLIENT_CA')];
// The context that a name chooses is the one that the client's certificate is checked in.
const contextOf = (pair: { cert: string; key: string }): SecureContext => createSecureContext({ ...pair, ...(clientCa ? { ca: clientCa } : {}) });
const authority = await ServerCertificates.create({ commonName: `tls-echo ${identity.pod}` });
for (const host of (process.env['TLS_HOSTS'] ?? '').split(',').filter(Boolean)) {
  const { certificatePem, privateKeyPem } = await authority.issue({ dnsNames: [host] });
  contexts.set(host, contextOf({ cert: certificatePem, key: privateKeyPem }));
}
const otherwise = cert && key ? contextOf({ cert, key }) : undefined;
const context = (name: string): SecureContext | undefined => contexts.get(name) ?? contexts.get(name.replace(/^[^.]+/, '*')) ?? otherwise ?? [...contexts.values()][0];
const first = cert && key ? { cert, key } : await authority.issue({ dnsNames: [identity.pod || 'localhost'] }).then(({ certificatePem, privateKeyPem }) => ({ cert: certificatePem, key: privateKeyPem }));

for (const port of portList('TLS_PORTS', [8443]))
  listenHttps(
    port,
    {
      ...first,
      // Of a session that is taken up again in TLS 1.2 Node does not know the name that was asked for.
      secureOptions: constants.SSL_OP_NO_TICKET,
      SNICallback: (name, callback) => callback(null, context(name)),
      ...(clientCa ? { ca: clientCa, requestCert: true, rejectUnauthorized: true } : {}),
    },
    (request, response) => {
      // In HTTP/2 the request's socket is a proxy of the session's, which hands these through.
      const socket = request.socket as TLSSocket & { servername?: string };
      const peer = socket.getPeerCertificate?.();
      sendJson(response, {
        ...identity,
        method: request.method,
        path: request.url,
        protocol: `HTTP/${request.httpVersion}`,
        headers: request.headers,
        sni: socket.servername || null,
        tls: socket.getProtocol?.() ?? null,
        client: peer?.subjectaltname ?? peer?.subject?.CN ?? null,
      });
    },
  );
endOnSignal();
