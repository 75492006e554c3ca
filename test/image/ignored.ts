/** What .dockerignore leaves out, as far as the product's own goes: paths, `*`, and `!` for what stays. */
import { UnderpassError } from '../../common/errors.js';

export interface Ignored {
  path: string;
  stays: boolean;
}

/** @throws UnderpassError `UNDERPASS_DOCKERFILE` beginning with `.dockerignore:LINE:` for a pattern that is not known here */
export function parseIgnored(text: string): Ignored[] {
  return text.split('\n').flatMap((raw, index) => {
    const line = raw.trim();
    if (line === '' || line.startsWith('#')) return [];
    const [, mark, path = ''] = /^(!?)(.*)$/.exec(line)!;
    if (path !== '*' && !/^[\w.-]+(?:\/[\w.-]+)*$/.test(path)) throw new UnderpassError('UNDERPASS_DOCKERFILE', `.dockerignore:${index + 1}: a pattern that is not known here: ${line}`);
    return [{ path, stays: mark === '!' }];
  });
}

/** The last pattern that fits decides. @param path relative to the context */
export function isIgnored(patterns: readonly Ignored[], path: string): boolean {
  const last = patterns.findLast((pattern) => pattern.path === '*' || path === pattern.path || path.startsWith(`${pattern.path}/`));
  return last !== undefined && !last.stays;
}
