import assert from 'node:assert/strict';
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { parseAllDocuments } from 'yaml';
import { LabClient, type PodRecord } from '../common/lab-api.js';
import { waitFor } from '../common/retry.js';
import { Lab } from './lab.js';
import { labTraces, NO_TRACES, ownNetwork } from './traces.js';

const NAME = `up-lab-${process.pid}`;
const WORLD = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: web}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec:
      containers:
        - {name: web, image: nginx, ports: [{name: http, containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nginx, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  selector: {app: none}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  nodeName: far
  containers: [{name: main, image: curlimages/curl:8}]
---
apiVersion: v1
kind: Pod
metadata:
  name: bare
  namespace: shop
  annotations: {lab.underpass.io/service-proxy: none}
spec:
  containers: [{name: main, image: client}]
---
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: other, labels: {app: echo, version: v7}}
spec:
  containers:
    - name: echo
      image: echo
      env:
        - {name: GREETING, value: hello $(POD_NAME)}
      ports: [{name: http, containerPort: 8080}, {name: tcp-echo, containerPort: 9000}]
      readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: other}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]
`;

let directory: string;
let lab: Lab;
let networkBefore: string;
const problems: string[] = [];

before(async () => {
  networkBefore = await ownNetwork();
  directory = mkdtempSync(join(tmpdir(), 'underpass-lab-'));
  writeFileSync(join(directory, 'world.yaml'), WORLD);
  lab = await Lab.up({ name: NAME, sources: [directory], nodes: 2, onProblem: (error) => problems.push(String(error)) });
  await lab.whenReady();
});

after(async () => {
  await lab?.down();
  rmSync(directory, { recursive: true, force: true });
});

const curl = async (pod: string, ...args: string[]): Promise<string> =>
  (await lab.exec(pod, ['curl', '-s', '--max-time', '30', ...args])).stdout;

interface Slice {
  metadata: { labels: Record<string, string> };
  addressType: string;
  ports: { port: number }[];
  endpoints: { addresses: string[]; conditions: { ready: boolean }; nodeName: string }[];
}

function readObjects<T>(file: string): T[] {
  return parseAllDocuments(readFileSync(join(lab.objectsDir, file), 'utf8')).map((document) => document.toJS() as T);
}

const slices = (service: string): Slice[] =>
  readObjects<Slice>('endpointslices.yaml').filter(({ metadata }) => metadata.labels['kubernetes.io/service-name'] === service);

test("Lab: a Deployment has its replicas as pods with the template's labels, spread over the nodes", () => {
  const pods = lab.pods().filter(({ labels }) => labels['app'] === 'web');
  assert.equal(pods.length, 2);
  assert.deepEqual(new Set(pods.map(({ nodeName }) => nodeName)).size, 2);
  assert.ok(
    pods.every(({ ready, labels, namespaceLabels }) => ready && labels['version'] === 'v1' && namespaceLabels['team'] === 'web'),
  );
  assert.equal(lab.pod('shop', 'client').nodeName, 'far');
});

test('Lab: curl reaches a service by every form of its name, over IPv4 and IPv6, from another node', async () => {
  for (const name of ['nginx', 'nginx.shop', 'nginx.shop.svc', 'nginx.shop.svc.cluster.local', 'nginx.shop.svc.cluster.local.']) {
    for (const family of ['-4', '-6']) {
      const answer = await curl('shop/client', family, name);
      assert.equal((JSON.parse(answer || '{}') as { version?: string }).version, 'v1', `${family} ${name}: ${answer}`);
    }
  }
});

test("Lab: a service's connections go to every endpoint", async () => {
  const seen = new Set<string>();
  for (let count = 0; count < 40 && seen.size < 2; count++)
    seen.add((JSON.parse(await curl('shop/client', 'nginx')) as { pod: string }).pod);
  assert.equal(seen.size, 2);
});

test("Lab: DNS gives a headless service's pods, and NXDOMAIN for what is not in the cluster", async () => {
  const hosts = await lab.exec('shop/client', ['getent', 'ahostsv4', 'headless']);
  const ips = new Set(
    hosts.stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => line.split(/\s+/)[0]),
  );
  assert.deepEqual(
    ips,
    new Set(
      lab
        .pods()
        .filter(({ labels }) => labels['app'] === 'web')
        .map(({ ips: [ipv4] }) => ipv4),
    ),
  );
  assert.equal((await lab.exec('shop/client', ['curl', '-s', 'no-such-service'])).code, 6);
  assert.equal((await lab.exec('shop/client', ['curl', '-s', 'example.org'])).code, 6);
});

test('Lab: a service without endpoints refuses at once', async () => {
  assert.equal((await lab.exec('shop/client', ['curl', '-s', '--max-time', '30', 'nobody'])).code, 7);
});

test('Lab: a pod that wants no service proxy has no rule, and reaches pods by their address', async () => {
  assert.equal((await lab.exec('shop/bare', ['nft', 'list', 'ruleset'])).stdout, '');
  const web = lab.pods().find(({ labels }) => labels['app'] === 'web') as PodRecord;
  assert.equal((JSON.parse(await curl('shop/bare', `http://${web.ips[0]}:8080/`)) as { pod: string }).pod, web.name);
  assert.match((await lab.exec('shop/client', ['nft', 'list', 'ruleset'])).stdout, /table inet underpass_lab/);
});

