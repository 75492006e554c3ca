// An API server whose kubelets give more than they were asked for, or nothing: only then does it show that a report has an end.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { KubeClient } from '../common/kube/client.js';
import { gatherLogs } from './bug-report-logs.js';

test('logs of a bug report: agents, Envoys, the run before and the control plane, of one node where it is named; bounded, redacted, and what is refused is named', async () => {
  const pod = (name: string, nodeName: string, ...containers: [name: string, restartCount: number][]): object => ({ metadata: { name }, spec: { nodeName, containers: containers.map(([each]) => ({ name: each })) }, status: { containerStatuses: containers.map(([each, restartCount]) => ({ name: each, restartCount })) } });
  const asked: string[] = [];
  const server = createServer((request, response) => {
    const url = new URL(request.url!, 'http://server');
    asked.push(`${url.pathname} ${url.searchParams.get('labelSelector') ?? url.searchParams.get('container')}`);
    if (url.pathname === '/api/v1/namespaces/underpass-system/pods') return response.end(JSON.stringify({ items: [pod('a-1', 'n1', ['agent', 1], ['envoy', 0]), pod('a-2', 'n2', ['agent', 0], ['envoy', 0])] }));
    if (url.pathname === '/api/v1/namespaces/istio-system/pods') return response.end(JSON.stringify({ items: [pod('pilot-1', 'n2', ['pilot', 0])] }));
    if (url.searchParams.get('container') === 'pilot') return response.writeHead(403).end(JSON.stringify({ kind: 'Status', message: 'pods "pilot-1" is forbidden: cannot get resource "pods/log"' }));
    if (url.searchParams.get('previous') === 'true') return response.end('the run before: authorization: Bearer abcdefghijkl\n');
    // For ever, where nobody hangs up.
    const more = (): void => {
      while (!response.destroyed && response.write('x'.repeat(1 << 20)));
      if (!response.destroyed) response.once('drain', more);
    };
    more();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const folder = mkdtempSync(join(tmpdir(), 'up-logs-'));
  const client = new KubeClient({ url: new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}`), credentials: () => Promise.resolve({ headers: {} }) } as unknown as ConstructorParameters<typeof KubeClient>[0]);
  try {
    const problems = await gatherLogs(client, folder, 'n1');
    assert.equal(problems.length, 1);
    assert.match(problems[0]!, /^log of pod istio-system\/pilot-1, container pilot: .*403 pods "pilot-1" is forbidden/);
    assert.deepEqual(readdirSync(join(folder, 'logs')).sort(), ['underpass-system_a-1_agent.log', 'underpass-system_a-1_agent_previous.log', 'underpass-system_a-1_envoy.log']);
    assert.equal(statSync(join(folder, 'logs', 'underpass-system_a-1_envoy.log')).size, 4 << 20);
    const before = readFileSync(join(folder, 'logs', 'underpass-system_a-1_agent_previous.log'), 'utf8');
    assert.match(before, /the run before/);
    assert.doesNotMatch(before, /abcdef/);
    assert.ok(asked.includes('/api/v1/namespaces/istio-system/pods app in (underpass-pilot,istiod)'), asked.join('\n'));
  } finally {
    client.close();
    server.closeAllConnections();
    server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
