/**
 * Certificates by path. A sidecar is given them by the secret server of its pod's agent; the shared Envoy has none, so it
 * reads them itself, from the node's file system.
 */
import { DataSource } from '../../proto/generated/envoy/config/core/v3/base.js';
import { CertificateValidationContext, TlsCertificate } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/common.js';
import type { SdsSecretConfig } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';
import type { CommonTlsContext } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/tls.js';

/** With files in the place of secrets that are named by path; other secrets stay. */
export function withFiles(common: CommonTlsContext): CommonTlsContext {
  const certificates = common.tls_certificate_sds_secret_configs.flatMap((secret) => {
    const [certificate, key] = paths(secret, 'cert') ?? [];
    return certificate && key ? [TlsCertificate.fromPartial({ certificate_chain: file(certificate), private_key: file(key) })] : [];
  });
  const validation = common.validation_context_type;
  const [root] = (validation?.$case === 'combined_validation_context' && paths(validation.value.validation_context_sds_secret_config, 'root')) || [];
  return {
    ...common,
    ...(certificates.length > 0 ? { tls_certificates: certificates, tls_certificate_sds_secret_configs: [] } : {}),
    ...(root && validation?.$case === 'combined_validation_context'
      ? { validation_context_type: { $case: 'validation_context', value: { ...CertificateValidationContext.fromPartial(validation.value.default_validation_context ?? {}), ...trusted(root) } } }
      : {}),
  };
}

/** Whether anything of it is still to be fetched from a secret server. */
export function needsSecrets({ tls_certificate_sds_secret_configs: secrets, validation_context_type: validation }: CommonTlsContext): boolean {
  return secrets.length > 0 || validation?.$case === 'combined_validation_context' || validation?.$case === 'validation_context_sds_secret_config';
}

/** Of `file-cert:CHAIN~KEY` and `file-root:PATH`. */
function paths(secret: SdsSecretConfig | undefined, kind: 'cert' | 'root'): string[] | undefined {
  const prefix = `file-${kind}:`;
  return secret?.name.startsWith(prefix) ? secret.name.slice(prefix.length).split('~') : undefined;
}

/** `system` is the trust store of the node; as for OpenSSL, `SSL_CERT_FILE` names another one. */
function trusted(root: string): Pick<CertificateValidationContext, 'trusted_ca'> | Pick<CertificateValidationContext, 'system_root_certs'> {
  const path = root === 'system' ? process.env['SSL_CERT_FILE'] : root;
  return path ? { trusted_ca: file(path) } : { system_root_certs: {} };
}

function file(filename: string): DataSource {
  return DataSource.fromPartial({ specifier: { $case: 'filename', value: filename } });
}
