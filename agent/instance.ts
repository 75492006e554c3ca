/** Where one agent of a machine keeps what it needs across restarts, and is asked. */
import { join } from 'node:path';
import { cgroup2Root } from '../common/cgroup.js';
import { UnderpassError } from '../common/errors.js';
import { defaultBpffsDir, defaultRunDir } from '../common/paths.js';
import { LONGEST_SOCKET_NAME } from './proxy/hot-restart.js';

export const DEFAULT_INSTANCE = 'default';

/** sun_path holds 108 bytes with its end. */
const MAX_FOLDER_BYTES = 107 - LONGEST_SOCKET_NAME.length;

/** Where one instance keeps what it needs across restarts. */
export function instancePaths(options: { runDir?: string; bpffsDir?: string; instance?: string }): { instance: string; folder: string; bpffsDir: string; adminSocket: string; cniSocket: string; netnsFolder: string } {
  const instance = options.instance ?? DEFAULT_INSTANCE;
  if (!/^[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?$/.test(instance) || instance === 'lab') {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--instance ${instance}: expected up to 42 lower-case letters, digits and dashes, and not "lab"`);
  }
  const folder = join(options.runDir ?? defaultRunDir, instance);
  if (Buffer.byteLength(folder) > MAX_FOLDER_BYTES) {
    throw new UnderpassError('UNDERPASS_BAD_OPTION', `--run-dir: ${folder} is too long for the sockets in it: expected at most ${MAX_FOLDER_BYTES} bytes with the instance's name`);
  }
  return { instance, folder, bpffsDir: options.bpffsDir ?? defaultBpffsDir, adminSocket: join(folder, 'agent.sock'), cniSocket: join(folder, 'cni.sock'), netnsFolder: join(folder, 'netns') };
}

/** The cgroup of all that this instance itself runs. */
export function instanceCgroup(instance: string): string {
  return join(cgroup2Root(), `underpass-${instance}`);
}
