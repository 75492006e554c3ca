/**
 * Runs inside a network namespace on behalf of a test.
 *   serve NAME ADDRESS PORT             an HTTP server that answers with its name and the client's address
 *   get URL COUNT [header=value…]       COUNT requests, one after the other; prints [{status, body}…]
 *   tls ADDRESS PORT [CERT KEY CA]      one request over TLS with ALPN `istio`; prints {status, body} or {error}
 */
import { readFileSync } from 'node:fs';
import { createServer, Agent, request } from 'node:http';
import { connect } from 'node:tls';

const [, , action, ...args] = process.argv;

async function get(url: string, headers: Record<string, string>, agent: Agent): Promise<{ status: number; body: unknown }> {
  return new Promise((resolve, reject) => {
    const outgoing = request(url, { headers, agent, timeout: 10_000 }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: parse(body) }));
    });
    outgoing.on('timeout', () => outgoing.destroy(new Error('no answer in 10 s')));
    outgoing.on('error', reject);
    outgoing.end();
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

if (action === 'serve') {
  const [name, address, port] = args;
  const server = createServer((incoming, response) => {
    response.end(JSON.stringify({ name, from: incoming.socket.remoteAddress, headers: incoming.headers }));
  });
  server.listen(Number(port), address, () => process.stdout.write('listening\n'));
} else if (action === 'get') {
  const [url, count, ...pairs] = args;
  const headers = Object.fromEntries(pairs.map((pair) => pair.split('=') as [string, string]));
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const results: unknown[] = [];
  for (let i = 0; i < Number(count); i++) results.push(await get(url!, headers, agent));
  agent.destroy();
  process.stdout.write(JSON.stringify(results));
} else if (action === 'tls') {
  const [address, port, cert, key, ca] = args;
  const files = cert ? { cert: readFileSync(cert), key: readFileSync(key!), ca: readFileSync(ca!) } : {};
  // A workload's certificate has a SPIFFE id and no host name: the server's is not looked at here.
  const socket = connect({ host: address!, port: Number(port), ALPNProtocols: ['istio'], rejectUnauthorized: false, ...files });
  let answer = '';
  const end = (result: object): void => {
    process.stdout.write(JSON.stringify(result), () => process.exit(0));
  };
  socket.setTimeout(10_000, () => end({ error: 'no answer in 10 s' }));
  socket.on('secureConnect', () => socket.write('GET / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n'));
  socket.on('data', (chunk) => (answer += chunk.toString('utf8')));
  socket.on('error', (error) => end({ error: error.message }));
  socket.on('end', () => end(answer === '' ? { error: 'closed without an answer' } : { status: Number(answer.split(' ')[1]), body: parse(answer.slice(answer.indexOf('\r\n\r\n') + 4).replace(/^[0-9a-f]+\r\n/, '').replace(/\r\n0\r\n\r\n$/, '')) }));
}
