/** Values of options, read and checked in one way wherever a command line is read. */
import { InvalidArgumentError } from 'commander';
import { parseDurationMs } from './kube/schema.js';

export function wholeNumber(min: number, max: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < min || value > max) throw new InvalidArgumentError(`expected a whole number from ${min} to ${max}`);
    return value;
  };
}

/** Milliseconds of a duration as Go and Kubernetes write it: `500ms`, `1h30m`. */
export function duration(text: string): number {
  const value = parseDurationMs(text);
  if (value === undefined || value <= 0) throw new InvalidArgumentError('expected a duration such as 30s or 1h30m');
  return value;
}
