/** Which compiled modules and which npm packages the command line reaches, and which files of those run. */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { UnderpassError } from '../common/errors.js';

export interface NpmPackage {
  name: string;
  version: string;
  /** SPDX expression of its package.json, or undefined where it gives none. */
  license: string | undefined;
  /** Relative to the project's folder, e.g. `node_modules/debug`. */
  folder: string;
  /** Relative to `folder`, sorted: what may run, and package.json. */
  files: string[];
}

export interface Reached {
  /** Relative to the project's folder, sorted; with their source maps. */
  modules: string[];
  packages: NpmPackage[];
}

/** Imports, static and dynamic; modules started as programs; modules that only `require` can load. */
const SPECIFIER = /(?:\bfrom\s+|\bimport\s*\(\s*|^import\s+|\bnew URL\(\s*|createRequire\(import\.meta\.url\)\(\s*)(['"])([^'"]+)\1/gm;

/**
 * @param root the project's folder, built
 * @param entries the modules to start from, and `without` those that are left out though something imports them; all relative to root
 * @throws UnderpassError `UNDERPASS_IMAGE_MODULE` with the module and the import that leads nowhere
 */
export function reach(root: string, entries: readonly string[], without: readonly string[]): Reached {
  const modules = new Set<string>();
  const packages = new Map<string, NpmPackage>();
  const visit = (module: string): void => {
    if (modules.has(module) || without.includes(module)) return;
    modules.add(module);
    for (const [, , specifier = ''] of readFileSync(join(root, module), 'utf8').matchAll(SPECIFIER)) {
      if (specifier.startsWith('node:')) continue;
      if (/^\.{1,2}\//.test(specifier)) {
        const target = relative(root, resolve(root, dirname(module), specifier));
        if (!existsSync(join(root, target))) throw new UnderpassError('UNDERPASS_IMAGE_MODULE', `${module}: '${specifier}' leads to ${target}, which does not exist`, { hint: 'make build' });
        if (target.endsWith('.js')) visit(target);
      } else if (specifier.endsWith('.js') && specifier.split('/').length === 1) visit(join(dirname(module), specifier));
      else visitPackage(packageName(specifier), dirname(module), module);
    }
  };
  const visitPackage = (name: string, from: string, wantedBy: string | undefined): void => {
    const folder = findPackage(root, name, from);
    if (folder === undefined) {
      if (wantedBy === undefined) return;
      throw new UnderpassError('UNDERPASS_IMAGE_MODULE', `${wantedBy}: the package ${name} is not installed`, { hint: 'make setup' });
    }
    if (packages.has(folder)) return;
    const own = JSON.parse(readFileSync(join(root, folder, 'package.json'), 'utf8')) as PackageJson;
    packages.set(folder, { name: own.name, version: own.version, license: own.license, folder, files: runningFiles(join(root, folder)) });
    for (const dependency of Object.keys(own.dependencies ?? {})) if (!dependency.startsWith('@types/')) visitPackage(dependency, folder, join(folder, 'package.json'));
    for (const dependency of Object.keys({ ...own.optionalDependencies, ...own.peerDependencies })) visitPackage(dependency, folder, undefined);
  };
  for (const entry of entries) visit(entry);
  const maps = [...modules].map((module) => `${module}.map`).filter((map) => existsSync(join(root, map)));
  const byFolder = (a: NpmPackage, b: NpmPackage): number => (a.folder < b.folder ? -1 : 1);
  return { modules: [...modules, ...maps].sort(), packages: [...packages.values()].sort(byFolder) };
}

interface PackageJson {
  name: string;
  version: string;
  license?: string;
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
  peerDependencies?: Record<string, string>;
}

function packageName(specifier: string): string {
  return specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');
}

/** As Node resolves it: the nearest node_modules from `from` upwards. */
function findPackage(root: string, name: string, from: string): string | undefined {
  for (let folder = from; ; folder = dirname(folder)) {
    const candidate = join(folder, 'node_modules', name);
    if (existsSync(join(root, candidate, 'package.json'))) return candidate;
    if (folder === '.') return undefined;
  }
}

/** Of a package's own folder; the same names deeper down are code (`yaml/dist/doc`). */
const IDLE_FOLDERS = /^(?:test|tests|__tests__|docs?|examples?|bench|benchmarks?|coverage|man|scripts|node_modules|\..*)$/;
/** Sources of an addon, for whom there is no prebuilt one. */
const ADDON_SOURCES = /^(?:src|deps|build)$/;
const IDLE_FILES = /(?:^\..*|\.d\.[cm]?ts|\.[cm]?ts|\.map|\.md|\.markdown|\.flow|\.c|\.cc|\.cpp|\.h|\.hpp|\.gypi?|\.tsbuildinfo|\.ya?ml|\.html|\.sh|\.bat|^makefile|^tsconfig.*\.json|^package-lock\.json)$/i;
const PREBUILT = `${process.platform}-${process.arch}`;

function runningFiles(folder: string): string[] {
  const found: string[] = [];
  const isAddon = existsSync(join(folder, 'binding.gyp'));
  const walk = (below: string): void => {
    for (const entry of readdirSync(join(folder, below), { withFileTypes: true })) {
      const path = join(below, entry.name);
      if (entry.isDirectory()) {
        if (below === '' && (IDLE_FOLDERS.test(entry.name) || (isAddon && ADDON_SOURCES.test(entry.name)))) continue;
        if (below === 'prebuilds' && entry.name !== PREBUILT) continue;
        walk(path);
      } else if (entry.isFile() && !IDLE_FILES.test(entry.name)) found.push(path);
    }
  };
  walk('');
  return found.sort();
}
