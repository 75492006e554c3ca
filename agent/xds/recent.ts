/**
 * What was made of bytes lately. Decoded, a mesh's resources are ten times as large as their bytes, and of each only little is asked
 * for after it was folded: the newest are held, up to a size, and others made anew when somebody asks.
 */
export class Recent {
  readonly #held = new Map<object, { value: unknown; bytes: number }>();
  #bytes = 0;

  /** @param mostBytes of what they are made from; the newest one is held whatever its size */
  constructor(readonly mostBytes: number) {}

  get size(): number {
    return this.#held.size;
  }

  /** @param key stands for the content that `make` reads @param bytes how long that is */
  get<V>(key: object, bytes: number, make: () => V): V {
    const known = this.#held.get(key);
    if (known) return known.value as V;
    const value = make();
    this.#held.set(key, { value, bytes });
    this.#bytes += bytes;
    for (const [oldest, { bytes: own }] of this.#held) {
      if (this.#bytes <= this.mostBytes || oldest === key) break;
      this.#held.delete(oldest);
      this.#bytes -= own;
    }
    return value;
  }
}

/** Of all streams' resources, and of what is folded from them. */
export const recentMessages = new Recent(1 << 18);
