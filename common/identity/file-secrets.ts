/**
 * Certificates that a Gateway or DestinationRule names by path in the proxy's container. Istio's control plane names them
 * `file-cert:CERTIFICATE~KEY` and `file-root:CA` (istio/istio, pkg/security/security.go); the proxy's SDS server reads the files.
 */
import { Secret } from '../../proto/generated/envoy/extensions/transport_sockets/tls/v3/secret.js';

const inline = (text: string) => ({ specifier: { $case: 'inline_string' as const, value: text } });

/** `file-root:system`: what the system trusts, where Debian has it. */
const SYSTEM_ROOTS = '/etc/ssl/certs/ca-certificates.crt';

/** @param read a file's content by its path in the container; undefined when it is not there */
export function fileSecret(name: string, read: (path: string) => string | undefined): Secret | undefined {
  const [, kind, paths = ''] = /^file-(cert|root):(.*)$/.exec(name) ?? [];
  if (kind === 'cert') {
    const [certificatePath = '', keyPath = ''] = paths.split('~');
    const [certificate, key] = [read(certificatePath), read(keyPath)];
    if (certificate === undefined || key === undefined) return undefined;
    const value = { certificate_chain: inline(certificate), private_key: inline(key) };
    return Secret.fromPartial({ name, type: { $case: 'tls_certificate', value } });
  }
  if (kind === 'root') {
    const trusted = read(paths === 'system' ? SYSTEM_ROOTS : paths);
    if (trusted === undefined) return undefined;
    return Secret.fromPartial({ name, type: { $case: 'validation_context', value: { trusted_ca: inline(trusted) } } });
  }
  return undefined;
}
