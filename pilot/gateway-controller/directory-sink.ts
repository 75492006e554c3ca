/** Provisioned objects as YAML files in a directory, one a Gateway: a source for whoever starts programs, such as the lab. */
import { mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import type { KubeObject } from '../../common/kube/types.js';
import type { ProvisionSink } from './controller.js';

/** Names of Kubernetes hold no underscore, so a file's name says whose it is, and others' files are left alone. */
const FILE = /^gateway_([a-z0-9-]+)_([a-z0-9.-]+)\.yaml$/;

export class DirectorySink implements ProvisionSink {
  constructor(readonly path: string) {
    mkdirSync(path, { recursive: true });
  }

  *owners(): Iterable<string> {
    for (const name of readdirSync(this.path)) {
      const [, namespace, gateway] = FILE.exec(name) ?? [];
      if (namespace && gateway) yield `${namespace}/${gateway}`;
    }
  }

  apply(owner: string, objects: readonly KubeObject[]): void {
    const name = this.#name(owner);
    // Hidden while it is being written: readers of the directory leave such files out.
    const temporary = join(this.path, `.${name}.new`);
    writeFileSync(temporary, objects.map((object) => stringify(object, { aliasDuplicateObjects: false, lineWidth: 0 })).join('---\n'));
    renameSync(temporary, join(this.path, name));
  }

  remove(owner: string): void {
    rmSync(join(this.path, this.#name(owner)), { force: true });
  }

  #name(owner: string): string {
    return `gateway_${owner.replace('/', '_')}.yaml`;
  }
}
