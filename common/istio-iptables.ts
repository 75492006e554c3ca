/**
 * The rules that istio-init writes into a pod for `istio-iptables -p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT -i '*' -x ''
 * -b '*' -d 15090,15021,15020` (istio/istio, tools/istio-iptables, 1.24 and later; before, OUTPUT jumped for TCP only).
 * The lab gives them to pods with sidecars; the agent's fallback uses the outbound part with a mark instead of an owner.
 */
export const OUTBOUND_PORT = 15001;
export const INBOUND_PORT = 15006;
export const HBONE_PORT = 15008;
export const PROXY_UID = 1337;
/** Telemetry, health and merged statistics of the sidecar itself: never captured. */
export const EXCLUDED_INBOUND_PORTS: readonly number[] = [15090, 15021, 15020];
/** The source address that a sidecar uses towards its own application. */
export const INBOUND_PASSTHROUGH_SOURCE = { ipv4: '127.0.0.6/32', ipv6: '::6/128' } as const;

export type IpFamily = 'ipv4' | 'ipv6';
export const NAT_CHAINS = ['ISTIO_INBOUND', 'ISTIO_REDIRECT', 'ISTIO_IN_REDIRECT', 'ISTIO_OUTPUT'] as const;

/** Who is the proxy: the pod's own sidecar by its user and group, or a proxy elsewhere by the mark of its sockets. */
export type ProxyIdentity = { uid: number; gid: number } | { mark: number };

/** What is captured, and where it goes: options of istio-iptables. */
export interface CaptureSettings {
  outboundPort: number;
  inboundPort: number;
  /** Ports at which what enters is redirected; an empty list for none. */
  includeInboundPorts: '*' | readonly number[];
  /** Counts only with `*`. */
  excludeInboundPorts: readonly number[];
  /** Ports that are redirected wherever they go, whatever the ranges say. */
  includeOutboundPorts: readonly number[];
  excludeOutboundPorts: readonly number[];
  /** CIDRs of both families, each family's rules have their own. */
  includeOutboundRanges: '*' | readonly string[];
  excludeOutboundRanges: readonly string[];
  excludeInterfaces: readonly string[];
}

export const DEFAULT_CAPTURE: CaptureSettings = {
  outboundPort: OUTBOUND_PORT,
  inboundPort: INBOUND_PORT,
  includeInboundPorts: '*',
  excludeInboundPorts: EXCLUDED_INBOUND_PORTS,
  includeOutboundPorts: [],
  excludeOutboundPorts: [],
  includeOutboundRanges: '*',
  excludeOutboundRanges: [],
  excludeInterfaces: [],
};

export interface IstioRulesOptions {
  family: IpFamily;
  proxy?: ProxyIdentity;
  /** Redirect what enters the pod; default true. */
  inbound?: boolean;
  /** Default: everything but the sidecar's own ports. */
  capture?: CaptureSettings;
}

const isLoopback = (range: string): boolean => range.startsWith('127.') || range.startsWith('::1/');

