/** Files of the Debian that this runs on: programs with their links, the libraries that they load, and the packages they are of. */
import { lstatSync, readFileSync, readdirSync, readlinkSync, realpathSync, existsSync, openSync, readSync, closeSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { UnderpassError } from '../common/errors.js';
import { run } from '../common/process.js';

export interface DebianPackage {
  name: string;
  version: string;
  architecture: string;
  source: string;
  /** Paths of those files of the package that were asked for. */
  files: string[];
}

const SEARCHED = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin'];

/** @throws UnderpassError `UNDERPASS_IMAGE_PROGRAM` when there is none */
export function findProgram(name: string): string {
  const path = name === 'node' ? process.execPath : SEARCHED.map((folder) => join(folder, name)).find((each) => existsSync(each));
  if (path === undefined) throw new UnderpassError('UNDERPASS_IMAGE_PROGRAM', `the program ${name} is in none of ${SEARCHED.join(', ')}`, { hint: './scripts/setup.sh image' });
  return path;
}

/** Collects paths as they have to be in the image: links as links, each with what it leads to. */
export class SystemFiles {
  /** Absolute, with no link in the folder's part. */
  readonly paths = new Set<string>();

  /** A file, what it leads to, and, where that is a program or library, all that it loads at start. */
  async add(path: string): Promise<void> {
    // Debian's /bin and /lib are links: the image has the same ones, and the file is where they lead.
    const own = join(realpathSync(dirname(path)), basename(path));
    if (this.paths.has(own)) return;
    this.paths.add(own);
    if (lstatSync(own).isSymbolicLink()) await this.add(resolve(dirname(own), readlinkSync(own)));
    else await this.addLibrariesOf(own);
  }

  /** The libraries that a program or library loads at start, for one that lies elsewhere in the image. */
  async addLibrariesOf(path: string): Promise<void> {
    if (!isElf(path)) return;
    // "not a dynamic executable" is exit 1: a static program.
    const { stdout } = await run('ldd', [path], { okCodes: [0, 1], timeoutMs: 20_000 });
    for (const line of stdout.split('\n')) {
      if (line.includes('not found')) throw new UnderpassError('UNDERPASS_IMAGE_LIBRARY', `${path} needs a library that is not installed: ${line.trim()}`);
      const [, library] = /(?:=> |^\s+)(\/\S+) \(0x/.exec(line) ?? [];
      if (library !== undefined) await this.add(library);
    }
  }

  /** Every library of a folder beside the C library, e.g. `xtables`. */
  async addPluginsOf(name: string): Promise<void> {
    const { stdout } = await run('ldd', [process.execPath], { timeoutMs: 20_000 });
    const folder = join(dirname(realpathSync(/=> (\S+\/libc\.so\.6) /.exec(stdout)?.[1] ?? '/')), name);
    for (const entry of readdirSync(folder)) if (entry.endsWith('.so')) await this.add(join(folder, entry));
  }
}

function isElf(path: string): boolean {
  const file = openSync(path, 'r');
  try {
    const start = Buffer.alloc(4);
    readSync(file, start, 0, 4, 0);
    return start.equals(Buffer.from('\x7fELF', 'latin1'));
  } finally {
    closeSync(file);
  }
}

/** The packages that the files are of; what no package owns (links of update-alternatives, generated files) is not in any. `also`: packages by name. */
export async function packagesOf(paths: Iterable<string>, also: readonly string[]): Promise<DebianPackage[]> {
  // Before /usr was merged a package's list said /bin/cat, and most still do.
  const asked = [...paths].flatMap((path) => [path, path.replace(/^\/usr\//, '/')]);
  const { stdout } = await run('dpkg-query', ['--search', ...asked], { okCodes: [0, 1], timeoutMs: 60_000 });
  const files = new Map<string, string[]>();
  for (const line of stdout.split('\n')) {
    const [, owners, path] = /^(?!diversion by)(.+?): (\/.+)$/.exec(line) ?? [];
    if (owners === undefined || path === undefined) continue;
    for (const owner of owners.split(', ')) files.set(owner, [...(files.get(owner) ?? []), path]);
  }
  const format = '${binary:Package}\\t${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\n';
  const packages: DebianPackage[] = [];
  for (const line of (await run('dpkg-query', ['--show', '--showformat', format, ...files.keys(), ...also], { timeoutMs: 60_000 })).stdout.trim().split('\n')) {
    const [key = '', name = '', version = '', architecture = '', source = ''] = line.split('\t');
    packages.push({ name, version, architecture, source, files: (files.get(key) ?? files.get(name) ?? []).sort() });
  }
  return packages.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/**
 * A package's copyright file. Some packages have theirs in another of the same source (libgcc-s1 in gcc-12-base), by a link
 * that slim images leave out.
 * @throws UnderpassError `UNDERPASS_IMAGE_LICENCE`
 */
export async function copyrightOf({ name, source }: DebianPackage): Promise<string> {
  const { stdout } = await run('dpkg-query', ['--show', '--showformat', '${source:Package}\\t${Package}\\n'], { timeoutMs: 60_000 });
  const siblings = stdout.split('\n').filter((line) => line.startsWith(`${source}\t`)).map((line) => line.slice(source.length + 1));
  for (const each of [name, ...siblings]) {
    const path = `/usr/share/doc/${each}/copyright`;
    if (existsSync(path)) return readFileSync(path, 'utf8');
  }
  throw new UnderpassError('UNDERPASS_IMAGE_LICENCE', `Debian's package ${name} has no /usr/share/doc/${name}/copyright`);
}

/** dpkg's record of a package, as tools that look through images expect it in var/lib/dpkg/status.d. */
export async function statusOf(name: string): Promise<string> {
  return (await run('dpkg-query', ['--status', name], { timeoutMs: 20_000 })).stdout;
}
