/** A self-signed root in one file, readable by its owner alone, where Istio has the Secret `istio-ca-secret`. */
import { mkdir, open, readFile, rename, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { UnderpassError, errorCode } from '../errors.js';
import type { RootStore, StoredRoots } from './ca.js';

export class FileRootStore implements RootStore {
  constructor(readonly path: string) {}

  async load(): Promise<StoredRoots | undefined> {
    try {
      const { mode } = await stat(this.path);
      if ((mode & 0o077) !== 0) throw new UnderpassError('UNDERPASS_CA', `reading the CA's key from ${this.path}: others than its owner can read it (mode ${(mode & 0o777).toString(8)}, expected 600)`);
      const stored = JSON.parse(await readFile(this.path, 'utf8')) as StoredRoots;
      if (typeof stored.issuing?.privateKeyPem !== 'string' || !Array.isArray(stored.retiring)) throw new UnderpassError('UNDERPASS_CA', `reading the CA's key from ${this.path}: it is no such file`);
      return stored;
    } catch (error) {
      if (errorCode(error) === 'ENOENT') return undefined;
      // A parse error would quote what it found: the key.
      if (error instanceof SyntaxError) throw new UnderpassError('UNDERPASS_CA', `reading the CA's key from ${this.path}: it is no JSON`);
      throw error;
    }
  }

  async save(roots: StoredRoots): Promise<void> {
    await mkdir(dirname(this.path), { recursive: true, mode: 0o700 });
    const temporary = `${this.path}.new`;
    const file = await open(temporary, 'w', 0o600);
    try {
      await file.chmod(0o600); // one that was left there keeps its mode otherwise
      await file.writeFile(JSON.stringify(roots));
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, this.path);
  }
}
