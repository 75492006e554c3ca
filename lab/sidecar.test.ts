import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { errorMessage } from '../common/errors.js';
import { istioRemoveInput, istioRestoreInput } from '../common/istio-iptables.js';
import { run } from '../common/process.js';
import { waitFor } from '../common/retry.js';
import { Lab } from './lab.js';
import { labTraces, NO_TRACES } from './traces.js';

const NAME = `up-lab-sidecar-${process.pid}`;
const pod = (name: string, namespace: string, labels: string, more = ''): string =>
  `apiVersion: v1\nkind: Pod\nmetadata: {name: ${name}, namespace: ${namespace}, labels: {${labels}}}\nspec: {containers: [{name: main, image: curl}]${more}}\n`;
const WORLD = [
  'apiVersion: v1\nkind: Namespace\nmetadata: {name: legacy, labels: {underpass.io/mode: sidecar}}\n',
  'apiVersion: v1\nkind: Namespace\nmetadata: {name: istio, labels: {istio-injection: enabled}}\n',
  pod('with', 'legacy', 'app: a', ', serviceAccountName: robot'),
  pod('without', 'legacy', 'app: a, underpass.io/mode: "off"'),
  pod('with', 'istio', 'app: a'),
  pod('without', 'istio', 'app: a, sidecar.istio.io/inject: "false"'),
  pod('plain', 'plain', 'app: a'),
  pod('annotated', 'istio', 'app: a').replace('labels:', 'annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: "3306", traffic.sidecar.istio.io/excludeInboundPorts: "9090", traffic.sidecar.istio.io/includeOutboundIPRanges: 10.96.0.0/12}, labels:'),
  pod('wrong', 'istio', 'app: a').replace('labels:', 'annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: mysql}, labels:'),
].join('---\n');

// `istio-iptables -p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT -i * -b * -d 15090,15021,15020`, one command a rule.
const documented = (loopback: string, passthrough: string): string[] => [
  '-N ISTIO_INBOUND',
  '-N ISTIO_REDIRECT',
  '-N ISTIO_IN_REDIRECT',
  '-N ISTIO_OUTPUT',
  '-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN',
  '-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001',
  '-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006',
  '-A PREROUTING -p tcp -j ISTIO_INBOUND',
  '-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN',
  '-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN',
  '-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN',
  '-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT',
  '-A OUTPUT -j ISTIO_OUTPUT',
  `-A ISTIO_OUTPUT -o lo -s ${passthrough} -j RETURN`,
  `-A ISTIO_OUTPUT -o lo ! -d ${loopback} -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT`,
  '-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN',
  '-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN',
  `-A ISTIO_OUTPUT -o lo ! -d ${loopback} -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT`,
  '-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN',
  '-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN',
  `-A ISTIO_OUTPUT -d ${loopback} -j RETURN`,
  '-A ISTIO_OUTPUT -j ISTIO_REDIRECT',
];

/** Rules as the kernel has them, order of chains and of options made one. */
const normal = (saved: string): string[] =>
  saved
    .split('\n')
    .filter((line) => /^(:ISTIO|-A)/.test(line))
    .map((line) => line.replace(/ \[\d+:\d+\]/, ''))
    .sort();

let directory: string;
let lab: Lab;
const problems: string[] = [];

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'underpass-sidecar-'));
  writeFileSync(join(directory, 'world.yaml'), WORLD);
  lab = await Lab.up({ name: NAME, sources: [directory], watch: false, onProblem: (error) => problems.push(errorMessage(error)), discovery: `unix:${directory}/no-control-plane.sock` });
  await lab.whenReady();
});

