/**
 * What `node:20-bookworm-slim` is, without a registry of images: Debian's minimal system by debootstrap, slim as the official
 * image is, with this machine's Node where the official image has its own. Made once, below build/.
 */
import { existsSync, mkdirSync, readFileSync, readdirSync, realpathSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import { buildDir } from '../../common/paths.js';
import { run } from '../../common/process.js';
import type { Registries } from './registries.js';

const BASE = /^(?:docker\.io\/library\/)?node:(\d+)-(bookworm)-slim(?:@sha256:[0-9a-f]{64})?$/;

/** @throws UnderpassError `UNDERPASS_IMAGE_BASE` for another image than that one */
export function parseBase(base: string): { nodeMajor: string; codename: string } {
  const [, nodeMajor, codename] = BASE.exec(base) ?? [];
  if (nodeMajor === undefined || codename === undefined) throw new UnderpassError('UNDERPASS_IMAGE_BASE', `only node:MAJOR-bookworm-slim can be made here, not ${base}`);
  return { nodeMajor, codename };
}

/** Why this machine can't make a base, or undefined where it can. */
export function baseProblem(base: string): string | undefined {
  const { nodeMajor } = parseBase(base);
  if (process.versions.node.split('.')[0] !== nodeMajor) return `${base} has Node ${nodeMajor}, this machine ${process.versions.node}`;
  if (!existsSync('/usr/sbin/debootstrap')) return 'there is no debootstrap: ./scripts/setup-image.sh';
  return undefined;
}

/** @returns the folder, which nobody may change */
export async function makeBase(base: string, { mirror }: Registries): Promise<string> {
  const { codename } = parseBase(base);
  const folder = join(buildDir, 'image', `base-${codename}-node${process.versions.node}`);
  if (existsSync(folder)) return folder;
  const part = `${folder}.part`;
  rmSync(part, { recursive: true, force: true });
  mkdirSync(dirname(part), { recursive: true });
  try {
    await run('debootstrap', ['--variant=minbase', codename, part, mirror], { timeoutMs: 300_000 });
  } catch (error) {
    const log = join(part, 'debootstrap', 'debootstrap.log');
    throw existsSync(log) ? new UnderpassError('UNDERPASS_IMAGE_BASE', `debootstrap failed: ${readFileSync(log, 'utf8').slice(-500)}`, { cause: error }) : error;
  }
  makeSlim(part);
  await addNode(part);
  // Mount points of what differs in every container.
  for (const name of ['resolv.conf', 'hosts']) writeFileSync(join(part, 'etc', name), '');
  renameSync(part, folder);
  return folder;
}

/** As https://github.com/debuerreotype/debuerreotype leaves out documentation, but for licences; links to others' too. */
function makeSlim(root: string): void {
  writeFileSync(join(root, 'etc/dpkg/dpkg.cfg.d/docker'), 'path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\npath-exclude /usr/share/man/*\npath-exclude /usr/share/info/*\npath-exclude /usr/share/locale/*\n');
  const docs = join(root, 'usr/share/doc');
  for (const entry of readdirSync(docs, { withFileTypes: true })) {
    if (!entry.isDirectory()) rmSync(join(docs, entry.name));
    else for (const name of readdirSync(join(docs, entry.name))) if (name !== 'copyright') rmSync(join(docs, entry.name, name), { recursive: true });
  }
  for (const name of ['man', 'info', 'locale']) rmSync(join(root, 'usr/share', name), { recursive: true, force: true });
  for (const name of readdirSync(join(root, 'var/cache/apt/archives'))) if (name.endsWith('.deb')) rmSync(join(root, 'var/cache/apt/archives', name));
}

/** Into /usr/local, where the official image has it: the program, its headers, npm, and the licence. */
async function addNode(root: string): Promise<void> {
  const prefix = dirname(dirname(process.execPath));
  const npm = realpathSync((await run('npm', ['root', '--global'])).stdout.trim());
  const licence = [join(prefix, 'LICENSE'), '/usr/share/doc/nodejs/LICENSE', '/usr/share/doc/nodejs/copyright'].find((path) => existsSync(path));
  if (licence === undefined) throw new UnderpassError('UNDERPASS_IMAGE_BASE', `the licence of ${process.execPath} is not found`);
  const local = join(root, 'usr/local');
  for (const name of ['bin', 'include', 'lib/node_modules']) mkdirSync(join(local, name), { recursive: true });
  const copy = (from: string, to: string): Promise<unknown> => run('cp', ['--recursive', '--no-target-directory', from, join(local, to)]);
  await copy(process.execPath, 'bin/node');
  await copy(join(prefix, 'include/node'), 'include/node');
  await copy(join(npm, 'npm'), 'lib/node_modules/npm');
  await copy(licence, 'LICENSE');
  await run('ln', ['--symbolic', '../lib/node_modules/npm/bin/npm-cli.js', join(local, 'bin', basename('npm'))]);
}
