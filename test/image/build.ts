/** Carries out a Dockerfile: each stage is a folder, COPY copies, RUN runs with that folder as its root. */
import { appendFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { UnderpassError } from '../../common/errors.js';
import { run } from '../../common/process.js';
import { makeBase, parseBase } from './base.js';
import { enterRoot } from './chroot.js';
import { parseDockerfile, type Stage, type Step } from './dockerfile.js';
import { isIgnored, parseIgnored } from './ignored.js';
import { machineRegistries, type Registries } from './registries.js';

export interface BuildOptions {
  /** The folder with Dockerfile and .dockerignore. */
  context: string;
  /** Where stages go, each into a folder of its number; made anew. */
  work: string;
  args?: Readonly<Record<string, string>>;
  stepTimeoutMs?: number;
}

export interface BuiltStage {
  stage: Stage;
  root: string;
}

/**
 * @returns the stages in the Dockerfile's order
 * @throws UnderpassError `UNDERPASS_DOCKERFILE` beginning with `Dockerfile:LINE:`, with what a failed step printed last; all of
 *   it is in the file `log` below `work`
 */
export async function buildStages({ context, work, args = {}, stepTimeoutMs = 600_000 }: BuildOptions): Promise<BuiltStage[]> {
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  const built: BuiltStage[] = [];
  for (const [index, stage] of parseDockerfile(readFileSync(join(context, 'Dockerfile'), 'utf8'), args).entries()) {
    const root = join(work, String(index));
    const earlier = built.find((each) => each.stage.name === stage.base)?.root;
    let registries: Registries | undefined;
    if (stage.base === 'scratch') mkdirSync(root);
    else {
      registries = await machineRegistries(parseBase(stage.base).codename);
      await run('cp', ['--archive', '--reflink=auto', earlier ?? (await makeBase(stage.base, registries)), root], { timeoutMs: 120_000 });
      writeFileSync(join(root, 'etc/apt/sources.list'), registries.sources.map((line) => `${line}\n`).join(''));
    }
    let directory = '/';
    for (const step of stage.steps) {
      if (step.kind === 'workdir') {
        directory = step.path;
        mkdirSync(join(root, directory), { recursive: true });
      } else if (step.kind === 'copy') copyStep(step, { context, root, directory, built });
      else await runStep(step, { root, directory, stage, registries, log: join(work, 'log'), timeoutMs: stepTimeoutMs });
    }
    built.push({ stage, root });
  }
  return built;
}

type Of<K extends Step['kind']> = Extract<Step, { kind: K }>;

async function runStep(step: Of<'run'>, { root, directory, stage, registries, log, timeoutMs }: { root: string; directory: string; stage: Stage; registries: Registries | undefined; log: string; timeoutMs: number }): Promise<void> {
  const env = { HOME: '/root', ...registries?.env, ...Object.fromEntries(stage.config.Env.map((each) => [each.slice(0, each.indexOf('=')), each.slice(each.indexOf('=') + 1)])) };
  const startMs = performance.now();
  const { code, stdout, stderr } = await enterRoot(root, ['/bin/sh', '-c', step.script], { env, cwd: directory, binds: registries?.binds ?? {}, timeoutMs });
  appendFileSync(log, `Dockerfile:${step.line}: RUN ${step.script}\n${stdout}${stderr}exit ${code} after ${((performance.now() - startMs) / 1000).toFixed(0)} s\n`);
  if (code !== 0) throw new UnderpassError('UNDERPASS_DOCKERFILE', `Dockerfile:${step.line}: RUN ended with ${code}; the whole output is in ${log}\n${`${stdout}${stderr}`.trimEnd().split('\n').slice(-20).join('\n')}`);
}

/** A folder's content goes into the target, a file into a target that ends with / or is a folder, as the Dockerfile's reference has it. */
function copyStep(step: Of<'copy'>, { context, root, directory, built }: { context: string; root: string; directory: string; built: readonly BuiltStage[] }): void {
  const ignored = step.from === undefined ? parseIgnored(readFileSync(join(context, '.dockerignore'), 'utf8')) : [];
  const from = step.from === undefined ? context : built.find(({ stage }) => stage.name === step.from)!.root;
  const target = resolve(directory, step.target);
  const isFolder = step.target.endsWith('/') || step.sources.length > 1 || (existsSync(join(root, target)) && statSync(join(root, target)).isDirectory());
  for (const source of step.sources) {
    const path = join(from, source);
    const name = step.from === undefined ? join(source).replace(/\/$/, '') : '.';
    if (!existsSync(path) || (name !== '.' && isIgnored(ignored, name))) {
      throw new UnderpassError('UNDERPASS_DOCKERFILE', `Dockerfile:${step.line}: COPY ${source}: there is no such file${step.from === undefined ? ', or .dockerignore leaves it out' : ` in the stage ${step.from}`}`);
    }
    if (!statSync(path).isDirectory()) {
      const to = join(root, isFolder ? join(target, basename(source)) : target);
      mkdirSync(dirname(to), { recursive: true });
      cpSync(path, to);
      continue;
    }
    mkdirSync(join(root, target), { recursive: true });
    for (const entry of readdirSync(path)) {
      const filter = (each: string): boolean => step.from !== undefined || !isIgnored(ignored, each.slice(context.length + 1));
      if (!filter(join(path, entry))) continue;
      cpSync(join(path, entry), join(root, target, entry), { recursive: true, verbatimSymlinks: true, filter });
    }
  }
}
