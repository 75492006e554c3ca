/**
 * Virtual addresses for ServiceEntries that have none, out of the blocks that Istio uses: 240.240.0.0/16 and 2001:2::/48.
 * A host's place is drawn from its name, so that it is the same after a restart and in another pilot; of two hosts that
 * draw the same place the later goes on to the next free one.
 */
const PLACES = 65_534;

export class AddressAllocator {
  readonly #places = new Map<string, number>();
  readonly #taken = new Map<number, string>();

  /** @param key `namespace/host` */
  allocate(key: string): readonly string[] {
    let place = this.#places.get(key);
    if (place === undefined) {
      place = fnv1a(key) % PLACES;
      for (let tries = 0; this.#taken.has(place) && tries < PLACES; tries++) place = (place + 1) % PLACES;
      if (this.#taken.has(place)) return [];
      this.#places.set(key, place);
      this.#taken.set(place, key);
    }
    // Neither the network's own address nor its last.
    const number = place + 1;
    return [`240.240.${number >> 8}.${number & 255}`, `2001:2::${number.toString(16)}`];
  }

  release(key: string): void {
    const place = this.#places.get(key);
    if (place === undefined) return;
    this.#places.delete(key);
    this.#taken.delete(place);
  }
}

/** http://www.isthe.com/chongo/tech/comp/fnv/, 32 bits. */
function fnv1a(text: string): number {
  let hash = 0x811c_9dc5;
  for (const byte of Buffer.from(text)) hash = Math.imul(hash ^ byte, 0x0100_0193) >>> 0;
  return hash;
}
