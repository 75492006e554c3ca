/** Rows of the behaviour self-test: what the kernel does with real sockets, not what its version promises. */
import type { Capabilities } from './kernel.js';
import type { Row } from './report.js';

const GROUP = 'Behaviour (self-test over real sockets)';

export async function selfTestRows(capabilities: Capabilities): Promise<Row[]> {
  if (!capabilities.canLoadBpf || !capabilities.canEnterNetns) {
    return [{ id: 'self-test.acceleration', group: GROUP, name: 'short-circuits', state: 'no', need: 'extra', detail: 'not tried: this process may not load BPF', cost: 'run as root' }];
  }
  return [];
}
