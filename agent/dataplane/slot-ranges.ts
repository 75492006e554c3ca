/** Free places of an array map, handed out as ranges. What is given back is not handed out again before the grace period is over. */
interface Range {
  start: number;
  count: number;
}

export class SlotRanges {
  /** Ascending, never touching each other. */
  #free: Range[];
  readonly #resting: (Range & { sinceMs: number })[] = [];
  #used = 0;

  /**
   * @param size places 0 to size - 1
   * @param graceMs how long a reader may still look at a range that was given back
   */
  constructor(readonly size: number, readonly graceMs: number, readonly now: () => number = () => performance.now()) {
    this.#free = size > 0 ? [{ start: 0, count: size }] : [];
  }

  /** Places handed out; those that rest are not among them. */
  get used(): number {
    return this.#used;
  }

  /** The first place of `count` in a row; undefined when there are none. */
  take(count: number): number | undefined {
    this.#wake();
    const index = this.#free.findIndex((range) => range.count >= count);
    const range = this.#free[index];
    if (!range) return undefined;
    const { start } = range;
    range.start += count;
    range.count -= count;
    if (range.count === 0) this.#free.splice(index, 1);
    this.#used += count;
    return start;
  }

  /** Takes the places that a former process had; false when one of them is taken. */
  claim(start: number, count: number): boolean {
    const index = this.#after(start) - 1;
    const range = this.#free[index];
    if (!range || start + count > range.start + range.count) return false;
    const rest = { start: start + count, count: range.start + range.count - start - count };
    range.count = start - range.start;
    this.#free.splice(index, 1, ...[range, rest].filter((part) => part.count > 0));
    this.#used += count;
    return true;
  }

  give(start: number, count: number): void {
    this.#used -= count;
    this.#resting.push({ start, count, sinceMs: this.now() });
  }

  /** Index of the first free range that begins after `start`. */
  #after(start: number): number {
    let [low, high] = [0, this.#free.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#free[middle] as Range).start <= start) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #wake(): void {
    const over = this.now() - this.graceMs;
    let count = 0;
    while (count < this.#resting.length && this.#resting[count]!.sinceMs <= over) count++;
    for (const { start, count: length } of this.#resting.splice(0, count)) this.#merge(start, length);
  }

  #merge(start: number, count: number): void {
    const at = this.#after(start);
    const [before, after] = [this.#free[at - 1], this.#free[at]];
    const joined: Range = { start, count };
    let [from, removed] = [at, 0];
    if (before && before.start + before.count === start) {
      joined.start = before.start;
      joined.count += before.count;
      [from, removed] = [at - 1, 1];
    }
    if (after && start + count === after.start) {
      joined.count += after.count;
      removed++;
    }
    this.#free.splice(from, removed, joined);
  }
}
