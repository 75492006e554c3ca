/**
 * Istio's sample `tcp-echo-server` (args `PORTS PREFIX`): each line comes back behind the prefix. As the image `tcp-greeter`
 * the server speaks first, as MySQL's and SMTP's do: `220 POD VERSION` on connection, then the same.
 */
import { createInterface } from 'node:readline';
import { endOnSignal, identity, listenTcp } from './http.js';

const [ports = '9000', prefix = ''] = process.argv.slice(2);
const greets = process.env['TCP_GREETING'] === '1';
for (const port of ports.split(',').map(Number))
  listenTcp(port, (socket) => {
    if (greets) socket.write(`220 ${identity.pod} ${identity.version}\r\n`);
    const lines = createInterface({ input: socket });
    lines.on('line', (line) => socket.write(`${prefix ? `${prefix} ` : ''}${line}\n`));
    lines.on('close', () => socket.end());
  });
endOnSignal();
