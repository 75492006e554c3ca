/** Istio's sample `helloworld` (examples-helloworld-v1, -v2): GET /hello says version and pod, GET /health that it is there. */
import { endOnSignal, identity, listenHttp, portList, sendText } from './http.js';

const version = process.env['SERVICE_VERSION'] ?? identity.version;
for (const port of portList('HTTP_PORTS', [5000]))
  listenHttp(port, (request, response) => {
    const path = (request.url ?? '/').split('?')[0];
    if (path === '/hello') sendText(response, `Hello version: ${version}, instance: ${identity.pod}\n`);
    else if (path === '/health') sendText(response, 'Helloworld is healthy');
    else sendText(response, 'Not Found\n', 404);
  });
endOnSignal();
