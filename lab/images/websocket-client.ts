/**
 * `ws-client URL MESSAGE…`: sends each message, prints each answer as a line, closes. With `--hold SECONDS` before the URL it
 * sends them one a second for that long instead. Exit 1 with the reason on stderr when the upgrade or a message fails.
 */
import { randomBytes } from 'node:crypto';
import { request } from 'node:http';
import { acceptKey, encodeFrame, onFrames, OPCODE } from './websocket.js';

const TIMEOUT_MS = 20_000;
const words = process.argv.slice(2);
const holdSeconds = words[0] === '--hold' ? Number(words.splice(0, 2)[1]) : 0;
const [url, ...messages] = words;

function fail(message: string): never {
  process.stderr.write(`ws-client: ${message}\n`);
  process.exit(1);
}

if (!url || messages.length === 0) fail('usage: ws-client [--hold SECONDS] http://HOST:PORT/PATH MESSAGE…');
const key = randomBytes(16).toString('base64');
const headers = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': key };
const outgoing = request(url.replace(/^ws:/, 'http:'), { headers });
const deadline = setTimeout(() => fail('no answer in time'), TIMEOUT_MS + holdSeconds * 1000);
outgoing.on('error', (error) => fail(error.message));
outgoing.on('response', (response) => fail(`no upgrade: ${response.statusCode}`));
outgoing.on('upgrade', (response, socket, head) => {
  if (response.headers['sec-websocket-accept'] !== acceptKey(key)) fail('the key was not accepted');
  let left = holdSeconds > 0 ? Math.max(1, Math.floor(holdSeconds)) : messages.length;
  let sent = 0;
  const send = (): void => {
    const text = messages[sent++ % messages.length] as string;
    socket.write(encodeFrame({ opcode: OPCODE.text, payload: Buffer.from(text) }, true));
  };
  socket.on('close', () => {
    if (left > 0) fail('the connection was closed');
    clearTimeout(deadline);
  });
  onFrames(socket, head, ({ opcode, payload }) => {
    if (opcode === OPCODE.close) return void socket.end();
    if (opcode !== OPCODE.text) return;
    process.stdout.write(`${payload.toString('utf8')}\n`);
    left--;
    if (left === 0) socket.write(encodeFrame({ opcode: OPCODE.close, payload: Buffer.alloc(0) }, true));
    else if (holdSeconds > 0) setTimeout(send, 1000);
    else send();
  });
  send();
});
outgoing.end();
