/**
 * A root file system as a docker-archive, which `ctr -n k8s.io images import FILE` and `docker load` take.
 *   node dist/test/image/archive.js FILE TAG [ROOT]
 * makes the product's image. Without ROOT the root file system is made out of the built project and this machine's Debian,
 * by the program that the Dockerfile's build stage ends with, in seconds; config and labels are the Dockerfile's.
 */
import { createHash } from 'node:crypto';
import { createReadStream, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { errorMessage } from '../../common/errors.js';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { makeRoot } from '../../image/main.js';
import { parseDockerfile, type ImageConfig } from './dockerfile.js';

const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' };

/** The config of the image that the Dockerfile makes. */
export function productConfig(): ImageConfig {
  return parseDockerfile(readFileSync(join(projectRoot, 'Dockerfile'), 'utf8')).at(-1)!.config;
}

/**
 * Writes the archive; the same content gives the same bytes.
 * @param tag with a registry's name, as containerd wants it: `docker.io/library/underpass:test`
 */
export async function writeArchive(file: string, { root, config, tag }: { root: string; config: ImageConfig; tag: string }): Promise<void> {
  mkdirSync(dirname(file), { recursive: true });
  const folder = mkdtempSync(`${file}.`);
  try {
    const layer = join(folder, 'layer.tar');
    await tar(layer, root, ['.']);
    const image = {
      architecture: ARCHITECTURES[process.arch] ?? process.arch,
      os: 'linux',
      created: new Date(0).toISOString(),
      config,
      rootfs: { type: 'layers', diff_ids: [`sha256:${await sha256(layer)}`] },
      history: [{ created: new Date(0).toISOString(), created_by: 'Dockerfile' }],
    };
    const text = JSON.stringify(image);
    const name = `${createHash('sha256').update(text).digest('hex')}.json`;
    writeFileSync(join(folder, name), text);
    writeFileSync(join(folder, 'manifest.json'), JSON.stringify([{ Config: name, RepoTags: [tag], Layers: ['layer.tar'] }]));
    await tar(join(folder, 'image.tar'), folder, ['manifest.json', name, 'layer.tar']);
    renameSync(join(folder, 'image.tar'), file);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The product's image out of the built project and this machine's Debian. */
export async function writeProductArchive(file: string, tag: string): Promise<void> {
  mkdirSync(dirname(file), { recursive: true });
  const folder = mkdtempSync(`${file}.root.`);
  try {
    await makeRoot(join(folder, 'root'));
    await writeArchive(file, { root: join(folder, 'root'), config: productConfig(), tag });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function tar(to: string, folder: string, what: readonly string[]): Promise<unknown> {
  return run('tar', ['--create', '--file', to, '--directory', folder, '--numeric-owner', '--owner=0', '--group=0', '--sort=name', '--mtime=@0', ...what], { timeoutMs: 120_000 });
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [file, tag, root, ...more] = process.argv.slice(2);
  try {
    process.umask(0o022);
    if (file === undefined || tag === undefined || more.length > 0) throw new Error('usage: node dist/test/image/archive.js FILE TAG [ROOT]');
    if (root === undefined) await writeProductArchive(resolve(file), tag);
    else await writeArchive(resolve(file), { root: resolve(root), config: productConfig(), tag });
  } catch (error) {
    process.stderr.write(`archive: ${errorMessage(error)}\n`);
    process.exitCode = 1;
  }
}
