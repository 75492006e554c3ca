/** A node whose kernel, namespaces, rules and proxy note what a Dataplane asks of them, for its tests. */
import assert from 'node:assert/strict';
import { pino } from 'pino';
import { UnderpassError } from '../../common/errors.js';
import type { PodRecord } from '../../common/lab-api.js';
import { Backoff, waitFor } from '../../common/retry.js';
import type { KernelPod, ListenerPod } from './collaborators.js';
import { Dataplane } from './dataplane.js';

const logger = pino({ level: 'silent' });
export const NO_TUNNELS = { tunnelled: new Set<string>(), takingTunnels: new Set<string>() };

export class World {
  steps: string[] = [];
  kernelPods = new Map<string, KernelPod>();
  /** Pods of which a call, also one that failed, left something in the kernel. */
  touched = new Set<string>();
  pins = new Set<string>();
  rules = new Map<string, 'active' | 'stopped'>();
  inbound = new Map<string, 'active' | 'stopped'>();
  listeners = new Map<string, ListenerPod>();
  ready = true;
  removable = true;
  outdated = false;
  /** Ports that programs of the pod's listen on. */
  taken = new Set<number>();
  /** How often sockets of pods were read for that. */
  looks = 0;
  live = 0;
  /** The control plane has said which policies hold. */
  policiesKnown = true;
  redirected = 0;
  failPut: string | undefined;
  failRules: string | undefined;
  failState: string | undefined;
  failLabels: string | undefined;
  /** Pods that are steered; undefined: this node can't. */
  steered: Set<string> | undefined;
  failSteering: string | undefined;
  labels: Record<string, string> = {};
  annotations: Record<string, string> = {};
  /** The state of the rules when all that follows a withdrawn label at once was done. */
  inboundAfterWithdrawal: string | undefined;

  step(text: string): void {
    if (this.steps.at(-1) !== text) this.steps.push(text);
  }

