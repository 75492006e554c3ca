/** What asks an agent needs, without the agent itself: a command that only asks starts in a fraction of the time. */
import type { ObjectStatus } from './consistency/object-status.js';

export { askAgent, followAgent, openAgentStream, type AdminAnswer, type AdminRoutes } from './admin/server.js';
export type { AgentStatus } from './admin/status.js';
export type { PodStatus } from './dataplane/dataplane.js';
export { countProbation, type PodProbation } from './dataplane/probation.js';
export type { AgentFastPathStatus } from './http/agent-fast-path.js';
export { DEFAULT_INSTANCE, instancePaths } from './instance.js';
export type { Explanation } from './resolve/explain.js';
export { unknownLabels } from './workloads/enrolment.js';

/** What `/v1/objects` answers. */
export interface NodeObjects {
  node: string;
  objects: ObjectStatus[];
}
export { FLOW_VERDICTS, FLOW_WAYS, type Flow } from './telemetry/flow-record.js';
export { FLOWS_KEPT } from './telemetry/flow-stream.js';
export type { TrafficReport } from '../common/traffic.js';
export type { TraceLine } from './telemetry/trace-stream.js';
