/**
 * A headless Chromium, driven by the DevTools protocol over a pipe, so that no port of it is open:
 * https://chromedevtools.github.io/devtools-protocol/. As root it runs without its sandbox; it reaches 127.0.0.1 alone.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import type { Closable } from '../../common/lifecycle.js';
import { waitFor } from '../../common/retry.js';

const PROGRAM = process.env['CHROMIUM_BIN'] ?? 'chromium';
const ARGUMENTS = [
  '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--no-default-browser-check', '--disable-extensions', '--disable-sync', '--disable-background-networking',
  '--disable-component-update', '--disable-default-apps', '--mute-audio', '--hide-scrollbars', '--remote-debugging-pipe', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1', 'about:blank',
];
const WAIT = { timeoutMs: 300_000, everyMs: 50 };

/** https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: times in microseconds. */
interface TraceEvent { name: string; pid: number; tid: number; tdur?: number; args?: { name?: string } }
interface Message { id?: number; sessionId?: string; method?: string; params?: Record<string, any>; result?: Record<string, any>; error?: { message: string } }

export class Browser implements Closable {
  readonly #child: ChildProcess;
  readonly #folder: string;
  readonly #waiting = new Map<number, { resolve(result: Record<string, any>): void; reject(error: Error): void }>();
  readonly #listeners = new Map<string, (message: Message) => void>();
  #next = 1;
  #log = '';

