// Sidecar mode whole: the lab's pods with Envoy sidecars and Istio's iptables rules, pilot as their control plane, mTLS between.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { logger } from '../common/log.js';
import { waitFor } from '../common/retry.js';
import { Lab } from '../lab/index.js';
import { labTraces, NO_TRACES } from '../lab/traces.js';
import { Pilot } from '../pilot/index.js';

const NAME = `up-lab-mtls-${process.pid}`;
const echo = (name: string, namespace: string, version: string, account: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: ${name}, namespace: ${namespace}, labels: {app: web, version: ${version}}}
spec:
  serviceAccountName: ${account}
  containers:
    - {name: echo, image: echo, ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]}
`;
const client = (namespace: string): string => `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: ${namespace}, labels: {app: client}}
spec: {serviceAccountName: caller, containers: [{name: curl, image: curl}]}
`;
const WORLD = [
  'apiVersion: v1\nkind: Namespace\nmetadata: {name: legacy, labels: {underpass.io/mode: sidecar}}\n',
  client('legacy'),
  client('plain'),
  echo('web-v1', 'legacy', 'v1', 'server'),
  echo('web-v2', 'legacy', 'v2', 'server'),
  echo('web', 'plain', 'v9', 'default'),
  ...['legacy', 'plain'].map(
    (namespace) => `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ${namespace}}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]
`,
  ),
  `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: legacy}
spec:
  hosts: [web]
  http:
    - match: [{headers: {user: {exact: jesse}}}]
      route: [{destination: {host: web, subset: v2}}]
    - route:
        - {destination: {host: web, subset: v1}, weight: 75}
        - {destination: {host: web, subset: v2}, weight: 25}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: legacy}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
`,
].join('---\n');

interface Answer {
  version: string;
  remote: string;
  headers: Record<string, string>;
}

let directory: string;
let lab: Lab;
let pilot: Pilot;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-mtls-'));
  writeFileSync(join(directory, 'world.yaml'), WORLD);
  const discovery = `unix:${join(directory, 'xds.sock')}`;
  // Outside of the directory that both read, and the lab first: sidecars wait for their control plane.
  lab = await Lab.up({ name: NAME, sources: [join(directory, 'world.yaml')], discovery, watch: false });
  await lab.whenReady();
  pilot = new Pilot({ sources: [join(directory, 'world.yaml'), lab.objectsDir], listen: [discovery], logger: logger('pilot') });
  await pilot.start();
  await lab.whenReady({ sidecars: true, timeoutMs: 60_000 });
  // That the servers are ready reaches the client's sidecar a push later.
  const answers = async (version: string, ...args: string[]): Promise<boolean> =>
    (await lab.exec('legacy/client', ['curl', '-s', '--max-time', '30', ...args, 'http://web/'])).stdout.includes(
      `"version":"${version}"`,
    );
  await waitFor('v2 in the sidecar', () => answers('v2', '-H', 'user: jesse'), { timeoutMs: 120_000 });
  await waitFor('v1 in the sidecar', () => answers('v1'), { timeoutMs: 120_000 });
});

after(async () => {
  await pilot?.stop();
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

async function get(pod: string, url: string, ...args: string[]): Promise<Answer> {
  const { code, stdout, stderr } = await lab.exec(pod, ['curl', '-sS', '--max-time', '10', ...args, url]);
  assert.equal(code, 0, stderr);
  try {
    return JSON.parse(stdout) as Answer;
  } catch {
    throw new assert.AssertionError({ message: `${pod} → ${url}: ${stdout}` });
  }
}

test("sidecars: the server knows the caller by its SPIFFE id, from the certificate that the lab's CA gave it", async () => {
  const answer = await get('legacy/client', 'http://web/');
  const xfcc = answer.headers['x-forwarded-client-cert'] ?? '';
  assert.match(xfcc, /URI=spiffe:\/\/cluster\.local\/ns\/legacy\/sa\/caller/);
  assert.match(xfcc, /By=spiffe:\/\/cluster\.local\/ns\/legacy\/sa\/server/);
});

test("sidecars: the application sees the sidecar's pass-through source, not the caller", async () => {
  assert.match((await get('legacy/client', 'http://web/')).remote, /127\.0\.0\.6:/);
});

test('sidecars: header match goes to v2, the rest is split 75/25', async () => {
  for (let count = 0; count < 20; count++)
    assert.equal((await get('legacy/client', 'http://web/', '-H', 'user: jesse')).version, 'v2');
  // One connection, many requests: what is counted is the sidecar's draw per request.
  const requests = 400;
  const { stdout } = await lab.exec('legacy/client', ['curl', '-sS', '--max-time', '60', `http://web/?[1-${requests}]`]);
  const versions = stdout
    .trim()
    .split('\n')
    .map((line) => (JSON.parse(line) as Answer).version);
  assert.equal(versions.length, requests);
  const share = versions.filter((version) => version === 'v2').length / requests;
  // Five standard deviations of a binomial with p = 0.25, n = 400.
  assert.ok(Math.abs(share - 0.25) < 0.11, `${share}`);
});

test('sidecars: plain TCP goes by mTLS as well', async () => {
  const handshakes = async (): Promise<number> => {
    const stats = `${await lab.proxyAdmin('legacy/web-v1', '/stats?filter=ssl.handshake$')}\n${await lab.proxyAdmin('legacy/web-v2', '/stats?filter=ssl.handshake$')}`;
    return [...stats.matchAll(/^listener\..*ssl\.handshake: (\d+)$/gm)].reduce((sum, match) => sum + Number(match[1]), 0);
  };
  const before = await handshakes();
  const echoed = await lab.exec('legacy/client', ['bash', '-c', 'exec 3<>/dev/tcp/web/9000; echo ping >&3; head -1 <&3']);
  assert.equal(echoed.stdout, 'ping\n');
  await waitFor('a handshake', async () => (await handshakes()) > before);
});

test('sidecars: a pod without one still reaches them in plaintext, and they reach a pod without one', async () => {
  const fromOutside = await get('plain/client', 'http://web.legacy/');
  assert.match(fromOutside.version, /^v[12]$/);
  assert.equal(fromOutside.headers['x-forwarded-client-cert'], undefined);
  assert.equal((await get('legacy/client', 'http://web.plain/')).version, 'v9');
});

test("sidecars: IPv6 to a pod's address is captured and answered", async () => {
  const ipv6 = lab.pod('legacy', 'web-v1').ips[1] as string;
  assert.equal((await get('legacy/client', `http://[${ipv6}]:8080/`)).version, 'v1');
});

test('sidecars: a restarted Envoy serves again', async () => {
  const before = lab.pod('legacy', 'client').containers.find(({ name }) => name === 'istio-proxy');
  process.kill(before?.pid ?? 0, 'SIGKILL');
  await waitFor(
    'the restart',
    () => {
      const now = lab.pod('legacy', 'client').containers.find(({ name }) => name === 'istio-proxy');
      return now?.ready && now.pid !== before?.pid;
    },
    { timeoutMs: 60_000 },
  );
  assert.match((await get('legacy/client', 'http://web/')).version, /^v[12]$/);
});

test('sidecars: ending the lab leaves nothing', async () => {
  await pilot.stop();
  await lab.down();
  assert.deepEqual(labTraces(NAME), NO_TRACES);
});
