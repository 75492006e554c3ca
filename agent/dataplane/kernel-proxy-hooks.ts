/** The hooks on Envoy's cgroup: what it opens and accepts is a proxy's, and it learns original destinations. */
import { join } from 'node:path';
import type { Closable } from '../../common/lifecycle.js';
import { cgroupId, type BpfLink, type BpfMap, type BpfObject } from '../../native/index.js';
import type { AuditedLink } from './kernel-audit.js';
import { u32, u64 } from './kernel-codec.js';

const PROGRAMS = ['proxy_sockops', 'probe_egress', 'proxy_getsockopt', 'bind4', 'bind6'] as const;
const FOLDER = 'links/proxy';

export class ProxyHooks implements Closable {
  readonly #object: BpfObject;
  readonly #pinDir: string | null;
  readonly #cgroups: BpfMap;
  readonly #links = new Map<string, BpfLink>();
  #cgroup: string | undefined;

  constructor(object: BpfObject, pinDir: string | null) {
    this.#object = object;
    this.#pinDir = pinDir;
    this.#cgroups = object.map('proxy_cgroups');
  }

  attach(cgroupPath: string): void {
    this.#cgroups.set(u32(0), u64(cgroupId(cgroupPath)));
    this.close();
    for (const program of PROGRAMS) this.#attach(program, cgroupPath);
    this.#cgroup = cgroupPath;
  }

  #attach(program: string, cgroupPath: string): void {
    const former = this.#links.get(program);
    this.#links.set(program, this.#object.attachCgroup(program, cgroupPath, this.#pinDir === null ? null : `${FOLDER}/${program}`));
    former?.close();
  }

  /** Takes over what a former agent attached. */
  adopt(): void {
    for (const program of PROGRAMS) {
      const link = this.#object.replaceLink(program, `${FOLDER}/${program}`);
      if (link) this.#links.set(program, link);
    }
  }

  *audited(): Generator<AuditedLink> {
    const path = this.#cgroup;
    if (this.#pinDir === null || path === undefined) return;
    for (const program of PROGRAMS) yield { name: `envoy ${program}`, programId: this.#object.programId(program), pin: join(this.#pinDir, FOLDER, program), targetId: cgroupId(path), attach: () => this.#attach(program, path) };
  }

  close(): void {
    for (const link of this.#links.values()) link.close();
    this.#links.clear();
  }
}