test('Lab: the echo image answers with the request, its environment is expanded, TCP comes back', async () => {
  const answer = JSON.parse(await curl('shop/client', '-H', 'user: jesse', '-d', 'abc', 'http://echo.other/path?q=1')) as Record<
    string,
    unknown
  >;
  assert.deepEqual(
    [answer['method'], answer['path'], answer['version'], answer['pod'], answer['bodyBytes']],
    ['POST', '/path?q=1', 'v7', 'echo', 3],
  );
  assert.equal((answer['headers'] as Record<string, string>)['user'], 'jesse');
  assert.equal((await lab.exec('other/echo', ['sh', '-c', 'echo $GREETING'])).stdout, 'hello echo\n');
  const bounced = await lab.exec('shop/client', ['bash', '-c', 'exec 3<>/dev/tcp/echo.other/9000; echo ping >&3; head -1 <&3']);
  assert.equal(bounced.stdout, 'ping\n');
});

test("Lab: the server sees the client pod's address", async () => {
  const answer = JSON.parse(await curl('shop/client', 'http://echo.other/')) as { remote: string };
  assert.ok(answer.remote.includes(lab.pod('shop', 'client').ips[0] as string), answer.remote);
});

test('Lab: readiness goes into the EndpointSlice and out of the service, and back', async () => {
  const ready = (): boolean | undefined => slices('echo')[0]?.endpoints[0]?.conditions.ready;
  assert.equal(ready(), true);
  const address = lab.pod('other', 'echo').ips[0] as string;
  await curl('shop/client', '-X', 'DELETE', `http://${address}:8080/ready`);
  await waitFor('the endpoint to be not ready', () => ready() === false);
  assert.equal(lab.pod('other', 'echo').ready, false);
  await waitFor(
    'the service to refuse',
    async () => (await lab.exec('shop/client', ['curl', '-s', '--max-time', '2', 'echo.other'])).code === 7);
  await curl('shop/client', '-X', 'PUT', `http://${address}:8080/ready`);
  await waitFor('the endpoint to be ready', () => ready() === true);
});

