/**
 * Hooks of an agent whose maps this one can't read, after an upgrade: what they let in and refuse holds for each pod until it has
 * hooks and policies of this agent's. Hooks that lead connections to the proxy go at once, since the proxy asks the new maps.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pinName } from './bpffs.js';

/** Who opens a connection, and whether it may come. A new pod's hooks are attached in another order, so that these two alone are nobody else's. */
const KEPT: ReadonlySet<string> = new Set(['pod_sockops', 'police_ingress']);

export class FormerHooks {
  readonly #names = new Set<string>();
  /** Names of pins that were of no pod, and are gone. */
  readonly removed: string[] = [];

  /**
   * Removes all other pins of pods that are not in the maps.
   * @param folder of the pins, one folder a pod
   * @param areMapsNew none of the maps is a former agent's
   */
  constructor(readonly folder: string, inMaps: ReadonlySet<string>, areMapsNew: boolean) {
    for (const name of existsSync(folder) ? readdirSync(folder) : []) {
      if (inMaps.has(name)) continue;
      const pins = readdirSync(join(folder, name));
      const isFormer = pins.includes('police_ingress') && (areMapsNew || (pins.length === KEPT.size && pins.every((pin) => KEPT.has(pin))));
      if (!isFormer) {
        this.#remove(name);
        this.removed.push(name);
        continue;
      }
      for (const pin of pins) if (!KEPT.has(pin)) rmSync(join(folder, name, pin));
      this.#names.add(name);
    }
  }

  has(uid: string): boolean {
    return this.#names.has(pinName(uid));
  }

  /** The pod's pins are this agent's now. */
  taken(uid: string): void {
    this.#names.delete(pinName(uid));
  }

  /** Pods that are not among these are gone, or no longer in the mesh. */
  keep(uids: ReadonlySet<string>): void {
    const kept = new Set([...uids].map(pinName));
    for (const name of this.#names) if (!kept.has(name)) this.#remove(name);
  }

  #remove(name: string): void {
    rmSync(join(this.folder, name), { recursive: true, force: true });
    this.#names.delete(name);
  }
}
