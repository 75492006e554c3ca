/**
 * Istio's sample Bookinfo, its four services in one program: the same URLs, the same calls between them with the same
 * time-outs, the same headers handed on, the version visible in the answer. BOOKINFO_SERVICE says which one this is.
 */
import { get, type IncomingMessage, type ServerResponse } from 'node:http';
import { endOnSignal, identity, listenHttp, portList, readBody, sendJson, sendText } from './http.js';
import { productPage } from './bookinfo-page.js';

const service = process.env['BOOKINFO_SERVICE'] ?? 'details';
const { version } = identity;

/** Handed on for tracing, for routing by user, and for authorization (samples/bookinfo/src of istio/istio). */
const FORWARDED_HEADERS = [
  'x-request-id', 'x-ot-span-context', 'traceparent', 'tracestate', 'b3', 'grpc-trace-bin', 'x-cloud-trace-context', 'sw8',
  'x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'x-b3-sampled', 'x-b3-flags',
  'x-datadog-trace-id', 'x-datadog-parent-id', 'x-datadog-sampling-priority',
  'end-user', 'user-agent', 'cookie', 'authorization', 'jwt',
];
/** productpage asks reviews twice, three seconds each; reviews waits longer for its black stars than for its red ones. */
const PAGE_TIMEOUT_MS = 3_000;
const REVIEWS_ATTEMPTS = 2;
const BLACK_TIMEOUT_MS = 10_000;
const RED_TIMEOUT_MS = 2_500;

export interface Fetched {
  status: number;
  body: unknown;
}

function forwarded(request: IncomingMessage): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const name of FORWARDED_HEADERS) {
    const value = request.headers[name];
    if (typeof value === 'string') headers[name] = value;
  }
  const user = /(?:^|; *)session=([^;]*)/.exec(request.headers.cookie ?? '')?.[1];
  if (service === 'productpage' && user) headers['end-user'] = decodeURIComponent(user);
  return headers;
}

function serviceUrl(name: string, path: string): string {
  const host = process.env[`${name.toUpperCase()}_HOSTNAME`] ?? name;
  const domain = process.env['SERVICES_DOMAIN'];
  const port = process.env[`${name.toUpperCase()}_SERVICE_PORT`] ?? '9080';
  return `http://${host}${domain ? `.${domain}` : ''}:${port}${path}`;
}

/** Status 500 with no body stands for an answer that did not come. */
function fetchJson(url: string, headers: Record<string, string>, timeoutMs: number): Promise<Fetched> {
  return new Promise((resolve) => {
    const failed = (): void => resolve({ status: 500, body: undefined });
    const outgoing = get(url, { headers, agent: false }, (response) => {
      readBody(response).then((body) => {
        try {
          resolve({ status: response.statusCode ?? 500, body: JSON.parse(body.toString('utf8')) as unknown });
        } catch {
          resolve({ status: response.statusCode ?? 500, body: undefined });
        }
      }, failed);
    });
    const timer = setTimeout(() => outgoing.destroy(new Error('timeout')), timeoutMs);
    outgoing.on('error', failed);
    outgoing.on('close', () => clearTimeout(timer));
  });
}

function details(id: string): object {
  return {
    id: Number(id), author: 'William Shakespeare', year: 1595, type: 'paperback', pages: 200, publisher: 'PublisherA', language: 'English',
    'ISBN-10': '1234567890', 'ISBN-13': '123-1234567890',
  };
}

