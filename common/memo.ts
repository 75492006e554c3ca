/**
 * Values kept with the objects that they were made from, for as long as those live: a WeakMap whose entries cost the garbage
 * collector nothing of their own. It goes through the entries of WeakMaps at the end of each of its cycles, with the event
 * loop stopped: for the hundred thousand of a large mesh that took half of its longest pauses.
 */
export class Memo<K extends object, V> {
  readonly #key = Symbol('memo');

  get(object: K): V | undefined {
    return (object as { [key: symbol]: V | undefined })[this.#key];
  }

  /** Copies of the object (`{...object}`) don't have it. @throws TypeError when the object is frozen */
  set(object: K, value: V): void {
    Object.defineProperty(object, this.#key, { value, enumerable: false, configurable: true, writable: true });
  }

  /** The value of `object`, made when there is none yet. */
  once(object: K, make: () => V): V {
    let value = this.get(object);
    if (value === undefined) this.set(object, (value = make()));
    return value;
  }
}
