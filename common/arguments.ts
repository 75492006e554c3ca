/** Values of options, read and checked in one way wherever a command line is read. */
import { isIP } from 'node:net';
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

export interface SocketAddress {
  /** IPv4 or IPv6, without brackets. */
  host: string;
  /** 0: any that is free. */
  port: number;
}

/** `ADDRESS:PORT`; IPv6 in brackets or not, as what puts it together out of a node's address can't tell. */
export function socketAddress(text: string): SocketAddress {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]*)\]|(.*)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain ?? '';
  const port = Number(digits);
  if (isIP(host) === 0 || !(port <= 65_535)) throw new InvalidArgumentError('expected an IP address and a port, as 127.0.0.1:15020, [::1]:15020 or 0.0.0.0:15020');
  return { host, port };
}