async function reviews(id: string, headers: Record<string, string>): Promise<object> {
  const withStars = version !== 'v1';
  const color = version === 'v2' ? 'black' : 'red';
  const texts = ['Two pairs of twins, one day, no end of mistaken doors. I laughed from the first scene on.', 'Light and quick, though there is less beneath it than in the later comedies.'];
  let stars: Record<string, number> | undefined;
  if (withStars) {
    const { status, body } = await fetchJson(serviceUrl('ratings', `/ratings/${id}`), headers, color === 'black' ? BLACK_TIMEOUT_MS : RED_TIMEOUT_MS);
    if (status === 200) stars = (body as { ratings?: Record<string, number> } | undefined)?.ratings;
  }
  const rating = (reviewer: string): object => ({ rating: stars?.[reviewer] === undefined ? { error: 'Ratings service is currently unavailable' } : { stars: stars[reviewer], color } });
  return {
    id, podname: identity.pod, clustername: process.env['CLUSTER_NAME'] ?? 'null',
    reviews: texts.map((text, index) => ({ reviewer: `Reviewer${index + 1}`, text, ...(withStars ? rating(`Reviewer${index + 1}`) : {}) })),
  };
}

async function askReviews(id: string, headers: Record<string, string>): Promise<Fetched> {
  for (let attempt = 1; attempt <= REVIEWS_ATTEMPTS; attempt++) {
    const answer = await fetchJson(serviceUrl('reviews', `/reviews/${id}`), headers, PAGE_TIMEOUT_MS);
    if (answer.status === 200) return answer;
  }
  return { status: 500, body: { error: 'Sorry, product reviews are currently unavailable for this book.' } };
}

async function productpage(path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const headers = forwarded(request);
  const [, , , , , what] = path.split('/');
  if (path === '/login' && request.method === 'POST') {
    const user = new URLSearchParams((await readBody(request)).toString('utf8')).get('username') ?? '';
    response.writeHead(302, { location: '/productpage', 'set-cookie': `session=${encodeURIComponent(user)}; Path=/; HttpOnly`, 'content-length': 0 });
    return void response.end();
  }
  if (path === '/logout') {
    response.writeHead(302, { location: '/productpage', 'set-cookie': 'session=; Path=/; Max-Age=0', 'content-length': 0 });
    return void response.end();
  }
  if (path === '/api/v1/products') return sendJson(response, [{ id: 0, title: 'The Comedy of Errors' }]);
  if (path.startsWith('/api/v1/products/')) {
    const asked = what === 'reviews' ? await askReviews('0', headers) : await fetchJson(serviceUrl(what ?? 'details', `/${what ?? 'details'}/0`), headers, PAGE_TIMEOUT_MS);
    return sendJson(response, asked.body ?? { error: `Sorry, product ${what ?? 'details'} are currently unavailable for this book.` }, asked.status);
  }
  if (path === '/' || path === '/index.html') return sendText(response, '<title>Simple Bookstore App</title>\n<a href="/productpage">The Comedy of Errors</a>\n', 200, 'text/html; charset=utf-8');
  if (path !== '/productpage') return sendText(response, 'Not Found\n', 404);
  const [book, opinions] = await Promise.all([fetchJson(serviceUrl('details', '/details/0'), headers, PAGE_TIMEOUT_MS), askReviews('0', headers)]);
  sendText(response, productPage(headers['end-user'], book, opinions), 200, 'text/html; charset=utf-8');
}

let stored: object | undefined;

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const path = (request.url ?? '/').split('?')[0] ?? '/';
  const [, verb, id = '0'] = path.split('/');
  response.setHeader('x-pod', identity.pod);
  response.setHeader('x-version', version);
  if (path === '/health') return service === 'productpage' ? sendText(response, 'Product page is healthy') : sendJson(response, { status: `${service} is healthy` });
  if (service === 'productpage') return productpage(path, request, response);
  if (verb !== service) return sendText(response, 'Not Found\n', 404);
  if (service === 'details') return sendJson(response, details(id));
  if (service === 'reviews') return sendJson(response, await reviews(id, forwarded(request)));
  if (request.method === 'POST') stored = JSON.parse((await readBody(request)).toString('utf8')) as object;
  sendJson(response, { id: Number(id), ratings: stored ?? { Reviewer1: 5, Reviewer2: 4 } });
}

for (const port of portList('HTTP_PORTS', [9080])) listenHttp(port, answer);
endOnSignal();
