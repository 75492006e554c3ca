/** The commands that ask agents, as somebody runs them who has a kubeconfig and no node's shell: each with what it has to say of a mesh of shop/client and shop/web. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { EXIT } from '../../cli/exit-codes.js';
import { run, type RunResult } from '../../common/process.js';
import { VERSION } from '../../common/version.js';
import { CLI } from '../agent-harness.js';
import type { KubeCluster } from './cluster.js';

const TIMEOUT_MS = 120_000;

export class ClusterCli {
  constructor(readonly kubeconfig: string, readonly folder: string) {}

  run(args: readonly string[], kubeconfig = this.kubeconfig): Promise<RunResult> {
    return run(process.execPath, [CLI, ...args, '--kubeconfig', kubeconfig], { okCodes: Object.values(EXIT), timeoutMs: TIMEOUT_MS });
  }

  async says(args: readonly string[], ...wanted: readonly RegExp[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(args);
    assert.equal(code, EXIT.ok, `${args.join(' ')}: ${stderr}`);
    for (const each of wanted) assert.match(stdout, each, args.join(' '));
    return stdout;
  }

  async fails(args: readonly string[], code: keyof typeof EXIT, wanted: RegExp, kubeconfig?: string): Promise<void> {
    const said = await this.run(args, kubeconfig);
    assert.equal(said.code, EXIT[code], `${args.join(' ')}: ${said.stderr}`);
    assert.match(said.stderr, wanted, args.join(' '));
  }

  /** Of one that goes on: what it says until it has said this, and was then ended by Ctrl-C. */
  async follows(args: readonly string[], wanted: RegExp): Promise<string> {
    const child = spawn(process.execPath, [CLI, ...args, '--kubeconfig', this.kubeconfig], { stdio: ['ignore', 'pipe', 'pipe'] });
    const timer = setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS);
    const exit = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
    let [stdout, stderr] = ['', ''];
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString();
      if (wanted.test(stdout)) child.kill('SIGINT');
    });
    const [code] = await exit;
    clearTimeout(timer);
    assert.match(stdout, wanted, `${args.join(' ')}: ${stdout}${stderr}`);
    assert.equal(code, EXIT.ok, `${args.join(' ')}: ${stderr}`);
    return stdout;
  }
}

/** While requests of shop/client to the Service web flow through the node's Envoy. */
export async function readsTheMesh(cli: ClusterCli, node: string): Promise<void> {
  const web = String.raw`web\.shop\.svc\.cluster\.local`;
  await cli.says(['wait', '--timeout', '60s'], /^1 node in-sync$/m);
  // What is acknowledged is read back a few seconds later.
  await cli.says(['wait', 'Service/web.shop', '--timeout', '60s'], /^Service\/web\.shop in-force$/m);
  await Promise.all([
    cli.says(['ps'], /^shop +client +node +enrolled +bpf +l4 +in sync/m, /^shop +web +node +enrolled/m, new RegExp(`^node +${node},`, 'm'), /^control plane +connected \(istiod\.istio-system\.svc:15012\)$/m),
    cli.says(['version'], new RegExp(`^client +${VERSION} `, 'm'), new RegExp(`^${node} +${VERSION} +1\\.\\d+\\.\\d+ .*istiod\\.istio-system\\.svc:15012`, 'm')),
    cli.says(['probation'], /^shop +client +client +\/usr\/bin\/node/m),
  ]);
  await Promise.all([
    cli.says(['proxy-config', 'listeners', 'shop/client', '--port', '80'], /^outbound +127\.0\.0\.1:15001 +port 80, http\/1\.1 h2c +routes 80$/m),
    cli.says(['proxy-config', 'routes', 'client.shop', '--name', '80'], new RegExp(`^80 +${web}:80 +/\\* +${web}:80`, 'm')),
    cli.says(['proxy-config', 'clusters', 'client', '-n', 'shop', '--fqdn', 'web.shop'], new RegExp(`^${web} +80 +- +outbound +EDS`, 'm')),
  ]);
  await Promise.all([
    cli.says(['proxy-config', 'endpoints', 'shop/client', '--fqdn', 'web.shop'], new RegExp(`^10\\.244\\.0\\.\\d+:8080 +healthy .*${web}:80$`, 'm')),
    cli.says(['proxy-config', 'secrets', 'shop/client'], /^spiffe:\/\/cluster\.local\/ns\/shop\/sa\/default +certificate /m, /^ROOTCA +roots/m),
    cli.says(['proxy-config', 'log', 'shop/client'], /^connection +warning$/m),
  ]);
  const explained = JSON.parse(await cli.says(['explain', 'shop/client', 'web.shop:80', '--http', 'GET /x', '-o', 'json'])) as { addresses: { way: string }[]; request: { verdict: string; virtualHost: string; endpoints: { pod: string }[] } };
  assert.deepEqual([explained.addresses.map(({ way }) => way), explained.request.verdict, explained.request.virtualHost, explained.request.endpoints.map(({ pod }) => pod)], [['envoy'], 'allow', 'web.shop.svc.cluster.local:80', ['shop/web']]);
  await Promise.all([
    cli.says(['describe', 'pod', 'shop/web'], new RegExp(`^Pod shop/web on node ${node}: 10\\.244\\.0\\.\\d+$`, 'm'), new RegExp(`^ +service +${web}:80$`, 'm')),
    cli.says(['describe', 'service', 'web', '-n', 'shop'], new RegExp(`^Service ${web}$`, 'm'), /^ +10\.244\.0\.\d+:8080 +healthy +shop\/web +bpf/m),
    cli.says(['config-status', 'Service/web.shop'], new RegExp(`^Service/web\\.shop on ${node}: IN FORCE$`, 'm'), new RegExp(`^${node} +EDS +outbound\\|80\\|\\|${web} .*yes +yes`, 'm')),
  ]);
  await Promise.all([
    cli.says(['top', '--interval', '1'], /^shop\/web +[\d.]+ +0 % /m),
    cli.says(['analyze'], /, 0 errors, /),
  ]);
}

