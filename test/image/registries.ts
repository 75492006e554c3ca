/**
 * How this machine reaches Debian's, npm's and Python's packages, for steps that run in another root: everything goes in by
 * environment and read-only mounts below /run, so that none of it stays in what the steps make.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import { run } from '../../common/process.js';

export interface Registries {
  /** Lines of sources.list: where this machine gets this Debian from. */
  sources: string[];
  /** Where the base system comes from. */
  mirror: string;
  env: Record<string, string>;
  binds: Record<string, string>;
}

/** Proxies, and certificates of those; pip's own names. */
const ENVIRONMENT = /^(?:(?:https?|no|all)_proxy|PIP_\w+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NODE_EXTRA_CA_CERTS|npm_config_\w+)$/i;
const NPM_SETTINGS = ['registry', 'cafile', 'proxy', 'https-proxy', 'noproxy'] as const;
/** Where npm and pip keep what may name an account. */
const FOLDER = '/run/machine';

/**
 * @param codename of the Debian release, e.g. `bookworm`
 * @throws UnderpassError `UNDERPASS_IMAGE_SOURCES` on a machine that has no such Debian
 */
export async function machineRegistries(codename: string): Promise<Registries> {
  const targets = await output('apt-get', ['indextargets', '--format', '$(SITE) $(RELEASE) $(COMPONENT)', 'Created-By: Packages']);
  const releases = [codename, `${codename}-updates`, `${codename}-security`];
  const found = targets.split('\n').map((line) => line.split(' ')).filter(([, release = '', component]) => releases.includes(release) && component === 'main');
  const mirror = found.find(([, release]) => release === codename)?.[0];
  if (mirror === undefined) throw new UnderpassError('UNDERPASS_IMAGE_SOURCES', `this machine's apt sources have no main of ${codename}`);

  const env: Record<string, string> = {};
  const binds: Record<string, string> = { '/etc/resolv.conf': '/etc/resolv.conf', '/etc/hosts': '/etc/hosts' };
  const set = (name: string, value: string): void => {
    // A value that is a file of this machine, such as a certificate, goes in with it.
    if (value.startsWith('/') && existsSync(value)) {
      const inside = join(FOLDER, name);
      binds[inside] = value;
      env[name] = inside;
    } else env[name] = value;
  };
  for (const name of NPM_SETTINGS) {
    const value = await output('npm', ['config', 'get', name]);
    if (!['', 'null', 'undefined'].includes(value)) set(`npm_config_${name.replace('-', '_')}`, value);
  }
  const account = await output('npm', ['config', 'get', 'userconfig']);
  if (existsSync(account)) set('npm_config_userconfig', account);
  // `global.cert='/path'`; what comes from the environment is named `:env:` and is below.
  for (const line of (await output('python3', ['-m', 'pip', 'config', 'list'])).split('\n')) {
    const [, name, value] = /^(?:global|user|site|install|download)\.([\w-]+)='(.*)'$/.exec(line) ?? [];
    if (name !== undefined && value !== undefined) set(`PIP_${name.replaceAll('-', '_').toUpperCase()}`, value);
  }
  for (const [name, value] of Object.entries(process.env)) if (ENVIRONMENT.test(name) && value !== undefined) set(name, value);
  return { sources: found.map(([site, release, component]) => `deb ${site} ${release} ${component}`), mirror, env, binds };
}

async function output(command: string, args: readonly string[]): Promise<string> {
  return (await run(command, args, { timeoutMs: 30_000 })).stdout.trim();
}
