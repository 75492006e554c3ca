import { setFlagsFromString } from 'node:v8';

/**
 * V8 lets a heap grow to several times what is alive in it before it collects, the more so on machines with much memory. Whoever
 * runs beside a node's pods has less to do and less to spare: a third more than what is alive, for a tenth more of CPU time
 * while a big mesh is read (docs/results/kubernetes.md). V8 reads this flag each time it decides.
 */
export function keepHeapSmall(): void {
  setFlagsFromString('--heap-growing-percent=30');
}
