// The flow log's lines, and what happens to those for which there is no room.
import assert from 'node:assert/strict';
import { Writable } from 'node:stream';
import { test } from 'node:test';
import { pino } from 'pino';
import type { FlowRecord } from '../dataplane/kernel-flows.js';
import { FlowLog } from './flow-log.js';

const record: FlowRecord = {
  key: { client: 1n, server: 2n, peer: undefined, service: { address: '10.96.0.7', port: 80 }, endpointPort: 8080 },
  client: { address: '10.0.0.1', port: 40000 }, endpoint: '10.0.0.2', way: 'plain', reason: 'connection_client_probation',
  received: 10n, sent: 20n, moved: 0n, durationMs: 1.23456, rttUs: 17,
};

function log(linesPerSecond: number): { log: FlowLog; lines: Record<string, unknown>[]; clock: { ms: number } } {
  const lines: Record<string, unknown>[] = [];
  const clock = { ms: 0 };
  const stream = new Writable({ write: (chunk: Buffer, _encoding, done) => (lines.push(JSON.parse(chunk.toString()) as Record<string, unknown>), done()) });
  const podOf = (cookie: bigint) => (cookie === 1n ? { netnsCookie: 1n, name: 'cart-1', namespace: 'shop' } : undefined);
  return { log: new FlowLog({ logger: pino({ base: undefined, timestamp: false }, stream), podOf, linesPerSecond, now: () => clock.ms }), lines, clock };
}

test('flow log: a line says who, whom, which way and why, and how much', () => {
  const { log: flowLog, lines } = log(10);
  flowLog.write(record);
  const { level: _level, ...line } = lines[0]!;
  assert.deepEqual(line, {
    verdict: 'allowed', way: 'plain', reason: 'connection_client_probation', source: { pod: 'cart-1', namespace: 'shop', address: '10.0.0.1', port: 40000 },
    destination: { address: '10.0.0.2', port: 8080 }, service: { address: '10.96.0.7', port: 80 }, bytesReceived: 10, bytesSent: 20, bytesMoved: 0,
    durationMs: 1.235, rttUs: 17, msg: 'connection ended',
  });
});

test('flow log: what a proxy took has no destination but the service, since the kernel does not know whom the proxy chose', () => {
  const { log: flowLog, lines } = log(10);
  flowLog.write({ ...record, way: 'proxy', reason: undefined });
  assert.deepEqual(['destination' in lines[0]!, 'reason' in lines[0]!, lines[0]!['service']], [false, false, { address: '10.96.0.7', port: 80 }]);
});

test('flow log: a client from elsewhere is known by its address', () => {
  const { log: flowLog, lines } = log(10);
  flowLog.write({ ...record, key: { client: 0n, server: 1n, peer: '10.9.0.1', service: undefined, endpointPort: 80 }, client: { address: '10.9.0.1', port: 5 } });
  assert.deepEqual([lines[0]!['source'], lines[0]!['destination']], [{ address: '10.9.0.1', port: 5 }, { pod: 'cart-1', namespace: 'shop', address: '10.0.0.2', port: 80 }]);
});

test('flow log: what policy denied has a verdict and no way', () => {
  const { log: flowLog, lines } = log(10);
  flowLog.write({ ...record, key: { client: 1n, server: 2n, peer: undefined, service: undefined, endpointPort: 80 }, way: 'denied', reason: 'policy_connect_refused', client: { address: '10.0.0.1', port: 0 } });
  const { level: _level, ...line } = lines[0]!;
  assert.deepEqual(line, {
    verdict: 'denied', reason: 'policy_connect_refused', source: { pod: 'cart-1', namespace: 'shop', address: '10.0.0.1' }, destination: { address: '10.0.0.2', port: 80 }, msg: 'connection denied',
  });
});

test('flow log: more lines in a second than there may be are lost and counted; the next second has room again', () => {
  const { log: flowLog, lines, clock } = log(3);
  for (let i = 0; i < 5; i++) flowLog.write(record);
  assert.deepEqual([lines.length, flowLog.lost], [3, 2n]);
  clock.ms += 1000;
  for (let i = 0; i < 5; i++) flowLog.write(record);
  assert.deepEqual([lines.length, flowLog.lost], [6, 4n]);
});
