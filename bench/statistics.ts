/** Robust figures of few rounds: medians and quartiles, since one disturbed round shall not decide a comparison. */

export interface Summary {
  median: number;
  /** Quartiles: the spread that is shown is between them. */
  q1: number;
  q3: number;
  min: number;
  max: number;
  rounds: number;
}

/** Linear interpolation between closest ranks (type 7 of Hyndman and Fan, what most programs use). */
export function quantile(values: readonly number[], share: number): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * share;
  const below = Math.floor(position);
  const low = sorted[below] as number;
  const high = sorted[Math.min(below + 1, sorted.length - 1)] as number;
  return low + (high - low) * (position - below);
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** @returns undefined when there is nothing to summarise */
export function summarise(values: readonly number[]): Summary | undefined {
  if (values.length === 0) return undefined;
  return { median: median(values), q1: quantile(values, 0.25), q3: quantile(values, 0.75), min: Math.min(...values), max: Math.max(...values), rounds: values.length };
}

/**
 * How many times `of` is `to`, per round and then summarised: both were measured in the same minute of the same machine, so
 * what disturbed one disturbed the other.
 */
export function ratioPerRound(of: readonly number[], to: readonly number[]): Summary | undefined {
  const ratios: number[] = [];
  for (let round = 0; round < Math.min(of.length, to.length); round++) {
    const [a, b] = [of[round] as number, to[round] as number];
    if (Number.isFinite(a) && Number.isFinite(b) && b !== 0) ratios.push(a / b);
  }
  return summarise(ratios);
}

/** Fewer digits the larger the number; at least three that count. */
export function significant(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(size >= 1e7 ? 1 : 2)} M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  if (size >= 100) return value.toFixed(0);
  return size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function percent(share: number): string {
  return share > 0 && share < 0.001 ? '<0.1 %' : `${(share * 100).toFixed(share > 0.1 && share < 0.9995 ? 1 : share === 0 || share === 1 ? 0 : 2)} %`;
}
