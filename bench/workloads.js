/** What is asked of the servers: one row of the report for each, mode and placement. */
import { UnderpassError } from '../common/errors.js';
/** What a request of ten asks for in `mixed`: its route rewrites the path. */
export const REWRITTEN_PATH = '/rewritten/';
const MIX_EACH = 10;
/** A life in which what has to be learnt of a connection shows. */
const REQUESTS_PER_CONNECTION = 200;
export const WORKLOADS = [
    { id: 'http', title: 'HTTP GET, keep-alive, small answer', short: 'HTTP', protocol: 'http', args: ['http'] },
    { id: 'http-differing-heads', title: 'HTTP GET, no head like the one before', short: 'differing heads', protocol: 'http', args: ['http', '--vary'], extra: true },
    { id: 'http-post', title: 'HTTP POST of 1 KiB', short: 'POST 1 KiB', protocol: 'http', args: ['http', '--method', 'POST', '--body', '1024'], extra: true },
    { id: 'http-16k', title: 'HTTP GET, answers of 16 KiB', short: '16 KiB', protocol: 'http', args: ['http', '--path', '/bytes/16384'], extra: true },
    { id: 'http-256k', title: 'HTTP GET, answers of 256 KiB', short: '256 KiB', protocol: 'http', args: ['http', '--path', '/bytes/262144'], extra: true },
    { id: 'http-256-connections', title: 'HTTP GET, 256 connections that stay', short: '256 connections', protocol: 'http', args: ['http'], connections: 256, extra: true },
    {
        id: 'http-256-new-connections',
        title: `HTTP GET, 256 connections of ${REQUESTS_PER_CONNECTION} requests each`,
        short: '256 new connections',
        protocol: 'http',
        args: ['http', '--requests-per-connection', String(REQUESTS_PER_CONNECTION)],
        connections: 256,
        extra: true,
    },
    { id: 'http-mix', title: 'HTTP GET, a request of ten is Envoy\'s (its path is rewritten)', short: 'mix', protocol: 'http', args: ['http', '--other-path', REWRITTEN_PATH, '--other-each', String(MIX_EACH)], variant: 'mixed', extra: true },
    { id: 'http-tracing', title: 'HTTP GET, with Istio\'s default tracing (1 %)', short: 'tracing', protocol: 'http', args: ['http'], variant: 'traced', extra: true },
    { id: 'tcp-64', title: 'TCP, 64 bytes there and back', short: '64 B', protocol: 'tcp', args: ['ping-pong', '--size', '64'] },
    { id: 'tcp-16k', title: 'TCP, 16 KiB there and back', short: '16 KiB', protocol: 'tcp', args: ['ping-pong', '--size', '16384'] },
    { id: 'tcp-bulk', title: 'TCP, one stream as fast as it goes', short: 'bulk', protocol: 'tcp', args: ['bulk', '--size', '65536'], bulk: true },
    { id: 'tcp-connect', title: 'TCP, a connection for each 64 bytes there and back', short: 'connect', protocol: 'tcp', args: ['ping-pong', '--size', '64', '--new-connection-each'] },
];
export const workloadById = (id) => WORKLOADS.find((workload) => workload.id === id);
/** @throws UnderpassError `UNDERPASS_BAD_OPTION` for a load that there is not */
export function parseWorkloads(text) {
    if (text === undefined)
        return WORKLOADS.filter(({ extra }) => !extra);
    if (text === 'all')
        return WORKLOADS;
    const ids = text.split(',').map((id) => id.trim());
    const unknown = ids.find((id) => !WORKLOADS.some((workload) => workload.id === id));
    if (unknown !== undefined)
        throw new UnderpassError('UNDERPASS_BAD_OPTION', `--loads ${text}: there is no load ${JSON.stringify(unknown)}`, { hint: `there are all, ${WORKLOADS.map(({ id }) => id).join(', ')}` });
    return WORKLOADS.filter(({ id }) => ids.includes(id));
}
/**
 * Those of the chosen ones that say something of a mode. Between nodes, two sizes of message say what the third would;
 * connections are pooled there, or none is like another; and there is no fast path.
 */
export function workloadsOf({ protocol, betweenNodes }, chosen) {
    return chosen.filter(({ id, protocol: its, extra }) => its === protocol && !(betweenNodes && (extra || id === 'tcp-16k' || id === 'tcp-connect')));
}
/** Where a mode's load runs: a mode that has no routes has no variants. */
export function namespaceOf(mode, variant) {
    return variant === undefined || mode.target === 'pod' ? mode.namespace : `${mode.namespace}-${variant}`;
}
//# sourceMappingURL=workloads.js.map