  private constructor(folder: string) {
    this.#folder = folder;
    this.#child = spawn(PROGRAM, [`--user-data-dir=${folder}`, ...ARGUMENTS], { stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'] });
    this.#child.stderr!.on('data', (chunk: Buffer) => (this.#log = (this.#log + chunk.toString()).slice(-4_000)));
    let rest = '';
    (this.#child.stdio[4] as Readable).setEncoding('utf8').on('data', (chunk: string) => {
      const messages = (rest + chunk).split('\0');
      rest = messages.pop() ?? '';
      for (const text of messages) this.#take(JSON.parse(text) as Message);
    });
    this.#child.once('error', (error) => this.#fail(error));
    this.#child.once('exit', () => this.#fail(new Error(`Chromium ended: ${this.#log}`)));
  }

  static async start(): Promise<Browser> {
    const browser = new Browser(mkdtempSync(join(tmpdir(), 'up-chromium-')));
    await browser.send('Browser.getVersion');
    return browser;
  }

  async page({ scheme = 'light', width = 1_280, height = 900 }: { scheme?: 'light' | 'dark'; width?: number; height?: number } = {}): Promise<BrowserPage> {
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank' });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new BrowserPage(this, String(sessionId), String(targetId));
    this.#listeners.set(String(sessionId), (message) => page.hear(message.method ?? '', message.params ?? {}));
    for (const domain of ['Page', 'Runtime', 'Log']) await page.send(`${domain}.enable`);
    await page.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] });
    await page.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: false });
    return page;
  }

  async send(method: string, params: Record<string, unknown> = {}, sessionId?: string): Promise<Record<string, any>> {
    const id = this.#next++;
    const answer = new Promise<Record<string, any>>((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
    (this.#child.stdio[3] as Writable).write(`${JSON.stringify({ id, method, params, ...(sessionId === undefined ? {} : { sessionId }) })}\0`);
    return answer;
  }

  #take({ id, sessionId = '', result = {}, error, ...message }: Message): void {
    if (id === undefined) return this.#listeners.get(sessionId)?.(message);
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) waiting?.reject(new Error(error.message));
    else waiting?.resolve(result);
  }

  #fail(error: Error): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const ended = once(this.#child, 'exit');
      void this.send('Browser.close').catch(() => undefined);
      const timer = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
      await ended;
      clearTimeout(timer);
    }
    rmSync(this.#folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}

export class BrowserPage {
  /** What the page did that it should not: exceptions, refused loads, violations of its own policy. */
  readonly problems: string[] = [];

  constructor(readonly browser: Browser, readonly session: string, readonly target: string) {}

  #trace: { events: TraceEvent[]; onEnd: () => void } | undefined;

  hear(method: string, params: Record<string, any>): void {
    if (method === 'Tracing.dataCollected') this.#trace?.events.push(...(params['value'] as TraceEvent[]));
    if (method === 'Tracing.tracingComplete') this.#trace?.onEnd();
    if (method === 'Runtime.exceptionThrown') this.problems.push(String(params['exceptionDetails']?.exception?.description ?? params['exceptionDetails']?.text));
    if (method === 'Log.entryAdded' && params['entry']?.level === 'error') this.problems.push(`${params['entry'].text} ${params['entry'].url ?? ''}`.trim());
    if (method === 'Runtime.consoleAPICalled' && params['type'] === 'error') this.problems.push(JSON.stringify(params['args']));
  }

  send(method: string, params: Record<string, unknown> = {}): Promise<Record<string, any>> {
    return this.browser.send(method, params, this.session);
  }

  /** @param first runs in the page before anything of its own */
  async open(url: string, first?: string): Promise<void> {
    if (first !== undefined) await this.send('Page.addScriptToEvaluateOnNewDocument', { source: first });
    await this.send('Page.navigate', { url });
  }

  /** @returns the value of a promise as well */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(String(exceptionDetails.exception?.description ?? exceptionDetails.text));
    return result['value'] as T;
  }

  /** @returns CPU time of the tasks of the page's own thread meanwhile, in milliseconds, the longest first: what others do on the machine is not in it */
  async tasksOf(work: () => Promise<void>): Promise<number[]> {
    const events: TraceEvent[] = [];
    const isComplete = new Promise<void>((resolve) => (this.#trace = { events, onEnd: resolve }));
    await this.send('Tracing.start', { transferMode: 'ReportEvents', traceConfig: { includedCategories: ['toplevel'], recordMode: 'recordAsMuchAsPossible' } });
    await work();
    await this.send('Tracing.end');
    await isComplete;
    const threadOf = ({ pid, tid }: TraceEvent): string => `${pid} ${tid}`;
    const own = new Set(events.filter(({ name, args }) => name === 'thread_name' && args?.name === 'CrRendererMain').map(threadOf));
    return events.flatMap((event) => (own.has(threadOf(event)) && event.name === 'ThreadControllerImpl::RunTask' && event.tdur !== undefined ? [event.tdur / 1_000] : [])).sort((a, b) => b - a);
  }

  async until(what: string, expression: string): Promise<void> {
    await waitFor(what, () => this.evaluate<boolean>(`Boolean(${expression})`), WAIT).catch(async (error: unknown) => {
      throw new Error(`${String(error)}\n${this.problems.join('\n')}\n${(await this.text().catch(() => '')).slice(0, 2_000)}`);
    });
  }

  text(): Promise<string> {
    return this.evaluate('document.body.innerText');
  }

  /** One key, as a keyboard has it: `Tab`, `Enter`, `ArrowDown`, `a`. */
  async press(key: string): Promise<void> {
    const text = key.length === 1 ? key : key === 'Enter' ? '\r' : undefined;
    const codes: Record<string, number> = { Tab: 9, Enter: 13, Escape: 27, ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40 };
    const base = { key, code: key.length === 1 ? `Key${key.toUpperCase()}` : key, windowsVirtualKeyCode: codes[key] ?? key.toUpperCase().charCodeAt(0) };
    await this.send('Input.dispatchKeyEvent', { type: text === undefined ? 'rawKeyDown' : 'keyDown', ...base, ...(text === undefined ? {} : { text }) });
    await this.send('Input.dispatchKeyEvent', { type: 'keyUp', ...base });
  }

  async screenshot(file: string): Promise<void> {
    const { data } = await this.send('Page.captureScreenshot', { format: 'png', optimizeForSpeed: false });
    writeFileSync(file, Buffer.from(String(data), 'base64'));
  }

  async close(): Promise<void> {
    await this.browser.send('Target.closeTarget', { targetId: this.target });
  }
}
