/** What has to be there before anything is made, said in one go. */
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { UnderpassError } from '../common/errors.js';
import { execHelper } from './names.js';

/** Program and the Debian package that has it. */
const TOOLS: readonly [string, string][] = [
  ['ip', 'iproute2'],
  ['nft', 'nftables'],
  ['unshare', 'util-linux'],
  ['umount', 'mount'],
];

export interface PreflightOptions {
  uid?: number;
  /** As $PATH. */
  path?: string;
  helper?: string;
}

/** @throws UnderpassError `UNDERPASS_LAB_PREFLIGHT` naming all that is missing */
export function preflight(action: string, options: PreflightOptions = {}): void {
  if ((options.uid ?? process.getuid?.()) !== 0) {
    throw new UnderpassError('UNDERPASS_LAB_PREFLIGHT', `${action}: needs root, since it makes network namespaces and cgroups`);
  }
  const directories = (options.path ?? process.env['PATH'] ?? '').split(delimiter).filter(Boolean);
  const missing = TOOLS.filter(([tool]) => !directories.some((directory) => isExecutable(join(directory, tool))));
  if (missing.length > 0) {
    throw new UnderpassError('UNDERPASS_LAB_PREFLIGHT', `${action}: not found in PATH: ${missing.map(([tool]) => tool).join(', ')}`, {
      hint: `apt-get install ${missing.map(([, name]) => name).join(' ')}, or run \`make setup\``,
    });
  }
  const helper = options.helper ?? execHelper;
  if (!isExecutable(helper)) {
    throw new UnderpassError('UNDERPASS_LAB_PREFLIGHT', `${action}: ${helper} is not there`, { hint: 'run `make build`' });
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
