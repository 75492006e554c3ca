/** One-shot inventory. systeminformation starts processes for much of it, so it is asked once and only for this. */
import { release } from 'node:os';
import { cpu, mem, osInfo, system } from 'systeminformation';
import type { Machine } from './report.js';

export async function machineInventory(): Promise<Machine> {
  const unknown = { os: 'Linux', kernel: release(), cpu: 'CPU not known', memory: 'memory not known', virtualization: '' };
  try {
    const [os, processor, memory, host] = await Promise.all([osInfo(), cpu(), mem(), system()]);
    return {
      os: [os.distro, os.release].filter(Boolean).join(' ') || unknown.os,
      kernel: os.kernel || unknown.kernel,
      cpu: `${processor.cores} × ${[processor.manufacturer, processor.brand].filter(Boolean).join(' ') || 'CPU'} (${os.arch})`,
      memory: `${(memory.total / 2 ** 30).toFixed(1)} GiB`,
      virtualization: host.virtual ? `virtual machine${host.virtualHost ? ` (${host.virtualHost})` : ''}` : '',
    };
  } catch {
    return unknown;
  }
}
