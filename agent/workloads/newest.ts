/**
 * Reads `source` as fast as it produces and hands its reader only the newest value, so that a reader that is busy
 * never works through states that are gone. Ends, or throws, as the source does, after the newest value was handed out.
 */
export async function* newest<T>(source: AsyncIterable<T>): AsyncGenerator<T, void> {
  let slot: { value: T } | undefined;
  let end: { error?: unknown } | undefined;
  let wake: (() => void) | undefined;
  const iterator = source[Symbol.asyncIterator]();
  const signal = (): void => {
    wake?.();
    wake = undefined;
  };
  void (async () => {
    try {
      for (;;) {
        const next = await iterator.next();
        if (next.done) break;
        slot = { value: next.value };
        signal();
      }
      end = {};
    } catch (error) {
      end = { error };
    }
    signal();
  })();
  try {
    for (;;) {
      if (slot) {
        const { value } = slot;
        slot = undefined;
        yield value;
      } else if (end) {
        if ('error' in end) throw end.error;
        return;
      } else {
        await new Promise<void>((resolve) => (wake = resolve));
      }
    }
  } finally {
    // Not awaited: a generator that waits inside next() answers return() only when that wait ends.
    void iterator.return?.();
  }
}
