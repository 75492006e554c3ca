/** A control plane with a TLS port, and callers of it, for tests. */
import { credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { TokenIssuer } from '../../common/identity/service-account-token.js';
import { ClosableStore } from '../../common/lifecycle.js';
import { IstioCertificateRequest, IstioCertificateServiceClient } from '../../proto/generated/istio/v1/auth/ca.js';
import { Pilot, type PilotOptions } from '../index.js';

export interface SecurePilot {
  pilot: Pilot;
  issuer: TokenIssuer;
  address: string;
  folder: string;
  /** All that was logged, a line an entry. */
  log: string[];
  store: ClosableStore;
}

export async function securePilot(yaml: string, options: Partial<NonNullable<PilotOptions['security']>> = {}, limits: NonNullable<PilotOptions['limits']> = {}): Promise<SecurePilot> {
  const store = new ClosableStore();
  const folder = mkdtempSync(join(tmpdir(), 'up-pilot-secure-'));
  store.defer(() => rmSync(folder, { recursive: true, force: true }));
  const issuer = await TokenIssuer.create();
  mkdirSync(join(folder, 'config'));
  writeFileSync(join(folder, 'config', 'mesh.yaml'), yaml);
  writeFileSync(join(folder, 'jwks.json'), JSON.stringify(issuer.jwks));
  const log: string[] = [];
  const logger = pino({ level: 'trace' }, { write: (line: string) => void log.push(line) });
  const security = { listen: ['127.0.0.1:0'], hosts: ['127.0.0.1', 'localhost'], tokenJwks: join(folder, 'jwks.json'), ...options };
  const pilot = new Pilot({ sources: [join(folder, 'config')], listen: ['127.0.0.1:0'], monitoringListen: '127.0.0.1:0', security, limits, logger, debounce: { quietMs: 20 } });
  await pilot.start();
  store.defer(() => pilot.stop());
  return { pilot, issuer, address: pilot.secureAddresses[0]!, folder, log, store };
}

export function bearer(token: string): Metadata {
  const metadata = new Metadata();
  metadata.set('authorization', `Bearer ${token}`);
  return metadata;
}

export interface Outcome {
  chain?: string[];
  error?: Pick<ServiceError, 'code' | 'details'>;
}

export interface CallWith {
  address: string;
  rootPem: string;
  metadata?: Metadata;
  certificate?: { chainPem: string; privateKeyPem: string };
}

export function createCertificate(request: Parameters<typeof IstioCertificateRequest.fromPartial>[0], { address, rootPem, metadata = new Metadata(), certificate }: CallWith): Promise<Outcome> {
  const own = certificate ? [Buffer.from(certificate.privateKeyPem), Buffer.from(certificate.chainPem)] : [];
  const client = new IstioCertificateServiceClient(address, credentials.createSsl(Buffer.from(rootPem), ...own), { 'grpc.use_local_subchannel_pool': 1 });
  return new Promise((resolve) => {
    client.createCertificate(IstioCertificateRequest.fromPartial(request), metadata, { deadline: Date.now() + 10_000 }, (error, response) => {
      client.close();
      resolve(error ? { error: { code: error.code, details: error.details } } : { chain: response.cert_chain });
    });
  });
}
