import { InvalidArgumentError } from 'commander';

/** For commander: a whole number from 0. */
export function readWhole(text: string): number {
  if (!/^\d{1,15}$/.test(text)) throw new InvalidArgumentError('expected a whole number');
  return Number(text);
}
