/** Reads the arguments of Istio's init container, `istio-iptables -p 15001 -z 15006 …`, into what they capture. */
import { isIP } from 'node:net';
import { UnderpassError } from './errors.js';
import { DEFAULT_CAPTURE, PROXY_UID, type CaptureSettings } from './istio-iptables.js';

/** Short and long names (istio/istio, tools/istio-iptables/pkg/constants); those without a field are read and left alone. */
const OPTIONS: Readonly<Record<string, string>> = {
  '-p': 'outboundPort', '--envoy-port': 'outboundPort',
  '-z': 'inboundPort', '--inbound-capture-port': 'inboundPort',
  '-u': 'uid', '--proxy-uid': 'uid',
  '-g': 'gid', '--proxy-gid': 'gid',
  '-m': 'mode', '--istio-inbound-interception-mode': 'mode',
  '-b': 'includeInboundPorts', '--istio-inbound-ports': 'includeInboundPorts',
  '-d': 'excludeInboundPorts', '--istio-local-exclude-ports': 'excludeInboundPorts',
  '-i': 'includeOutboundRanges', '--istio-service-cidr': 'includeOutboundRanges',
  '-x': 'excludeOutboundRanges', '--istio-service-exclude-cidr': 'excludeOutboundRanges',
  '-q': 'includeOutboundPorts', '--istio-outbound-ports': 'includeOutboundPorts',
  '-o': 'excludeOutboundPorts', '--istio-local-outbound-ports-exclude': 'excludeOutboundPorts',
  '-c': 'excludeInterfaces', '--istio-exclude-interfaces': 'excludeInterfaces',
  '-e': 'tunnelPort', '--inbound-tunnel-port': 'tunnelPort',
  '-k': 'virtualInterfaces', '--kube-virt-interfaces': 'virtualInterfaces',
  '-t': 'tproxyMark', '--istio-inbound-tproxy-mark': 'tproxyMark',
  '-r': 'tproxyRouteTable', '--istio-inbound-tproxy-route-table': 'tproxyRouteTable',
};

export interface IstioInit {
  capture: CaptureSettings;
  uid: number;
  gid: number;
}

function fail(option: string, found: string, expected: string): never {
  throw new UnderpassError('UNDERPASS_ISTIO_IPTABLES', `reading istio-iptables' arguments: ${option}: found ${JSON.stringify(found)}, expected ${expected}`);
}

const words = (text: string): string[] => text.split(',').map((word) => word.trim()).filter(Boolean);

/** @throws UnderpassError `UNDERPASS_ISTIO_IPTABLES` naming the option that can't be followed */
export function parseIstioInit(args: readonly string[]): IstioInit {
  const given = new Map<string, { option: string; value: string }>();
  for (let index = args[0] === 'istio-iptables' ? 1 : 0; index < args.length; index++) {
    const word = String(args[index]);
    const equals = word.startsWith('--') ? word.indexOf('=') : -1;
    const option = equals > 0 ? word.slice(0, equals) : word;
    const field = OPTIONS[option];
    if (field === undefined) continue; // e.g. --log_output_level=default:info
    given.set(field, { option, value: equals > 0 ? word.slice(equals + 1) : String(args[++index] ?? '') });
  }
  const text = (field: string): string => given.get(field)?.value ?? '';
  const option = (field: string): string => given.get(field)?.option ?? field;
  const number = (field: string, otherwise: number): number => {
    if (text(field) === '') return otherwise;
    return /^\d+$/.test(text(field)) && Number(text(field)) <= 0xffff_fffe ? Number(text(field)) : fail(option(field), text(field), 'a number');
  };
  const ports = (field: string): number[] =>
    words(text(field)).map((word) => (/^\d+$/.test(word) && Number(word) >= 1 && Number(word) <= 65535 ? Number(word) : fail(option(field), word, 'ports from 1 to 65535')));
  const ranges = (field: string): string[] => words(text(field)).map((word) => (isRange(word) ? word : fail(option(field), word, 'ranges such as 10.0.0.0/8')));
  if (text('mode') !== '' && text('mode') !== 'REDIRECT') fail(option('mode'), text('mode'), 'REDIRECT');
  const names = words(text('excludeInterfaces'));
  for (const name of names) if (!/^[A-Za-z0-9_.+@-]{1,15}$/.test(name)) fail(option('excludeInterfaces'), name, "an interface's name");
  const uid = number('uid', PROXY_UID);
  return {
    uid,
    gid: number('gid', uid),
    capture: {
      outboundPort: number('outboundPort', DEFAULT_CAPTURE.outboundPort),
      inboundPort: number('inboundPort', DEFAULT_CAPTURE.inboundPort),
      includeInboundPorts: text('includeInboundPorts') === '*' ? '*' : ports('includeInboundPorts'),
      excludeInboundPorts: ports('excludeInboundPorts'),
      includeOutboundPorts: ports('includeOutboundPorts'),
      excludeOutboundPorts: ports('excludeOutboundPorts'),
      includeOutboundRanges: text('includeOutboundRanges') === '*' ? '*' : ranges('includeOutboundRanges'),
      excludeOutboundRanges: ranges('excludeOutboundRanges'),
      excludeInterfaces: names,
    },
  };
}

export function isRange(text: string): boolean {
  const [address = '', bits = ''] = text.split('/');
  const family = isIP(address);
  return family !== 0 && /^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128);
}
