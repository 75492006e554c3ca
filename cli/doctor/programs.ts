/** Rows about the programs that Underpass starts or builds on. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError, errorMessage } from '../../common/errors.js';
import { buildDir, envoyBinary } from '../../common/paths.js';
import { firstLine } from './network.js';
import type { Row, State } from './report.js';

const GROUP = 'Programs';
const OLDEST_ENVOY = [1, 39] as const;

/** `envoy --version` says `…/envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`. */
export function envoyVersion(line: string): string | undefined {
  return /version: [0-9a-f]+\/(\d+\.\d+\.\d+[^/]*)\//.exec(line)?.[1];
}

export async function programRows(): Promise<Row[]> {
  const rows: Row[] = [];
  const row = (id: string, name: string, need: Row['need'], state: State, detail: string, cost: string): void => {
    rows.push({ id, group: GROUP, name, need, state, detail, ...(state === 'yes' ? {} : { cost }) });
  };

  const noEnvoy = 'HTTP can\'t be routed, and no pod is captured; plain TCP between pods is still short-circuited';
  try {
    const path = envoyBinary();
    const line = (await firstLine(path, ['--version'])) ?? '';
    const version = envoyVersion(line);
    if (version === undefined) row('programs.envoy', 'Envoy', 'base', 'no', `${path} does not say its version: ${line.slice(0, 100)}`, noEnvoy);
    else {
      const [major = 0, minor = 0] = version.split('.').map(Number);
      const recent = major > OLDEST_ENVOY[0] || (major === OLDEST_ENVOY[0] && minor >= OLDEST_ENVOY[1]);
      row('programs.envoy', 'Envoy', 'base', recent ? 'yes' : 'no', `${version} (${path})`, 'before 1.39 it can\'t open connections in the pods\' namespaces');
    }
  } catch (error) {
    const hint = error instanceof UnderpassError && error.hint ? `; ${error.hint}` : '';
    row('programs.envoy', 'Envoy', 'base', 'no', errorMessage(error) + hint, noEnvoy);
  }

  const addon = join(buildDir, 'underpass.node');
  row('programs.addon', 'native addon', 'bpf', existsSync(addon) ? 'yes' : 'no', existsSync(addon) ? addon : `${addon} is not built: make build`, 'iptables only, no short-circuits');
  const helper = existsSync(join(buildDir, 'underpass-exec'));
  row('programs.exec', 'underpass-exec', 'base', helper ? 'yes' : 'no', helper ? 'built' : 'not built: make build', 'no process can be started in a pod');
  row('programs.node', 'Node', 'base', Number(process.versions.node.split('.')[0]) >= 20 ? 'yes' : 'no', `${process.versions.node}; 20 or newer is needed`, 'nothing is tried with older ones');

  // The image is without the lab, and asks for nothing of it.
  if (!existsSync(new URL('../lab.js', import.meta.url))) return rows;
  const labTools: [string, string[], string][] = [['ip', ['-V'], 'iproute2'], ['unshare', ['--version'], 'util-linux'], ['nginx', ['-v'], 'nginx-light'], ['wrk', ['-v'], 'wrk']];
  const found: string[] = [];
  const missing: string[] = [];
  for (const [command, args, debian] of labTools) {
    const line = await firstLine(command, args);
    if (line === undefined) missing.push(`${command} (package ${debian})`);
    else found.push(command);
  }
  if (existsSync(join(buildDir, 'tcp-bench'))) found.push('tcp-bench');
  else missing.push('tcp-bench (make build)');
  row('programs.lab', 'lab, demo and bench', 'extra', missing.length === 0 ? 'yes' : 'partly', missing.length === 0 ? found.join(', ') : `missing: ${missing.join(', ')}`, 'only parts of lab, demo and bench');
  return rows;
}
