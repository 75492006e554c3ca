import type { AgentConsistency } from '../consistency/agent-auditor.js';
import type { PrometheusText } from './prometheus.js';

export function addConsistencyMetrics(text: PrometheusText, consistency: AgentConsistency): void {
  for (const [compared, { drifting, drifts, repairs, rounds, tookMs = 0, busyMs = 0 }] of Object.entries(consistency)) {
    const label = { compared };
    text.add('underpass_drifting', 'gauge', 'Entries of the kernel and resources of Envoy that are not what the agent wants there, by the last comparison.', drifting.length, label);
    for (const [key, count] of Object.entries(drifts)) {
      const [kind = '', state = ''] = key.split(' ');
      text.add('underpass_drift_total', 'counter', 'Entries of the kernel and resources of Envoy that were found to be other than the agent wants.', count, { kind, state });
    }
    for (const [key, count] of Object.entries(repairs)) {
      const [kind = '', result = ''] = key.split(' ');
      text.add('underpass_repairs_total', 'counter', 'What came of them; withheld: they drift again and again, unsafe: not the agent\'s to repair.', count, { kind, result });
    }
    text.add('underpass_consistency_rounds_total', 'counter', 'Comparisons of all that is in force with what is wanted.', rounds, label);
    text.add('underpass_consistency_round_seconds', 'gauge', 'How long the last of them took.', tookMs / 1_000, label);
    text.add('underpass_consistency_busy_seconds', 'gauge', 'How long it was at work, and Envoy for it, in that time.', busyMs / 1_000, label);
  }
}