test('Lab: objects are as the API server would have them', () => {
  const [v4, v6] = [
    slices('nginx').find(({ addressType }) => addressType === 'IPv4'),
    slices('nginx').find(({ addressType }) => addressType === 'IPv6'),
  ];
  assert.deepEqual([v4?.endpoints.length, v4?.ports[0]?.port, v6?.endpoints.length], [2, 8080, 2]);
  const service = readObjects<{ metadata: { name: string }; spec: { clusterIP: string; clusterIPs: string[] } }>(
    'services.yaml',
  ).find(({ metadata }) => metadata.name === 'nginx');
  assert.match(service?.spec.clusterIP ?? '', /^10\.96\./);
  assert.equal(service?.spec.clusterIPs.length, 2);
  const pods = readObjects<{
    metadata: { name: string; namespace: string };
    status: { podIP: string; conditions: { type: string; status: string }[] };
  }>('pods.yaml');
  const echo = pods.find(({ metadata }) => metadata.name === 'echo');
  assert.equal(echo?.status.podIP, lab.pod('other', 'echo').ips[0]);
  assert.equal(echo?.status.conditions.find(({ type }) => type === 'Ready')?.status, 'True');
  const namespaces = readObjects<{ metadata: { name: string; labels: Record<string, string> } }>('namespaces.yaml');
  assert.equal(namespaces.find(({ metadata }) => metadata.name === 'shop')?.metadata.labels['team'], 'web');
  const accounts = readObjects<{ metadata: { name: string; namespace: string } }>('serviceaccounts.yaml');
  assert.ok(accounts.some(({ metadata }) => metadata.namespace === 'other' && metadata.name === 'default'));
});

test('LabClient: a label patch of a namespace and of a pod comes to watchers and into the objects, and is removed again', async () => {
  const client = new LabClient(lab.socket);
  const controller = new AbortController();
  const watch = client.watchPods(undefined, controller.signal);
  const next = async (): Promise<PodRecord[]> => ((await watch.next()).value as PodRecord[] | undefined) ?? [];
  try {
    assert.equal((await next()).length, lab.pods().length);
    await client.label({ kind: 'Namespace', name: 'shop', labels: { 'underpass.io/mode': 'node', team: null } });
    const changed = (await next()).filter(({ namespace }) => namespace === 'shop');
    assert.ok(
      changed.length > 0 &&
        changed.every(({ namespaceLabels }) => namespaceLabels['underpass.io/mode'] === 'node' && !('team' in namespaceLabels)),
    );
    await client.label({ kind: 'Pod', namespace: 'shop', name: 'client', labels: { extra: 'yes' } });
    assert.equal((await next()).find(({ name }) => name === 'client')?.labels['extra'], 'yes');
    assert.match(readFileSync(join(lab.objectsDir, 'namespaces.yaml'), 'utf8'), /underpass\.io\/mode: node/);
    await client.label({ kind: 'Pod', namespace: 'shop', name: 'client', annotations: { 'example.com/note': 'any text: at all' } });
    assert.equal((await next()).find(({ name }) => name === 'client')?.annotations['example.com/note'], 'any text: at all');
    assert.match(readFileSync(join(lab.objectsDir, 'pods.yaml'), 'utf8'), /any text: at all/);
    await client.label({ kind: 'Pod', namespace: 'shop', name: 'client', annotations: { 'example.com/note': null } });
    assert.equal((await next()).find(({ name }) => name === 'client')?.annotations['example.com/note'], undefined);
    await client.label({ kind: 'Namespace', name: 'shop', labels: { 'underpass.io/mode': null, team: 'web' } });
    await client.label({ kind: 'Pod', namespace: 'shop', name: 'client', labels: { extra: null } });
  } finally {
    controller.abort();
    await watch.return();
  }
  assert.equal('extra' in lab.pod('shop', 'client').labels, false);
  await assert.rejects(client.label({ kind: 'Namespace', name: 'no-such', labels: { a: 'b' } }), /has no such namespace/);
  await assert.rejects(client.label({ kind: 'Namespace', name: 'shop', labels: { 'a b': 'c' } }), /is no label key/);
  await assert.rejects(client.label({ kind: 'Namespace', name: 'shop', annotations: { a: 'b' } }), /only those of a pod/);
  await assert.rejects(client.label({ kind: 'Pod', namespace: 'shop', name: 'client', annotations: { 'a b': 'c' } }), /is no annotation key/);
});

test('Lab.exec: exit codes, input, and a program that is not there', async () => {
  assert.equal((await lab.exec('shop/client', ['sh', '-c', 'exit 42'])).code, 42);
  assert.equal((await lab.exec('shop/client', ['cat'], { input: 'from outside' })).stdout, 'from outside');
  assert.equal((await lab.exec('shop/client', ['no-such-program'])).code, 127);
  assert.throws(() => lab.exec('shop/no-such-pod', ['true']), /has no such pod/);
});

