/** The whole diagnosis: each probe gives rows, none throws. */
import { kernelRows, libbpfRows } from './kernel.js';
import { machineInventory } from './machine.js';
import { networkRows } from './network.js';
import { programRows } from './programs.js';
import { verdictOf, type Diagnosis, type Row } from './report.js';
import { selfTestRows } from './self-test.js';

export async function diagnose(): Promise<Diagnosis> {
  const { rows: kernel, capabilities } = kernelRows();
  const [machine, libbpf, network, programs] = await Promise.all([machineInventory(), libbpfRows(capabilities), networkRows(capabilities), programRows()]);
  // Last and alone: it measures how sockets behave.
  const selfTest = await selfTestRows(capabilities);
  const rows: Row[] = [...kernel, ...libbpf, ...network, ...programs, ...selfTest];
  return { machine, rows, verdict: verdictOf(rows) };
}
