/**
 * A weighted draw in constant time: Walker's alias method (1977) with Vose's linear construction (1991). Row i is drawn with
 * equal probability, and stands for itself when a random 32-bit number is at most `threshold`, else for row `alias`.
 */
export interface AliasRow {
  threshold: number;
  alias: number;
}

const ALWAYS = 0xffff_ffff;

/** @param weights positive and finite */
export function aliasTable(weights: readonly number[]): AliasRow[] {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const scaled = weights.map((weight) => (weight * weights.length) / total);
  const rows = weights.map((_, index): AliasRow => ({ threshold: ALWAYS, alias: index }));
  const small: number[] = [];
  const large: number[] = [];
  scaled.forEach((value, index) => (value < 1 ? small : large).push(index));
  while (small.length > 0 && large.length > 0) {
    const less = small.pop() as number;
    const more = large.at(-1) as number;
    const own = scaled[less] as number;
    rows[less] = { threshold: Math.max(0, Math.round(own * 2 ** 32) - 1), alias: more };
    scaled[more] = (scaled[more] as number) - (1 - own);
    if ((scaled[more] as number) < 1) small.push(large.pop() as number);
  }
  return rows;
}
