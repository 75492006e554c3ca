/** What page and worker tell each other. Figures go as arrays of numbers, which cost no copy. */
import type { Box } from './layout.js';
import type { ViewNode, Wanted } from './model.js';
import type { Drawn, Transform } from './painter.js';
import type { Colours } from './scene.js';

export type ToWorker = { type: 'start'; token: string; everyMs: number } | { type: 'want'; wanted: Wanted };

/** Who is there, and where: sent when that changes. */
export interface Structure {
  type: 'structure';
  revision: number;
  nodes: ViewNode[];
  x: Float32Array;
  y: Float32Array;
  boxes: Box[];
  width: number;
  height: number;
  from: Uint32Array;
  to: Uint32Array;
  /** Indexes of `WAYS`. */
  ways: Uint8Array;
  protocols: string[];
  services: string[];
  namespaces: string[];
}

/** Of each edge of that structure, as `ViewEdge` has them. */
export interface Figures {
  type: 'figures';
  revision: number;
  at: string;
  seconds: number;
  hidden: number;
  problems: string[];
  rate: Float64Array;
  failed: Float64Array;
  received: Float64Array;
  sent: Float64Array;
  p50: Float64Array;
  p99: Float64Array;
  total: Float64Array;
}

export type ToDrawer =
  | { type: 'start'; canvas: OffscreenCanvas; colours: Colours }
  | { type: 'size'; width: number; height: number; ratio: number }
  | { type: 'colours'; colours: Colours }
  /** @property selected -1: no node */
  | { type: 'view'; transform: Transform; selected: number }
  | Structure
  | Figures;
export interface FromDrawer { type: 'drawn'; drawn: Drawn }

export type FromWorker = Structure | Figures | { type: 'problem'; status: number; message: string };
