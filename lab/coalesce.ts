/**
 * Runs `work` one at a time: a call during a run makes it run once more, and resolves when a run that began after the call
 * has ended. Whoever waits during a run that fails gets its error.
 */
export function coalesce(work: () => Promise<void>): () => Promise<void> {
  let wanted = false;
  let running: Promise<void> | undefined;
  const loop = async (): Promise<void> => {
    try {
      await Promise.resolve(); // `running` is set before the first run
      while (wanted) {
        wanted = false;
        await work();
      }
    } finally {
      running = undefined; // in the same turn as the last look at `wanted`: no call falls in between
    }
  };
  return () => {
    wanted = true;
    return (running ??= loop());
  };
}
