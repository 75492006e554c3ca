/** Rows of the behaviour self-test: what the kernel does with real sockets, not what its version promises. */
import { errorMessage } from '../../common/errors.js';
import { logger } from '../../common/log.js';
import type { Capabilities } from './kernel.js';
import type { Row } from './report.js';

const GROUP = 'Behaviour (self-test over real sockets)';
const NOT_ACCELERATED = 'short-circuits stay off, payload goes by TCP';
const NOT_FAST = 'the HTTP fast path stays off, requests go through Envoy';

const RESTRICTIONS = {
  'blocking-recv': 'a blocking recv() on a short-circuited socket can fail with EAGAIN: only programs that probation has seen to be event-driven are short-circuited',
  splice: 'splice(2) does not see moved bytes: programs that use it must not be short-circuited',
} as const;

/** Never throws: what can't be tried is a row that says why. */
export async function selfTestRows(capabilities: Capabilities): Promise<Row[]> {
  const untried = (detail: string, cost: string): Row[] => [{ id: 'self-test.acceleration', group: GROUP, name: 'self-test', state: 'no', need: 'bpf', detail, cost }];
  if (!capabilities.canLoadBpf || !capabilities.canEnterNetns) return untried('not tried: this process may not load BPF or make namespaces', 'run as root for the answer');
  const log = logger('doctor');
  log.level = 'silent';
  let verdict;
  try {
    const { selfTest } = await import('../../agent/dataplane/self-test.js');
    verdict = await selfTest(log);
  } catch (error) {
    return untried(`could not be run: ${errorMessage(error).split('\n')[0] ?? ''}`, 'iptables only, no short-circuits');
  }
  const { capture, acceleration, fastPath } = verdict;
  const rows: Row[] = [
    { id: 'self-test.capture', group: GROUP, name: 'capture', state: capture.ok ? 'yes' : 'no', need: 'bpf', detail: capture.ok ? `connections are led to the proxy, which learns where they were bound (${verdict.tookMs} ms for all)` : capture.reason, ...(capture.ok ? {} : { cost: 'pods are captured by iptables' }) },
    { id: 'self-test.acceleration', group: GROUP, name: 'short-circuits', state: acceleration.ok ? 'yes' : 'no', need: 'extra', detail: acceleration.ok ? 'payload arrives whole, in order and with bounded memory' : acceleration.reason, ...(acceleration.ok ? {} : { cost: NOT_ACCELERATED }) },
    { id: 'self-test.fast-path', group: GROUP, name: 'HTTP fast path', state: fastPath.ok && acceleration.ok ? 'yes' : 'no', need: 'extra', detail: fastPath.ok && !acceleration.ok ? 'not without short-circuits' : fastPath.reason, ...(fastPath.ok && acceleration.ok ? {} : { cost: NOT_FAST }) },
  ];
  const restricted: readonly string[] = verdict.restrictions;
  for (const check of verdict.checks) {
    const restriction = restricted.find((name) => check.name.startsWith(name));
    const cost = restriction ? RESTRICTIONS[restriction as keyof typeof RESTRICTIONS] : check.ok ? undefined : check.name.startsWith('http-') ? NOT_FAST : NOT_ACCELERATED;
    // A restriction is the rule on today's kernels, and probation copes with it: nothing that a verdict hangs on.
    rows.push({ id: `self-test.${check.name.replace(/\W+/g, '-')}`, group: GROUP, name: `  ${check.name}`, state: restriction ? 'partly' : check.ok ? 'yes' : 'no', need: 'extra', detail: check.detail, ...(cost === undefined ? {} : { cost }) });
  }
  return rows;
}