after(async () => {
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

test("Lab: pods get a sidecar as their labels and their namespace's say", () => {
  const sidecars = lab
    .pods()
    .filter(({ hasSidecar }) => hasSidecar)
    .map(({ namespace, name }) => `${namespace}/${name}`);
  assert.deepEqual(sidecars, ['istio/annotated', 'istio/with', 'legacy/with']);
  const { labels, annotations, containers } = lab.pod('legacy', 'with');
  assert.equal(labels['security.istio.io/tlsMode'], 'istio');
  assert.equal(labels['service.istio.io/canonical-name'], 'a');
  assert.deepEqual((JSON.parse(annotations['sidecar.istio.io/status'] ?? '') as { initContainers: unknown }).initContainers, ['istio-init']);
  assert.deepEqual(
    containers.map(({ name }) => name),
    ['main', 'istio-proxy'],
  );
});

for (const [family, command, loopback, passthrough] of [
  ['IPv4', 'iptables', '127.0.0.1/32', '127.0.0.6/32'],
  ['IPv6', 'ip6tables', '::1/128', '::6/128'],
] as const) {
  test(`Sidecar: the pod's ${family} rules are exactly Istio's, and no other pod has any`, async () => {
    const commands = documented(loopback, passthrough).map((rule) => `${command} -t nat ${rule}`);
    const reference = await run('unshare', ['--net', 'sh', '-ec', [...commands, `${command}-save -t nat`].join('\n')]);
    const rules = await lab.exec('legacy/with', [`${command}-save`, '-t', 'nat']);
    assert.ok(normal(reference.stdout).length >= 20);
    assert.deepEqual(normal(rules.stdout), normal(reference.stdout));
    for (const other of ['legacy/without', 'plain/plain']) {
      assert.doesNotMatch((await lab.exec(other, [`${command}-save`])).stdout, /ISTIO/);
    }
  });
}

test('Sidecar: the rules follow the annotations by way of the injected arguments; a wrong annotation starts no pod and is told', async () => {
  const rules = (await lab.exec('istio/annotated', ['iptables-save', '-t', 'nat'])).stdout;
  for (const rule of ['-A ISTIO_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN', '-A ISTIO_INBOUND -p tcp -m tcp --dport 9090 -j RETURN', '-A ISTIO_OUTPUT -d 10.96.0.0/12 -j ISTIO_REDIRECT'])
    assert.ok(rules.split('\n').includes(rule), `${rule} in\n${rules}`);
  assert.doesNotMatch(rules, /^-A ISTIO_OUTPUT -j ISTIO_REDIRECT$/m);
  assert.throws(() => lab.pod('istio', 'wrong'), /no such pod/);
  assert.match(problems.join('\n'), /annotations\[traffic\.sidecar\.istio\.io\/excludeOutboundPorts\]: found "mysql", expected ports/);
});

test('istioRemoveInput: takes its own rules and chains away, leaves others byte-equal', async () => {
  for (const options of [{ family: 'ipv4' }, { family: 'ipv4', inbound: false, proxy: { mark: 0x539 } }] as const) {
    const script = [
      'iptables -t nat -A OUTPUT -d 192.0.2.1/32 -j RETURN',
      'iptables-save -t nat | grep -v "^#" > before',
      'iptables-restore --noflush < add',
      'iptables-save -t nat | grep -q ISTIO',
      'iptables-restore --noflush < remove',
      'iptables-save -t nat | grep -v "^#" > after',
      'cmp before after',
    ];
    const work = mkdtempSync(join(tmpdir(), 'underpass-iptables-'));
    try {
      writeFileSync(join(work, 'add'), istioRestoreInput(options));
      writeFileSync(join(work, 'remove'), istioRemoveInput(options));
      await run('unshare', ['--net', 'sh', '-ec', script.join('\n')], { cwd: work });
    } finally {
      rmSync(work, { recursive: true });
    }
  }
});

test("Sidecar: Envoy runs as user 1337 in the pod's namespace and its own cgroup leaf", async () => {
  const { cgroup, containers, netns } = lab.pod('legacy', 'with');
  const pid = containers.find(({ name }) => name === 'istio-proxy')?.pid as number;
  assert.match(readFileSync(`/proc/${pid}/status`, 'utf8'), /^Uid:\t1337\t1337\t1337\t1337$/m);
  assert.ok(
    readFileSync(`/proc/${pid}/cgroup`, 'utf8').includes(`${cgroup.slice(cgroup.indexOf('/underpass-lab-'))}/istio-proxy`),
  );
  const inode = async (path: string): Promise<string> => (await run('stat', ['-L', '-c', '%i', path])).stdout;
  assert.equal(await inode(`/proc/${pid}/ns/net`), await inode(netns));
});

test('Sidecar: without a control plane it is not ready, while its application is', async () => {
  assert.equal(lab.pod('legacy', 'with').ready, false);
  await waitFor(
    'the admin interface',
    async () => (await lab.proxyAdmin('legacy/with', '/server_info')).includes('"version"'));
  const health = await lab.exec('legacy/with', ['curl', '-s', 'http://127.0.0.1:15021/healthz/ready']);
  assert.equal(health.code, 7, 'workers, and so listeners, start when the first configuration is there');
  assert.match(lab.problems().join('\n'), /legacy\/with: istio-proxy: no listeners yet/);
});

test('Lab.down: with sidecars leaves nothing', async () => {
  await lab.down();
  assert.deepEqual(labTraces(NAME), NO_TRACES);
});
