/** Operations on lists, of filters and of routes. What a patch does not name it can't replace or remove; inserts then go to the list's ends, as Istio's do. */
import type { Message } from '@bufbuild/protobuf';
import { plain, clone } from './registry.js';
import type { CompiledPatch } from './types.js';

/** Which items a patch names; undefined: it names none. */
export type Names<T> = ((item: T) => boolean) | undefined;

/**
 * All but merges. INSERT_BEFORE, INSERT_AFTER and REPLACE are about the first that is named.
 * @param ends whether an item has to stay the last
 */
export function changeList<T extends Message>(list: T[], { operation, value }: CompiledPatch, names: Names<T>, ends?: (item: T) => boolean): T[] {
  const fresh = (): T => plain(clone(value!)) as T;
  const appended = (): T[] => list.toSpliced(list.length > 0 && ends?.(list.at(-1)!) ? -1 : list.length, 0, fresh());
  const first = names ? list.findIndex(names) : -1;
  switch (operation) {
    case 'ADD':
      return appended();
    case 'INSERT_FIRST':
      return [fresh(), ...list];
    case 'INSERT_BEFORE':
      if (!names) return [fresh(), ...list];
      return first < 0 ? list : list.toSpliced(first, 0, fresh());
    case 'INSERT_AFTER':
      if (!names) return appended();
      return first < 0 ? list : list.toSpliced(first + 1, 0, fresh());
    case 'REPLACE':
      return first < 0 ? list : list.toSpliced(first, 1, fresh());
    case 'REMOVE':
      return names ? list.filter((item) => !names(item)) : list;
    default:
      return list;
  }
}
