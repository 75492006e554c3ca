export { allowedCpus, lastCpu, setAffinity } from './affinity.js';
export { renderHtml } from './html.js';
export { parseLoadResult, type LoadResult } from './load.js';
export { MODES, modeById, NODES, tcpBench, worldYaml, type Mode, type ModeId } from './modes.js';
export { buildReport, type BenchReport, type Ratio, type Row } from './report.js';
export { measure, type BenchOptions } from './runner.js';
export { renderTable } from './table.js';
export { crossCheck } from './wrk.js';
export type { BenchPod, ByteCounters, CommandResult, World } from './world.js';
