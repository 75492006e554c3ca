/** Opens an address in the user's browser. */
import { spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * By a file that only its owner may read, since everybody on the machine may read the arguments of a process and the address has a
 * token in it. Without a desktop nothing is opened.
 * @returns what removes the file
 */
export function openBrowser(address: string, environment: NodeJS.ProcessEnv = process.env): () => void {
  const program = process.platform === 'darwin' ? 'open' : environment['DISPLAY'] || environment['WAYLAND_DISPLAY'] ? 'xdg-open' : undefined;
  if (program === undefined) return () => undefined;
  const folder = mkdtempSync(join(tmpdir(), 'underpass-dashboard-'));
  chmodSync(folder, 0o700);
  const file = join(folder, 'open.html');
  writeFileSync(file, `<!doctype html><meta charset="utf-8"><title>Underpass</title><meta http-equiv="refresh" content="0; url=${address}"><a href="${address}">Underpass</a>\n`, { mode: 0o600 });
  const child = spawn(program, [file], { stdio: 'ignore', detached: true });
  // Who has no browser has the address that is printed.
  child.once('error', () => undefined);
  child.unref();
  return () => rmSync(folder, { recursive: true, force: true });
}