/** The rules in the order of their appending, without `iptables -t nat`. */
export function istioNatRules(options: IstioRulesOptions): string[] {
  const { family, inbound = true, capture = DEFAULT_CAPTURE } = options;
  const proxy = options.proxy ?? { uid: PROXY_UID, gid: PROXY_UID };
  const loopback = family === 'ipv4' ? '127.0.0.1/32' : '::1/128';
  const ofFamily = (ranges: readonly string[]): string[] => ranges.filter((range) => range.includes(':') === (family === 'ipv6'));
  const rules: string[] = [];
  for (const name of capture.excludeInterfaces) rules.push(`-A PREROUTING -i ${name} -j RETURN`, `-A OUTPUT -o ${name} -j RETURN`);
  if (inbound) rules.push(`-A ISTIO_INBOUND -p tcp --dport ${HBONE_PORT} -j RETURN`);
  rules.push(`-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports ${capture.outboundPort}`);
  if (inbound) {
    rules.push(`-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports ${capture.inboundPort}`);
    rules.push(...inboundRules(capture));
  }
  rules.push('-A OUTPUT -j ISTIO_OUTPUT');
  for (const port of capture.excludeOutboundPorts)
    for (const protocol of ['tcp', 'udp']) rules.push(`-A ISTIO_OUTPUT -p ${protocol} --dport ${port} -j RETURN`);
  rules.push(`-A ISTIO_OUTPUT -o lo -s ${INBOUND_PASSTHROUGH_SOURCE[family]} -j RETURN`);
  if ('mark' in proxy) {
    rules.push(`-A ISTIO_OUTPUT -m mark --mark 0x${proxy.mark.toString(16)} -j RETURN`);
    rules.push('-A ISTIO_OUTPUT -o lo -j RETURN');
  } else {
    for (const owner of [`--uid-owner ${proxy.uid}`, `--gid-owner ${proxy.gid}`]) {
      // A sidecar that calls its own pod by address is to meet its inbound side; an application that does so is not.
      if (inbound)
        rules.push(
          `-A ISTIO_OUTPUT -o lo ! -d ${loopback} -p tcp ! --dport ${HBONE_PORT} -m owner ${owner} -j ISTIO_IN_REDIRECT`,
        );
      if (capture.includeOutboundRanges === '*' || !capture.includeOutboundRanges.some(isLoopback)) rules.push(`-A ISTIO_OUTPUT -o lo -m owner ! ${owner} -j RETURN`);
      rules.push(`-A ISTIO_OUTPUT -m owner ${owner} -j RETURN`);
    }
  }
  rules.push(`-A ISTIO_OUTPUT -d ${loopback} -j RETURN`);
  for (const range of ofFamily(capture.excludeOutboundRanges)) rules.push(`-A ISTIO_OUTPUT -d ${range} -j RETURN`);
  for (const port of capture.includeOutboundPorts) rules.push(`-A ISTIO_OUTPUT -p tcp --dport ${port} -j ISTIO_REDIRECT`);
  if (capture.includeOutboundRanges === '*') rules.push('-A ISTIO_OUTPUT -j ISTIO_REDIRECT');
  else for (const range of ofFamily(capture.includeOutboundRanges)) rules.push(`-A ISTIO_OUTPUT -d ${range} -j ISTIO_REDIRECT`);
  return rules;
}

function inboundRules({ includeInboundPorts, excludeInboundPorts }: CaptureSettings): string[] {
  const jump = '-A PREROUTING -p tcp -j ISTIO_INBOUND';
  if (includeInboundPorts !== '*')
    return includeInboundPorts.length ? [jump, ...includeInboundPorts.map((port) => `-A ISTIO_INBOUND -p tcp --dport ${port} -j ISTIO_IN_REDIRECT`)] : [];
  return [jump, ...excludeInboundPorts.map((port) => `-A ISTIO_INBOUND -p tcp --dport ${port} -j RETURN`), '-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT'];
}

/** Input for `iptables-restore --noflush` (or ip6tables-restore) that adds the chains and rules in one step. */
export function istioRestoreInput(options: IstioRulesOptions): string {
  const rules = istioNatRules(options);
  const used = NAT_CHAINS.filter((chain) => rules.some((rule) => rule.includes(chain)));
  return ['*nat', ...used.map((chain) => `:${chain} - [0:0]`), ...rules, 'COMMIT', ''].join('\n');
}

/**
 * Input for `iptables-restore --noflush` that takes exactly these chains and rules away again and leaves others' alone.
 * It fails as a whole when one of them is not there.
 */
export function istioRemoveInput(options: IstioRulesOptions): string {
  const rules = istioNatRules(options);
  const used = NAT_CHAINS.filter((chain) => rules.some((rule) => rule.includes(chain)));
  const jumps = rules
    .filter((rule) => !used.some((chain) => rule.startsWith(`-A ${chain} `)))
    .map((rule) => rule.replace('-A ', '-D '));
  return ['*nat', ...jumps, ...used.map((chain) => `-F ${chain}`), ...used.map((chain) => `-X ${chain}`), 'COMMIT', ''].join(
    '\n',
  );
}
