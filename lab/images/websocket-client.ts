/**
 * `ws-client URL MESSAGE…`: sends each message, prints each answer as a line, closes. With `--hold SECONDS` before the URL it
 * sends them one a second for that long instead. Without a message each line of the input is one, on a connection that is
 * open until the input ends. Exit 1 with the reason on stderr when the upgrade or a message fails.
 */
import { randomBytes } from 'node:crypto';
import { request } from 'node:http';
import { createInterface } from 'node:readline';
import { acceptKey, encodeFrame, onFrames, OPCODE } from './websocket.js';

const TIMEOUT_MS = 20_000;
const words = process.argv.slice(2);
const holdSeconds = words[0] === '--hold' ? Number(words.splice(0, 2)[1]) : 0;
const [url, ...messages] = words;

function fail(message: string): never {
  process.stderr.write(`ws-client: ${message}\n`);
  process.exit(1);
}

const fromInput = messages.length === 0;
if (!url || (fromInput && holdSeconds > 0)) fail('usage: ws-client [--hold SECONDS] http://HOST:PORT/PATH [MESSAGE…]');
const key = randomBytes(16).toString('base64');
const headers = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': key };
const outgoing = request(url.replace(/^ws:/, 'http:'), { headers });
const deadline = setTimeout(() => fail('no answer in time'), TIMEOUT_MS + holdSeconds * 1000);
outgoing.on('error', (error) => fail(error.message));
outgoing.on('response', (response) => fail(`no upgrade: ${response.statusCode}`));
outgoing.on('upgrade', (response, socket, head) => {
  if (response.headers['sec-websocket-accept'] !== acceptKey(key)) fail('the key was not accepted');
  let left = fromInput ? Infinity : holdSeconds > 0 ? Math.max(1, Math.floor(holdSeconds)) : messages.length;
  let sent = 0;
  const say = (text: string): void => void socket.write(encodeFrame({ opcode: OPCODE.text, payload: Buffer.from(text) }, true));
  const send = (): void => say(messages[sent++ % messages.length] as string);
  const close = (): void => {
    left = 0;
    socket.write(encodeFrame({ opcode: OPCODE.close, payload: Buffer.alloc(0) }, true));
  };
  socket.on('close', () => {
    if (left > 0) fail('the connection was closed');
    clearTimeout(deadline);
  });
  onFrames(socket, head, ({ opcode, payload }) => {
    if (opcode === OPCODE.close) return void socket.end();
    if (opcode !== OPCODE.text) return;
    process.stdout.write(`${payload.toString('utf8')}\n`);
    if (fromInput) return;
    left--;
    if (left === 0) close();
    else if (holdSeconds > 0) setTimeout(send, 1000);
    else send();
  });
  if (!fromInput) return send();
  clearTimeout(deadline);
  createInterface({ input: process.stdin }).on('line', say).on('close', close);
});
outgoing.end();