test("Lab: processes live in the pod's cgroup leaf, host name and own namespace", async () => {
  const { cgroup, containers } = lab.pod('shop', 'client');
  const pids = readFileSync(join(cgroup, 'app', 'cgroup.procs'), 'utf8')
    .trim()
    .split('\n')
    .map(Number);
  assert.ok(pids.includes(containers[0]?.pid ?? -1));
  assert.equal((await lab.exec('shop/client', ['hostname'])).stdout, 'client\n');
  assert.match(
    (await lab.exec('shop/client', ['cat', '/proc/self/cgroup'])).stdout,
    new RegExp(`^0::/underpass-lab-${NAME}/far/pods/.*/app$`, 'm'),
  );
});

test('Lab: hardware addresses follow from the IP, so that a pod that comes or goes changes no neighbour entry', async () => {
  const address = (netns: string, device: string): Promise<string> =>
    lab
      .exec('shop/client', ['nsenter', `--net=${netns}`, 'ip', '-o', 'link', 'show', device])
      .then(({ stdout }) => /link\/ether (\S+)/.exec(stdout)?.[1] ?? '');
  const { netns, nodeName, ips } = lab.pod('shop', 'client');
  const expected = (ip: string): string =>
    ['0a', '58', ...ip.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'))].join(':');
  assert.equal(await address(netns, 'eth0'), expected(ips[0] as string));
  const node = lab.info().nodes.find(({ name }) => name === nodeName);
  assert.equal(await address(node?.netns ?? '', 'cni0'), expected((node?.podCidrs[0] ?? '').replace('.0/24', '.1')));
});

test('Lab: a container that crashes is started again', async () => {
  const before = lab.pod('other', 'echo').containers[0];
  process.kill(before?.pid ?? 0, 'SIGKILL');
  await waitFor('the restart', () => (lab.pod('other', 'echo').containers[0]?.restarts ?? 0) > 0);
  await waitFor('readiness', () => lab.pod('other', 'echo').ready);
  assert.notEqual(lab.pod('other', 'echo').containers[0]?.pid, before?.pid);
});

test('Lab: an edited file is applied; one that is wrong names its place and what was good last stays', async () => {
  const file = join(directory, 'world.yaml');
  writeFileSync(file, WORLD.replace('replicas: 2', 'replicas: 3'));
  const web = (): PodRecord[] => lab.pods().filter(({ labels }) => labels['app'] === 'web');
  await waitFor('three ready pods', () => web().filter(({ ready }) => ready).length === 3);
  problems.length = 0;
  writeFileSync(file, WORLD.replace('replicas: 2', 'replicas: many'));
  await waitFor('the error', () => problems.length > 0);
  assert.match(problems.join('\n'), /world\.yaml:10:\d+: Deployment shop\/web: spec\.replicas: /);
  assert.equal(web().length, 3);
  writeFileSync(file, WORLD);
  await waitFor('two pods', () => web().length === 2);
});

test('Lab: a changed template replaces the pods, and the service answers all the time', async () => {
  const file = join(directory, 'world.yaml');
  const old = lab
    .pods()
    .filter(({ labels }) => labels['app'] === 'web')
    .map(({ name }) => name);
  let failed = 0;
  let done = false;
  const load = (async (): Promise<void> => {
    while (!done)
      if ((await lab.exec('shop/client', ['curl', '-s', '-o', '/dev/null', '--max-time', '30', 'nginx'])).code !== 0) failed++;
  })();
  writeFileSync(file, WORLD.replace('app: web, version: v1', 'app: web, version: v2'));
  const current = (): PodRecord[] => lab.pods().filter(({ labels }) => labels['app'] === 'web');
  await waitFor(
    'the new version alone',
    () => current().length === 2 && current().every(({ name, ready }) => ready && !old.includes(name)));
  done = true;
  await load;
  assert.equal((JSON.parse(await curl('shop/client', 'nginx')) as { version: string }).version, 'v2');
  assert.equal(failed, 0);
});

test('Lab.apply: objects on top, and an image that the lab does not know is a problem of that pod alone', async () => {
  problems.length = 0;
  const applied = await lab.apply(
    'apiVersion: v1\nkind: Pod\nmetadata: {name: extra, namespace: shop}\nspec: {containers: [{name: a, image: no/such-image}]}\n',
  );
  assert.deepEqual(applied, ['Pod shop/extra']);
  assert.match(problems.join(), /no program for it; it knows .*nginx/);
  assert.match(lab.problems().join(), /shop\/extra: a: starting image no\/such-image/);
  await lab.apply(
    'apiVersion: v1\nkind: Pod\nmetadata: {name: extra, namespace: shop}\nspec: {containers: [{name: a, image: no/such-image, command: [sleep, "99"]}]}\n',
  );
  await waitFor('the pod with a command', () => lab.pods().some(({ name, ready }) => name === 'extra' && ready));
});

test('Lab: a program that calls a service first of all is answered', async () => {
  const names = Array.from({ length: 6 }, (_, index) => `first-${index}`);
  const { stdout: ip } = await lab.exec('shop/client', ['curl', '-s', '-4', '-o', '/dev/null', '-w', '%{remote_ip}', 'http://nginx/']);
  await lab.apply(names.map((name) => `apiVersion: v1\nkind: Pod\nmetadata: {name: ${name}, namespace: shop}\nspec: {restartPolicy: Never, containers: [{name: main, image: curl, command: [curl, -sS, -o, /dev/null, -w, 'answered %{http_code}', 'http://${ip}/']}]}`).join('\n---\n'));
  const said = (name: string): string => readFileSync(lab.pod('shop', name).containers[0]!.log!, 'utf8');
  for (const name of names) await waitFor(`${name} to end`, () => said(name).includes('answered'), { everyMs: 20 });
  for (const name of names) assert.match(said(name), /answered 200/);
});

test('Lab: objects that can not be written are a problem, told once, and are written when they can be', async () => {
  const problems: string[] = [];
  const dir = mkdtempSync(join(tmpdir(), `${NAME}-w-`));
  writeFileSync(join(dir, 'a.yaml'), 'apiVersion: v1\nkind: Pod\nmetadata: {name: one, namespace: shop}\nspec: {containers: [{name: main, image: curl}]}\n');
  const own = await Lab.up({ name: `${NAME}-w`, sources: [dir], watch: false, purpose: 'test', onProblem: (error) => problems.push(String(error)) });
  try {
    await own.whenReady();
    const { uid } = own.pod('shop', 'one');
    // A folder in the file's place: what a full disk is to a test.
    rmSync(join(own.objectsDir, 'pods.yaml'));
    mkdirSync(join(own.objectsDir, 'pods.yaml'));
    // Nobody waits for the publishing that this leads to: the program is started again a moment later.
    process.kill(own.pod('shop', 'one').containers[0]?.pid as number, 'SIGKILL');
    await waitFor('the problem', () => problems.some((problem) => /writing the objects to .*pods\.yaml/.test(problem)));
    await own.label({ kind: 'Pod', namespace: 'shop', name: 'one', labels: { seen: 'yes' } });
    assert.equal(own.records().find((pod) => pod.uid === uid)?.labels['seen'], 'yes');
    await new Promise((resolve) => setTimeout(resolve, 1_200));
    assert.equal(problems.filter((problem) => problem.includes('writing the objects')).length, 1, problems.join('\n'));
    rmSync(join(own.objectsDir, 'pods.yaml'), { recursive: true });
    await waitFor('the objects', () => existsSync(join(own.objectsDir, 'pods.yaml')) && readFileSync(join(own.objectsDir, 'pods.yaml'), 'utf8').includes('seen: yes'));
  } finally {
    await own.down();
    rmSync(dir, { recursive: true, force: true });
  }
});

test('Lab: an Images document adds programs', async () => {
  appendFileSync(
    join(directory, 'images.yaml'),
    'apiVersion: lab.underpass.io/v1\nkind: Images\nmetadata: {name: images}\nimages:\n  my/app: {command: [sh, -c, "echo started; sleep 99"]}\n',
  );
  writeFileSync(
    join(directory, 'app.yaml'),
    'apiVersion: v1\nkind: Pod\nmetadata: {name: app, namespace: shop}\nspec: {containers: [{name: a, image: "my/app:1.0"}]}\n',
  );
  await waitFor('the pod', () => lab.pods().find(({ name, ready }) => name === 'app' && ready));
  const log = lab.pod('shop', 'app').containers[0]?.log ?? '';
  await waitFor('its log', () => readFileSync(log, 'utf8') === 'started\n');
});

test('Lab: a pod without a cgroup takes along what its program started, whoever its parent is by then', async () => {
  const file = join(directory, 'rootless.yaml');
  writeFileSync(file, `apiVersion: v1
kind: Pod
metadata: {name: rootless, namespace: shop, annotations: {lab.underpass.io/cgroup: none}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: a, image: curl, command: [sh, -c, 'setsid sleep 4242 & echo "$!"; exec sleep 4242']}]}
`);
  const { containers: [container] } = await waitFor('the pod', () => lab.pods().find(({ name, ready }) => name === 'rootless' && ready), { timeoutMs: 60_000 });
  const pid = await waitFor('its second program', () => Number(readFileSync(container!.log!, 'utf8')) || undefined, { timeoutMs: 60_000 });
  assert.match(readFileSync(`/proc/${pid}/cmdline`, 'utf8'), /sleep/);
  rmSync(file);
  await waitFor('the pod to go', () => !lab.pods().some(({ name }) => name === 'rootless'), { timeoutMs: 60_000 });
  await waitFor('its second program to go', () => !existsSync(`/proc/${pid}`));
});

test('Lab.up: a second of the same name is refused and told who holds it', async () => {
  await assert.rejects(Lab.up({ name: NAME, sources: [directory], watch: false }), (error: Error & { code?: string }) => {
    assert.equal(error.code, 'UNDERPASS_LAB_HELD');
    assert.match(error.message, new RegExp(`lab ${NAME} is held by process ${process.pid} \\(underpass lab up\\) since 20`));
    return true;
  });
  assert.equal(existsSync(lab.socket), true);
});

test('Lab.up: wrong YAML is refused before anything is made', async () => {
  const wrong = join(directory, 'wrong.txt');
  writeFileSync(wrong, 'kind: [');
  const name = `${NAME}-w`;
  await assert.rejects(Lab.up({ name, sources: [wrong] }), /wrong\.txt:1:\d+: not YAML/);
  await assert.rejects(Lab.up({ name, sources: [join(directory, 'no-such')] }), /no such file or directory/);
  assert.deepEqual(labTraces(name), NO_TRACES);
});

test('Lab.up: without IPv6 everything is IPv4', async () => {
  const v4 = await Lab.up({ name: `${NAME}-4`, sources: [join(directory, 'world.yaml')], watch: false, ipv6: false });
  try {
    await v4.whenReady();
    assert.ok(v4.pods().every(({ ips }) => ips.length === 1));
    assert.equal((await v4.exec('shop/client', ['curl', '-s', '-o', '/dev/null', 'nginx.shop.svc'])).code, 0);
    assert.equal((await v4.exec('shop/client', ['getent', 'ahostsv6', 'nginx'])).stdout.includes('fd00'), false);
    assert.equal((await v4.exec('shop/client', ['ip', '-6', 'addr', 'show', 'scope', 'global'])).stdout, '');
  } finally {
    await v4.down();
  }
  assert.deepEqual(labTraces(`${NAME}-4`), NO_TRACES);
});

test("Lab.down: leaves nothing; the machine's own network was never touched", async () => {
  assert.notDeepEqual(labTraces(NAME), NO_TRACES);
  assert.equal(await ownNetwork(), networkBefore);
  const controller = new AbortController();
  const watch = new LabClient(lab.socket).watchPods(undefined, controller.signal);
  assert.ok(((await watch.next()).value as PodRecord[]).length > 0);
  await lab.down();
  assert.deepEqual((await watch.next()).value, [], 'a watcher sees every pod go');
  controller.abort();
  await watch.return();
  assert.deepEqual(labTraces(NAME), NO_TRACES);
  assert.equal(await ownNetwork(), networkBefore);
});
