/** The guest's file system: Node, the compiled files that the checks load, the addon and helper programs, busybox, iproute2. */
import { chmodSync, cpSync, existsSync, lstatSync, mkdirSync, readFileSync, readdirSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { buildDir, projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';

const APPLETS = ['sh', 'mount', 'insmod', 'poweroff', 'stty', 'cat', 'cp', 'rm', 'mkdir', 'ls', 'true', 'sleep', 'unshare'];
/** Of this machine; objcopy makes the programs that the splice tests judge, bpftool counts what is left in maps. */
const PROGRAMS = ['ip', 'objcopy', 'bpftool', 'iptables', 'ip6tables', 'iptables-save', 'iptables-restore', 'ip6tables-save', 'ip6tables-restore'];
const HELPERS = ['underpass.node', 'socket-probe', 'socket-ends', 'underpass-exec', 'tcp-bench'];
/** Loaded by a name that no import statement shows. */
const OPTIONAL_PACKAGES = ['ffi-napi'];
const IN_GUEST = 'underpass';

/**
 * Packs `folder`/initramfs.cpio.
 * @param entries compiled files that the guest runs; what they import comes along
 * @returns the archive's path
 */
export async function packInitramfs(folder: string, entries: readonly string[], guestArguments: readonly string[]): Promise<string> {
  const root = join(folder, 'root');
  rmSync(root, { recursive: true, force: true });
  for (const name of ['proc', 'sys', 'dev', 'tmp', 'run', 'root', 'etc', 'modules', 'usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib64']) mkdirSync(join(root, name), { recursive: true });
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) symlinkSync(`usr/${name}`, join(root, name));
  const { files, packages } = importsOf(entries);
  for (const file of files) copy(join(projectRoot, file), join(root, IN_GUEST, file));
  for (const name of packages) copy(join(projectRoot, 'node_modules', name), join(root, IN_GUEST, 'node_modules', name));
  for (const name of HELPERS) copy(join(buildDir, name), join(root, IN_GUEST, 'build', name));
  copy(join(projectRoot, 'package.json'), join(root, IN_GUEST, 'package.json'));

  const busybox = await which('busybox');
  copy(busybox, join(root, 'usr/bin/busybox'));
  const programs = [process.execPath, ...(await Promise.all(PROGRAMS.map(which)))];
  for (const applet of APPLETS) symlinkSync('busybox', join(root, 'usr/bin', applet));
  for (const program of programs) copy(realpathSync(program), join(root, 'usr/sbin', basename(program)));
  const plugins = '/usr/lib/x86_64-linux-gnu/xtables';
  if (existsSync(plugins)) copy(plugins, join(root, plugins));
  const addons = packages.flatMap((name) => nativeAddons(join(projectRoot, 'node_modules', name)));
  const libraries = await librariesOf([...programs, ...HELPERS.map((name) => join(buildDir, name)), ...addons]);
  for (const library of libraries) copy(realpathSync(library), join(root, library.replace(/^\/lib/, '/usr/lib')));

  copy(join(projectRoot, 'test/kernels/init.sh'), join(root, 'init'));
  chmodSync(join(root, 'init'), 0o755);
  writeFileSync(join(root, 'arguments'), guestArguments.join(' '));
  const archive = join(folder, 'initramfs.cpio');
  await packTree(root, archive);
  rmSync(root, { recursive: true });
  return archive;
}

/** Writes a folder's files as the archive that the kernel unpacks; it unpacks several, one behind the other, as well. */
export async function packTree(folder: string, archive: string): Promise<void> {
  const { stdout: names } = await run('find', ['.', '-print0'], { cwd: folder });
  await run('cpio', ['--null', '--create', '--format=newc', '--quiet', '--file', archive], { input: names, cwd: folder });
}

function copy(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  cpSync(from, to, { recursive: true, dereference: true });
}

async function which(program: string): Promise<string> {
  for (const folder of ['/usr/sbin', '/usr/bin', '/sbin', '/bin']) if (existsSync(join(folder, program))) return join(folder, program);
  throw new Error(`packing the initramfs: there is no ${program}; run \`make setup\` and scripts/setup-kernels.sh`);
}

/** Compiled files that are reached by relative imports, below the project's root, and the packages that these import. */
function importsOf(entries: readonly string[]): { files: string[]; packages: string[] } {
  const files = new Set<string>();
  const packages = new Set<string>();
  const visit = (file: string): void => {
    const name = relative(projectRoot, file);
    if (files.has(name)) return;
    files.add(name);
    for (const [, target = ''] of readFileSync(file, 'utf8').matchAll(/(?:from\s+|import\s*\(\s*|import\s+|new URL\(\s*)['"]([^'"]+)['"]/g)) {
      if (target.startsWith('.')) {
        const found = resolve(dirname(file), target);
        if (found.endsWith('.js') && existsSync(found)) visit(found);
      } else if (!target.startsWith('node:')) {
        addPackage(target.split('/').slice(0, target.startsWith('@') ? 2 : 1).join('/'), packages);
      }
    }
  };
  for (const entry of entries) visit(resolve(projectRoot, entry));
  for (const name of OPTIONAL_PACKAGES) addPackage(name, packages);
  return { files: [...files], packages: [...packages] };
}

function addPackage(name: string, packages: Set<string>): void {
  const manifest = join(projectRoot, 'node_modules', name, 'package.json');
  if (packages.has(name) || !existsSync(manifest)) return;
  packages.add(name);
  const { dependencies = {} } = JSON.parse(readFileSync(manifest, 'utf8')) as { dependencies?: Record<string, string> };
  for (const dependency of Object.keys(dependencies)) addPackage(dependency, packages);
}

function nativeAddons(folder: string): string[] {
  return readdirSync(folder, { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((path) => /linux-x64\/[^/]*\.node$/.test(path) && lstatSync(path).isFile());
}

async function librariesOf(binaries: readonly string[]): Promise<string[]> {
  const found = new Set<string>();
  for (const binary of binaries) {
    const { stdout } = await run('ldd', [binary], { okCodes: [0, 1] }); // 1: linked statically
    for (const [path] of stdout.matchAll(/\/\S+\.so\S*/g)) found.add(path);
  }
  return [...found];
}
