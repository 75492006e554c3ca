/** Images of a real node's pods, made here without a registry or an engine. */
import { chmodSync, copyFileSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { projectRoot } from '../../common/paths.js';
import { run } from '../../common/process.js';
import { writeArchive } from '../image/archive.js';

/** What pods of tests run: Node with the lab's echo, a client, and one that sends at once; busybox's programs. */
export const PROGRAMS = 'docker.io/underpass-test/programs:1';
/** What holds the namespaces of each pod. */
export const PAUSE = 'docker.io/underpass-test/pause:1';

const BUSYBOX = '/bin/busybox';
const APPLETS = ['sh', 'cat', 'sleep', 'true'];
const APP = ['lab/images/echo.js', 'lab/images/http.js', 'lab/images/websocket.js', 'test/load-client.js', 'test/kube/images/first-word.js'];
const PATH = 'PATH=/usr/bin:/bin';

/** @returns the image's archive */
export async function pauseArchive(folder: string): Promise<string> {
  const root = join(folder, 'pause');
  mkdirSync(root, { recursive: true });
  await run('cc', ['-Os', '-static', '-Wall', '-Wextra', '-o', join(root, 'pause'), join(projectRoot, 'test', 'kube', 'images', 'pause.c')], { timeoutMs: 60_000 });
  return archived(root, PAUSE, ['/pause']);
}

/** @returns the image's archive */
export async function programsArchive(folder: string): Promise<string> {
  const root = join(folder, 'programs');
  copyInto(process.execPath, root, '/usr/bin/node');
  const { stdout } = await run('ldd', [process.execPath]);
  for (const [, library = ''] of stdout.matchAll(/(\/\S+) \(0x/g)) copyInto(library, root, library);
  copyInto(BUSYBOX, root, BUSYBOX);
  for (const applet of APPLETS) symlinkSync('busybox', join(root, 'bin', applet));
  for (const name of APP) copyInto(join(projectRoot, 'dist', name), root, `/app/${basename(name)}`);
  writeFileSync(join(root, 'app', 'package.json'), '{"type": "module"}\n');
  return archived(root, PROGRAMS, ['node']);
}

async function archived(root: string, tag: string, entrypoint: string[]): Promise<string> {
  await writeArchive(`${root}.tar`, { root, tag, config: { Env: [PATH], Labels: {}, User: '', WorkingDir: '/', Entrypoint: entrypoint, Cmd: [] } });
  rmSync(root, { recursive: true });
  return `${root}.tar`;
}

function copyInto(file: string, root: string, target: string): void {
  const path = join(root, target);
  mkdirSync(dirname(path), { recursive: true });
  copyFileSync(file, path);
  chmodSync(path, 0o755);
}

/** Why images can't be made here; undefined: they can. */
export function imagesProblem(): string | undefined {
  return existsSync(BUSYBOX) ? undefined : `${BUSYBOX} is not there, \`make test-kube\` brings it`;
}
