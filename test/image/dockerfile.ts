/**
 * Reads a Dockerfile, as far as the product's own goes (https://docs.docker.com/reference/dockerfile/): what it does not know
 * is an error that names the line, never passed over.
 */
import { UnderpassError } from '../../common/errors.js';

export type Step =
  | { line: number; kind: 'run'; script: string }
  | { line: number; kind: 'copy'; from: string | undefined; sources: string[]; target: string }
  | { line: number; kind: 'workdir'; path: string };

/** What a container starts with; names as in an image's config (https://github.com/opencontainers/image-spec/blob/main/config.md). */
export interface ImageConfig {
  Env: string[];
  Labels: Record<string, string>;
  User: string;
  WorkingDir: string;
  Entrypoint: string[];
  Cmd: string[];
}

export interface Stage {
  line: number;
  /** An image, `scratch`, or the name of an earlier stage. */
  base: string;
  name: string | undefined;
  steps: Step[];
  config: ImageConfig;
}

/**
 * @param given values of build arguments, over the file's own defaults
 * @throws UnderpassError `UNDERPASS_DOCKERFILE` beginning with `Dockerfile:LINE:`
 */
export function parseDockerfile(text: string, given: Readonly<Record<string, string>> = {}): Stage[] {
  const stages: Stage[] = [];
  const globals: Record<string, string> = {};
  let scope = globals;
  for (const { line, name, rest } of instructions(text)) {
    const fail = (problem: string): never => {
      throw new UnderpassError('UNDERPASS_DOCKERFILE', `Dockerfile:${line}: ${problem}`);
    };
    const expand = (value: string): string =>
      value.replace(/\\\$|\$\{(\w+)\}|\$(\w+)|\$/g, (whole, braced?: string, plain?: string) => {
        const variable = braced ?? plain;
        if (whole === '\\$') return '$';
        if (variable === undefined) return fail(`only $NAME and \${NAME} are known: ${value}`);
        return scope[variable] ?? fail(`${variable} is not set by an ARG or ENV before this line`);
      });
    const stage = stages.at(-1);
    if (name === 'ARG') {
      const [, key = '', value] = /^(\w+)(?:=(.*))?$/.exec(rest) ?? fail(`ARG takes NAME or NAME=VALUE: ${rest}`);
      const known = given[key] ?? (value === undefined ? globals[key] : expand(unquote(value)));
      scope[key] = known ?? fail(`the argument ${key} has no value`);
      continue;
    }
    if (name === 'FROM') {
      const [, base = '', as] = /^(\S+)(?:\s+AS\s+(\S+))?$/i.exec(rest) ?? fail(`FROM takes BASE or BASE AS NAME: ${rest}`);
      scope = globals;
      stages.push({ line, base: expand(base), name: as, steps: [], config: { Env: [], Labels: {}, User: '', WorkingDir: '/', Entrypoint: [], Cmd: [] } });
      scope = {};
      continue;
    }
    if (stage === undefined) return fail(`${name} before the first FROM`);
    const words = (): string[] => {
      const list: unknown = (() => {
        try {
          return JSON.parse(rest);
        } catch {
          return undefined;
        }
      })();
      if (!Array.isArray(list) || !list.every((word): word is string => typeof word === 'string')) return fail(`${name} takes a JSON list of words here`);
      return list;
    };
    switch (name) {
      case 'RUN':
        if (/^(?:\[|--)/.test(rest)) fail('RUN takes a shell command here, no list and no options');
        stage.steps.push({ line, kind: 'run', script: rest });
        break;
      case 'COPY': {
        const [, from, paths = ''] = /^(?:--from=(\S+)\s+)?([^-[].*)$/.exec(rest) ?? fail(`COPY takes --from=STAGE, sources and a target here: ${rest}`);
        const all = expand(paths).split(/\s+/);
        const target = all.pop() ?? '';
        if (all.length === 0) fail(`COPY takes a source and a target: ${rest}`);
        if (all.some((source) => /[*?[]/.test(source))) fail(`COPY takes no patterns here: ${rest}`);
        if (from !== undefined && !stages.slice(0, -1).some((earlier) => earlier.name === from)) fail(`no stage before this one is named ${from}`);
        stage.steps.push({ line, kind: 'copy', from, sources: all, target });
        break;
      }
      case 'WORKDIR':
        if (!expand(rest).startsWith('/')) fail(`WORKDIR takes an absolute path here: ${rest}`);
        stage.config.WorkingDir = expand(rest);
        stage.steps.push({ line, kind: 'workdir', path: expand(rest) });
        break;
      case 'ENV':
      case 'LABEL':
        for (const [key, value] of pairs(rest, fail)) {
          const expanded = expand(value);
          if (name === 'LABEL') stage.config.Labels[key] = expanded;
          else {
            scope[key] = expanded;
            stage.config.Env = [...stage.config.Env.filter((each) => !each.startsWith(`${key}=`)), `${key}=${expanded}`];
          }
        }
        break;
      case 'USER':
        stage.config.User = expand(rest);
        break;
      case 'ENTRYPOINT':
        stage.config.Entrypoint = words();
        break;
      case 'CMD':
        stage.config.Cmd = words();
        break;
      default:
        fail(`the instruction ${name} is not known here`);
    }
  }
  if (stages.length === 0) throw new UnderpassError('UNDERPASS_DOCKERFILE', 'Dockerfile:1: there is no FROM');
  return stages;
}

/** Instructions with their first line; comments and empty lines left out, continued lines joined. */
function instructions(text: string): { line: number; name: string; rest: string }[] {
  const found: { line: number; name: string; rest: string }[] = [];
  let open: { line: number; text: string } | undefined;
  for (const [index, raw] of text.split('\n').entries()) {
    if (/^\s*(?:#.*)?$/.test(raw)) continue;
    const continued = raw.trimEnd().endsWith('\\');
    const part = continued ? raw.trimEnd().slice(0, -1) : raw;
    open = { line: open?.line ?? index + 1, text: open === undefined ? part : `${open.text} ${part.trim()}` };
    if (continued) continue;
    const [, name = '', rest = ''] = /^\s*(\S+)\s*(.*?)\s*$/.exec(open.text) ?? [];
    found.push({ line: open.line, name: name.toUpperCase(), rest });
    open = undefined;
  }
  if (open !== undefined) throw new UnderpassError('UNDERPASS_DOCKERFILE', `Dockerfile:${open.line}: the last line ends with a backslash`);
  return found;
}

/** `A=b C="d e"` */
function pairs(text: string, fail: (problem: string) => never): [string, string][] {
  const found: [string, string][] = [];
  let rest = text;
  while (rest !== '') {
    const [whole, key = '', value = ''] = /^([\w.-]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?:\s+|$)/.exec(rest) ?? fail(`expected NAME=VALUE: ${rest}`);
    found.push([key, unquote(value)]);
    rest = rest.slice(whole.length);
  }
  return found;
}

function unquote(value: string): string {
  return value.startsWith('"') ? value.slice(1, -1).replace(/\\(["\\])/g, '$1') : value;
}
