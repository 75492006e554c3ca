/**
 * What Envoy was sent, as bytes that can be made again, the same ones, from what is held anyway: of a big mesh they need not be held once
 * Envoy has them. It asks for them again when it starts anew, or was found not to have what it had acknowledged.
 */
import type { Any } from '../../proto/generated/google/protobuf/any.js';
import { objectsIn } from '../consistency/objects.js';
import type { Entry } from './snapshot.js';

export abstract class MadeAny implements Any {
  #bytes: Buffer | undefined;
  #objects: readonly string[] | undefined;

  /** @param bytes as `make` makes them */
  constructor(readonly type_url: string, bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** The same bytes each time. */
  protected abstract make(): Buffer;

  get value(): Buffer {
    return this.#bytes ?? this.make();
  }

  get isHeld(): boolean {
    return this.#bytes !== undefined;
  }

  /** Configuration objects that it comes from: whoever asks that of all would have all made again. */
  get objects(): readonly string[] {
    return this.#objects ?? objectsIn(this.value);
  }

  release(): void {
    if (!this.#bytes) return;
    const found = objectsIn(this.#bytes);
    this.#objects = found.length > 0 ? found : NONE;
    this.#bytes = undefined;
  }
}

const NONE: readonly string[] = [];

/** Envoy has it. */
export function release({ any }: Entry): void {
  if (any instanceof MadeAny) any.release();
}

/** `Kind/name.namespace` of what a resource comes from. */
export function objectsOf(any: Any): readonly string[] {
  return any instanceof MadeAny ? any.objects : objectsIn(any.value);
}
