/** What the tests of the kernel side share: a world of pods with the programs on them. */
import { Kernel, type KernelOptions, type KernelPod, type ProbationEntry } from './kernel.js';
import { ClosableStore } from '../../common/lifecycle.js';
import { logger } from '../../common/log.js';
import { waitFor } from '../../common/retry.js';
import { TestWorld, type ProbeClient, type ProbeResult, type ProbeServer, type TestPod } from '../../native/testing.js';

export const TEST_BPFFS = '/sys/fs/bpf/underpass';

export class KernelWorld {
  readonly #store = new ClosableStore();
  kernel!: Kernel;

  private constructor(readonly world: TestWorld, private readonly http: boolean) {}

  /** Not pinned unless `pinned`, and without the HTTP fast path unless `http`; acceleration is on. */
  static async create(area: string, options: { pods?: number; pinned?: boolean; http?: boolean; maxEntries?: Record<string, number>; rodata?: Record<string, number> } = {}): Promise<KernelWorld> {
    const world = await TestWorld.create(area, options.pods ?? 2);
    const self = new KernelWorld(world, options.http === true);
    self.#store.add(world);
    try {
      if (options.pinned) self.#store.defer(() => Kernel.cleanup({ bpffsDir: TEST_BPFFS, instance: world.name }));
      self.kernel = await self.open(options.pinned ? TEST_BPFFS : null, options.maxEntries, options.rodata);
      self.kernel.setGlobalAcceleration(true);
      self.kernel.attachProxy(world.proxyCgroup);
    } catch (error) {
      await self.close();
      throw error;
    }
    return self;
  }

  async open(bpffsDir: string | null, maxEntries?: Record<string, number>, rodata?: Record<string, number>, more: Partial<KernelOptions> = {}): Promise<Kernel> {
    const kernel = await Kernel.open({ ...more, bpffsDir, instance: this.world.name, logger: logger('test.kernel'), ...(maxEntries ? { maxEntries } : {}), ...(rodata ? { rodata } : {}), ...(this.http ? {} : { httpFastPath: false }) });
    this.#store.add(kernel);
    return kernel;
  }

  podRecord(pod: TestPod, changes: Partial<KernelPod> = {}): KernelPod {
    return {
      uid: `${this.world.name}-${pod.name}`,
      netnsCookie: pod.netnsCookie,
      cgroupPath: pod.cgroup,
      addresses: [pod.ipv4, pod.ipv6],
      mode: 'node',
      capture: false,
      acceleration: 'force',
      ...changes,
    };
  }

  put(changes: Partial<KernelPod> = {}, pods: readonly TestPod[] = this.world.pods): void {
    for (const pod of pods) this.kernel.putPod(this.podRecord(pod, changes));
  }

  /** Takes the pods out of the mesh, and what was learnt of them. */
  forget(): void {
    for (const pod of this.world.pods) this.kernel.removePod(this.podRecord(pod).uid);
  }

  /** What the counters grew by while `body` ran, zeros left out. */
  async counted<T>(body: () => Promise<T>): Promise<{ result: T; counters: Record<string, number> }> {
    const before = this.kernel.counters();
    const result = await body();
    return { result, counters: grown(before, this.kernel.counters()) };
  }

  /** Connections in probation, of which the last stays open until the programs of both ends, or of those that are named, are judged: only what runs can be looked at. */
  warm(server: ProbeServer, client: ProbeClient, args: readonly string[] = ['--count', '8'], { kinds = ['client', 'listener'], program }: { kinds?: ProbationEntry['kind'][]; program?: string } = {}): Promise<ProbeResult> {
    const pods = { client: client.pod.netnsCookie, listener: server.pod.netnsCookie };
    const judged = (): boolean => {
      const found = this.kernel.probation().filter(({ kind, netnsCookie }) => netnsCookie === pods[kind]);
      return kinds.every((wanted) => found.some(({ kind }) => kind === wanted)) && found.every(({ kind, verdict }) => !kinds.includes(kind) || verdict !== 'probation');
    };
    return this.world.holding('churn', server, client, args, () => waitFor('programs to be judged', judged, { everyMs: 10 }), program);
  }

  close(): Promise<void> {
    return this.#store.close();
  }
}

export function grown(before: Record<string, bigint>, after: Record<string, bigint>): Record<string, number> {
  const out: Record<string, number> = {};
  for (const [name, value] of Object.entries(after)) {
    const difference = Number(value - (before[name] ?? 0n));
    if (difference !== 0) out[name] = difference;
  }
  return out;
}
