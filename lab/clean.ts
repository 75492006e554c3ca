/** Finds and removes what labs left behind: after a crash or SIGKILL, and as the last step of an orderly end. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cgroup2Root, removeCgroup } from '../common/cgroup.js';
import { defaultRunDir } from '../common/paths.js';
import { HOLDER_FILE, liveHolder, readJournal, type LabHolder } from './lock.js';
import { CGROUP_PREFIX, LabNames, NETNS_DIR, NETNS_PREFIX } from './names.js';
import { endProcessesIn, removeNetns } from './network.js';

export interface CleanReport {
  lab: string;
  /** Set when a live process holds the lab: then nothing was touched. */
  heldBy?: LabHolder;
  cgroups: number;
  namespaces: number;
  directories: number;
}

/** Names of all labs that left a trace on this machine. */
export function knownLabs(runDir = defaultRunDir): string[] {
  const found = new Set<string>();
  // Besides folders there are logs of detached labs, `.<name>.log`.
  for (const entry of list(join(runDir, 'lab'))) found.add(/^\.(.+)\.log$/.exec(entry)?.[1] ?? entry);
  for (const entry of list(cgroup2Root())) if (entry.startsWith(CGROUP_PREFIX)) found.add(entry.slice(CGROUP_PREFIX.length));
  // A lab of which only namespaces are left: its name ends before the last dash that begins `-fabric`, which each lab has.
  for (const entry of list(NETNS_DIR)) {
    const match = /^uplab-(.+)--fabric$/.exec(entry);
    if (match?.[1]) found.add(match[1]);
  }
  return [...found].filter((name) => /^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/.test(name)).sort();
}

/** Cleans after dead labs: one by name, or all. A live one is reported and left alone. */
export async function cleanLabs(options: { name?: string; runDir?: string } = {}): Promise<CleanReport[]> {
  const runDir = options.runDir ?? defaultRunDir;
  const reports: CleanReport[] = [];
  for (const lab of options.name === undefined ? knownLabs(runDir) : [options.name]) {
    const names = new LabNames(lab, runDir);
    const heldBy = liveHolder(names.dir);
    if (heldBy) reports.push({ lab, heldBy, cgroups: 0, namespaces: 0, directories: 0 });
    else reports.push(await removeLeftovers(names));
  }
  return reports;
}

/** Removes processes, namespaces and files of one lab, in this order: a process keeps its namespace alive. */
export async function removeLeftovers(names: LabNames, options: { keepHolder?: boolean } = {}): Promise<CleanReport> {
  const report: CleanReport = { lab: names.lab, cgroups: 0, namespaces: 0, directories: 0 };
  if (existsSync(names.cgroup)) {
    await removeCgroup(names.cgroup);
    report.cgroups = 1;
  }
  const namespaces = namespacesOf(names);
  endProcessesIn(namespaces.filter((name) => names.isPodNetns(name)));
  for (const netns of namespaces) {
    await removeNetns(netns);
    report.namespaces++;
  }
  if (existsSync(names.dir)) {
    for (const entry of list(names.dir))
      if (!(options.keepHolder && entry === HOLDER_FILE)) rmSync(join(names.dir, entry), { recursive: true, force: true });
    if (!options.keepHolder) rmSync(names.dir, { recursive: true, force: true });
    report.directories = 1;
  }
  if (!options.keepHolder) rmSync(names.log, { force: true });
  return report;
}

/** The lab's namespaces: what its journal says, and what bears its prefix and belongs to no lab with a longer name. */
export function namespacesOf(names: LabNames): string[] {
  const present = list(NETNS_DIR).filter((entry) => entry.startsWith(NETNS_PREFIX));
  const journal = new Set(readJournal(names.dir));
  const longer = knownLabs(names.runDir)
    .filter((other) => other !== names.lab && other.startsWith(`${names.lab}-`))
    .map((other) => new LabNames(other, names.runDir).netnsPrefix);
  return present.filter(
    (entry) => journal.has(entry) || (entry.startsWith(names.netnsPrefix) && !longer.some((prefix) => entry.startsWith(prefix))),
  );
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}
