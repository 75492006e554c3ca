/** Runs a program with a folder as its root, in a mount namespace of its own that ends with it: nothing stays mounted. */
import { run, type RunResult } from '../../common/process.js';

export interface EnterOptions {
  /** User and group by number; default 0. */
  user?: number;
  /** Of the program alone, nothing of ours is handed on; default the image's PATH. */
  env?: Readonly<Record<string, string>>;
  cwd?: string;
  /** Files and folders of the machine, by where they appear in the root (made there if below `/run`); read-only. */
  binds?: Readonly<Record<string, string>>;
  timeoutMs?: number;
}

export const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

// $1 root, $2 binds as FROM TO pairs each on its own line, then the rest.
const SETUP = `
set -eu
root=$1; binds=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
printf '%s' "$binds" | while read -r from to; do
  if [ -d "$from" ]; then mkdir -p "$root$to"; else mkdir -p "$(dirname "$root$to")"; [ -e "$root$to" ] || touch "$root$to"; fi
  mount --bind -o ro "$from" "$root$to"
done
exec "$@" </dev/null
`;

/** The whole command line: each step executes the next, so that the process that is started becomes the program. */
export function enterCommand(root: string, command: readonly string[], options: EnterOptions = {}): [string, ...string[]] {
  const env = Object.entries({ PATH, ...options.env }).map(([name, value]) => `${name}=${value}`);
  const binds = Object.entries(options.binds ?? {}).map(([to, from]) => `${from} ${to}\n`).join('');
  const user = options.user ?? 0;
  // Not chroot(1): it can't start in another folder than /, and the root may have no env(1) to do that.
  const enter = ['env', '-i', ...env, 'nsenter', `--root=${root}`, `--wd=${root}${options.cwd ?? '/'}`, `--setgid=${user}`, `--setuid=${user}`, '--', ...command];
  return ['unshare', '--mount', 'sh', '-c', SETUP, 'sh', root, binds, ...enter];
}

/** @returns what the program printed and its exit code, whatever that is */
export async function enterRoot(root: string, command: readonly string[], options: EnterOptions = {}): Promise<RunResult> {
  const [program, ...args] = enterCommand(root, command, options);
  return run(program, args, { okCodes: Array.from({ length: 256 }, (_, code) => code), timeoutMs: options.timeoutMs ?? 60_000 });
}
