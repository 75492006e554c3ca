/** Client, Envoy and server of one exchange as three processes that do what a test says, on real sockets under the real programs. */
import { SocketEnds, type EndsAnswer } from '../../agent/dataplane/socket-ends.js';
import type { TestPod, TestWorld } from '../../native/testing.js';

export type Answer = EndsAnswer;

/** A process in a pod's namespace that holds sockets by name. */
export class Ends extends SocketEnds {
  constructor(_world: TestWorld, pod: TestPod, cgroup = pod.cgroup) {
    super({ netns: pod.netns, cgroup });
  }
}