  dataplane(options: { kernel?: boolean } = {}): Dataplane {
    const world = this;
    return new Dataplane({
      logger,
      defaults: { acceleration: 'l4', redirection: 'auto' },
      drainPollMs: 5,
      callersHearMs: 20,
      setMetadata: ({ uid }, { labels = {}, annotations = {} }) => {
        if (world.failLabels !== undefined) return Promise.reject(new Error(world.failLabels));
        for (const [what, said, values] of [['label', world.labels, labels], ['annotation', world.annotations, annotations]] as const) {
          for (const [key, value] of Object.entries(values)) {
            if (value === null) {
              delete said[key];
              setImmediate(() => (world.inboundAfterWithdrawal = world.inbound.get(`/pins/${uid}`)));
            } else said[key] = value;
            world.step(`${what} ${uid} ${key}=${value}`);
          }
        }
        return Promise.resolve();
      },
      readyTimeoutMs: 60,
      ...(world.steered === undefined ? {} : {
        steering: {
          start({ uid }) {
            if (world.failSteering !== undefined) return Promise.reject(new UnderpassError('UNDERPASS_NO_LISTENER', world.failSteering));
            world.steered!.add(uid);
            world.step('steering start');
            return Promise.resolve();
          },
          stop(uid) {
            world.steered!.delete(uid);
            world.step('steering stop');
          },
          forget: (uid) => void world.steered!.delete(uid),
          state: (uid) => (world.steered!.has(uid) ? 'active' : 'none'),
        },
      }),
      policiesKnown: async (_, signal) => void (await waitFor('policies', () => world.policiesKnown, { everyMs: 2, signal })),
      backoff: () => new Backoff({ initialMs: 5, maxMs: 20, factor: 2, jitter: 0 }),
      kernel:
        options.kernel === false
          ? undefined
          : {
              putPod(pod) {
                world.touched.add(pod.uid);
                if (world.failPut !== undefined) throw new Error(world.failPut);
                world.kernelPods.set(pod.uid, pod);
                world.step(`kernel ${pod.mode} capture=${pod.capture} redirected=${pod.redirected} ${pod.acceleration}`);
              },
              removePod(uid) {
                world.kernelPods.delete(uid);
                world.touched.delete(uid);
                world.step('kernel removed');
              },
              liveConnections: () => world.live,
              pods: () => [...world.kernelPods.values()],
            },
      proxy: {
        setPods(pods) {
          world.listeners = new Map(pods.map((pod) => [pod.uid, pod]));
          world.step(`listeners ${pods.length}`);
        },
        async whenReady(uid, signal) {
          await waitFor('ready', () => world.ready && world.listeners.has(uid), { everyMs: 2, signal });
          world.step('listener ready');
        },
        async whenRemoved(uid, signal) {
          await waitFor('removed', () => world.removable && !world.listeners.has(uid), { everyMs: 2, signal });
          world.step('listener removed');
        },
        activeConnections: () => Promise.resolve(0),
      },
      namespaces: {
        pin(uid) {
          world.pins.add(uid);
          world.step('pin');
          return `/pins/${uid}`;
        },
        unpin(uid) {
          world.pins.delete(uid);
          world.step('unpin');
        },
        pinned: () => [...world.pins],
        path: (uid) => `/pins/${uid}`,
        cookie: () => Promise.resolve(7n),
        takenPorts(_netns, ports) {
          world.looks++;
          return Promise.resolve(new Set(ports.flatMap(({ port }) => (world.taken.has(port) ? port : []))));
        },
        closeConnections() {
          world.step('connections closed');
          return Promise.resolve(0);
        },
        capturedSockets: () => Promise.resolve({ total: world.redirected, redirected: world.redirected }),
        inboundRules: (path) => ({
          start() {
            world.inbound.set(path, 'active');
            world.step('inbound rules start');
            return Promise.resolve({ backend: 'nft', notes: [] });
          },
          stop() {
            world.inbound.set(path, 'stopped');
            world.step('inbound rules stop');
            return Promise.resolve();
          },
          remove() {
            world.inbound.delete(path);
            world.step('inbound rules remove');
            return Promise.resolve();
          },
          state: () => Promise.resolve({ active: world.inbound.get(path) === 'active', present: world.inbound.has(path), outdated: world.outdated }),
        }),
        rules: (path) => ({
          start() {
            if (world.failRules !== undefined) return Promise.reject(new Error(world.failRules));
            world.rules.set(path, 'active');
            world.step('rules start');
            return Promise.resolve({ backend: 'nft', notes: [] });
          },
          stop() {
            world.rules.set(path, 'stopped');
            world.step('rules stop');
            return Promise.resolve();
          },
          remove() {
            world.rules.delete(path);
            world.step('rules remove');
            return Promise.resolve();
          },
          state: () => world.failState !== undefined ? Promise.reject(new Error(world.failState)) : Promise.resolve({ active: world.rules.get(path) === 'active', present: world.rules.has(path) }),
        }),
      },
    });
  }
}

export function pod(namespaceLabels: Record<string, string>, change: Partial<PodRecord> = {}): PodRecord {
  return {
    uid: 'u1', name: 'client', namespace: 'shop', labels: {}, annotations: {}, namespaceLabels, nodeName: 'n1',
    serviceAccount: 'default', ips: ['10.1.0.2'], netns: '/run/netns/x', cgroup: '/cg/x', hostNetwork: false,
    phase: 'Running', ready: true, terminating: false, hasSidecar: false, containers: [], ...change,
  };
}
export const mode = (value: string, more: Record<string, string> = {}): Record<string, string> => ({ 'underpass.io/mode': value, ...more });
export const settled = (plane: Dataplane): Promise<boolean> => waitFor('settled', () => plane.status().every((row) => row.settled), { everyMs: 2 });
export const status = (plane: Dataplane) => plane.status()[0] ?? assert.fail('no pod');

export async function started(world: World, pods: PodRecord[], options: { kernel?: boolean; bpfProblem?: string } = {}): Promise<Dataplane> {
  const plane = world.dataplane(options);
  await plane.adopt(pods);
  world.steps = [];
  plane.start({ bpfProblem: options.bpfProblem });
  await settled(plane);
  return plane;
}
