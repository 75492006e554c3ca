/** Names of those who speak with each other. */
import type { TrafficEnd } from '../common/traffic.js';

/** Of what is no workload with what it is. */
export const endName = ({ what, workload }: TrafficEnd): string => (what === 'service' || what === 'account' ? `${workload} (${what})` : workload);

/** Workloads alone have a page. */
export const isWorkload = ({ what }: TrafficEnd): boolean => what === undefined;
