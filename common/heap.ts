import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/**
 * V8 lets a heap grow to several times what is alive in it before it collects, the more so on machines with much memory. Whoever
 * runs beside a node's pods has less to do and less to spare: a third more than what is alive, for a tenth more of CPU time
 * while a big mesh is read (docs/results/kubernetes.md). V8 reads this flag each time it decides.
 */
export function keepHeapSmall(): void {
  setFlagsFromString(`--heap-growing-percent=${GROWING_PERCENT}`);
}

const GROWING_PERCENT = 30;
/** Of an idle process what comes is little, and dead soon. */
const IDLE_PERCENT = 10;

/** Node has it where it was started with a flag; V8 gives it to each context that is made after it was set. */
let collect: (() => void) | undefined;

/** Stops everything else for a tenth of a second where the heap is large. From then on it may grow by less, until V8 collects again by itself. */
export function collectIdleHeap(): void {
  if (!collect) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as () => void;
  }
  setFlagsFromString(`--heap-growing-percent=${IDLE_PERCENT}`);
  // What is alive lies scattered over a third more pages than it takes.
  setFlagsFromString('--compact-on-every-full-gc');
  collect();
  setFlagsFromString('--no-compact-on-every-full-gc');
  keepHeapSmall();
}