/** What is told live, and is Ctrl-C's to end. */
export async function followsTheMesh(cli: ClusterCli): Promise<void> {
  const flow = JSON.parse((await cli.follows(['flows', '-f', '--from', 'shop/client', '-o', 'json'], /\}\n/)).split('\n')[0]!) as Record<string, unknown>;
  assert.match(JSON.stringify(flow), /envoy/);
  assert.match(await cli.follows(['trace', 'shop/client', '--to', '80'], /closed;/), /connect\(\): led to the proxy, on 127\.0\.0\.1:15001/);
  const file = join(cli.folder, 'web.pcapng');
  await cli.says(['capture', 'shop/client', '-w', file, '--seconds', '2']);
  const captured = readFileSync(file);
  assert.deepEqual([statSync(file).mode & 0o777, captured.readUInt32LE(0), captured.includes('GET /'), captured.includes('sockets of shop/client')], [0o600, 0x0a0d0d0a, true, true]);
  rmSync(file);
}

/** An archive of all nodes, without what is secret. */
export async function reportsABug(cli: ClusterCli, node: string): Promise<void> {
  const archive = join(cli.folder, 'report.tar.gz');
  await cli.says(['bug-report', '--file', archive]);
  const { stdout } = await run('tar', ['--list', '--gzip', '--file', archive]);
  for (const name of ['about.json', ...['status.json', 'counters.json', 'metrics.txt', 'agent.log', 'envoy-config.json', 'envoy-clusters.json'].map((each) => `node-${node}/${each}`)]) assert.match(stdout, new RegExp(`^underpass-bug-report/${name}$`, 'm'));
  const { stdout: text } = await run('tar', ['--extract', '--gzip', '--to-stdout', '--file', archive]);
  assert.doesNotMatch(text, /PRIVATE KEY/);
  rmSync(archive);
}

/** Names that are not there, and rights that are missing: each command says which, at once. */
export async function refusesWhatIsWrong(cli: ClusterCli, cluster: KubeCluster): Promise<void> {
  await cluster.apply(`
{apiVersion: v1, kind: ServiceAccount, metadata: {name: nobody, namespace: shop}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: lister, namespace: shop}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: lister, namespace: underpass-system}, rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: lister, namespace: underpass-system}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: lister}, subjects: [{kind: ServiceAccount, name: lister, namespace: shop}]}`);
  await Promise.all([
    ...[['explain', 'shop/clint', 'web.shop:80'], ['describe', 'pod', 'shop/clint']].map((args) => cli.fails(args, 'notFound', /pod shop\/clint: not on node real .*\n +did you mean shop\/client\?/)),
    cli.fails(['trace', 'shop/clint'], 'notFound', /pod shop\/clint: not enrolled on this node .*\n +did you mean shop\/client\?/),
  ]);
  await Promise.all([
    cli.fails(['capture', 'shop/clint', '-w', join(cli.folder, 'none.pcapng')], 'notFound', /did you mean shop\/client\?/),
    cli.fails(['proxy-config', 'clusters', 'weeb.shop'], 'notFound', /did you mean shop\/web\?/),
    cli.fails(['explain', 'shop/client', 'web.shp:80'], 'notFound', /a connection to web\.shp: .* \(UNDERPASS_UNKNOWN_HOST\)/),
  ]);
  await Promise.all([
    cli.fails(['config-status', 'Service/wb.shop'], 'notFound', /Service\/wb\.shop: nothing of it/),
    cli.fails(['ps', '--node', 'rael'], 'unreachable', /no agent runs there .*\n +did you mean real\?/),
    cli.fails(['wait', '--for=off', 'shop/client', '--timeout', '1s'], 'timedOut', /pod shop\/client is enrolled/),
  ]);
  const [nobody, lister] = await Promise.all(['nobody', 'lister'].map(async (account) => {
    const file = join(cli.folder, `${account}.kubeconfig`);
    writeFileSync(file, await cluster.kubeconfigOf('shop', account), { mode: 0o600 });
    return file;
  }));
  await Promise.all([
    cli.fails(['ps'], 'forbidden', /cannot list resource "pods" .*\n +it needs list of pods, and get and create of pods\/exec, in namespace underpass-system/, nobody),
    cli.fails(['analyze'], 'forbidden', /cannot list resource/, nobody),
    cli.fails(['flows', '-f'], 'forbidden', /cannot (?:get|create) resource "pods\/exec" /, lister),
  ]);
  await Promise.all([
    cli.fails(['ps'], 'forbidden', /cannot (?:get|create) resource "pods\/exec" /, lister),
    cli.fails(['wait'], 'forbidden', /cannot (?:get|create) resource "pods\/exec" /, lister),
    cli.fails(['bug-report', '--file', join(cli.folder, 'none.tar.gz')], 'forbidden', /cannot (?:get|create) resource "pods\/exec" /, lister),
  ]);
  await cluster.delete('rbac.authorization.k8s.io/v1', 'RoleBinding', { namespace: 'underpass-system', name: 'lister' });
  await cluster.delete('rbac.authorization.k8s.io/v1', 'Role', { namespace: 'underpass-system', name: 'lister' });
}
