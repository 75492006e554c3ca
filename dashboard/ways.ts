/** The ways that traffic takes: each has a colour, a kind of line and a letter, so that none of them has to be seen in colours. */
import type { TrafficWay } from '../common/traffic.js';

export interface WayStyle {
  way: TrafficWay;
  name: string;
  letter: string;
  /** Of lines, in pixels. */
  dash: readonly number[];
  isDouble: boolean;
  meaning: string;
}

/** By the number that the worker gives a way. */
export const WAYS: readonly WayStyle[] = [
  { way: 'kernel', name: 'kernel', letter: 'K', dash: [], isDouble: false, meaning: 'TCP, with no proxy in between' },
  { way: 'fast-path', name: 'fast path', letter: 'F', dash: [], isDouble: true, meaning: 'HTTP that the kernel repeats, past Envoy' },
  { way: 'envoy', name: 'Envoy', letter: 'E', dash: [7, 4], isDouble: false, meaning: 'through the node\'s Envoy' },
  { way: 'hbone', name: 'HBONE', letter: 'H', dash: [10, 3, 2, 3], isDouble: false, meaning: 'through Envoy and a tunnel of mutual TLS to another node' },
  { way: 'sidecar', name: 'sidecar', letter: 'S', dash: [2, 3], isDouble: false, meaning: 'through Envoys of the pods themselves' },
];

export function wayStyle(way: TrafficWay): WayStyle {
  return WAYS.find((each) => each.way === way) ?? WAYS[2]!;
}
