/** Figures as people read them. */

const WHOLE = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });

/** Three digits. */
export function significant(value: number): string {
  if (value === 0) return '0';
  if (value >= 99.5) return WHOLE.format(value);
  return String(Number(value.toPrecision(value >= 0.1 ? 3 : 1)));
}

export function perSecond(rate: number): string {
  return `${rate > 0 && rate < 0.01 ? '< 0.01' : significant(rate)}/s`;
}

export function bytesPerSecond(value: number): string {
  const units = ['B/s', 'KiB/s', 'MiB/s', 'GiB/s'];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${significant(value)} ${units[unit]}`;
}

/** @param ms NaN or undefined: nothing was measured */
export function milliseconds(ms: number | undefined): string {
  if (ms === undefined || Number.isNaN(ms)) return '–';
  return ms < 1 ? `${significant(ms * 1_000)} µs` : ms < 10_000 ? `${significant(ms)} ms` : `${significant(ms / 1_000)} s`;
}

export function percent(share: number): string {
  const value = share * 100;
  return `${value > 0 && value < 0.1 ? '< 0.1' : Number(value.toFixed(value < 10 ? 1 : 0))} %`;
}
