/**
 * The pages of `underpass dashboard` in a real Chromium, of a mesh of a thousand services that is none: what axe finds, light and
 * dark; what the keyboard does; what is drawn in a frame, and how long the page's tasks are.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import type { DashboardServer } from '../../cli/dashboard/server.js';
import { MOST_A_FRAME } from '../../dashboard/painter.js';
import { Browser, type BrowserPage } from './browser.js';
import { SERVICES, syntheticDashboard } from './synthetic.js';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
/** What each page has when it is whole. */
const PAGES: Readonly<Record<string, string>> = {
  '#/graph': 'canvas whole',
  '#/workloads': 'team-9/service-29',
  '#/workload/team-7/service-7': 'service-7-6b9-x',
  '#/nodes': 'node-3',
  '#/node/node-2': 'an unknown field',
  '#/objects': 'VirtualService/service-7.team-7',
  [`#/object/${encodeURIComponent('VirtualService/service-7.team-7')}`]: '<b>not a field</b>',
  '#/report': '1.76 ×',
  '#/nowhere': 'There is no such page',
};
/** Of the page itself: a worker's are not among them. */
const COUNT_TASKS = 'globalThis.longTasks = []; new PerformanceObserver((list) => { for (const { startTime, duration } of list.getEntries()) globalThis.longTasks.push([Math.round(startTime), Math.round(duration)]); }).observe({ type: "longtask", buffered: true });';

let browser: Browser;
let dashboard: DashboardServer;
/** Few services are as much to axe, in a fraction of the time. */
let small: DashboardServer;
before(async () => {
  browser = await Browser.start();
  dashboard = await syntheticDashboard();
  small = await syntheticDashboard(30);
});
after(async () => {
  await browser?.close();
  await dashboard?.close();
  await small?.close();
});

/** Of the report, which tries it. */
const isRefused = (problem: string): boolean => /^Executing inline event handler violates .* The action has been blocked/.test(problem);
const isThere = (what: string): string => (what === 'canvas whole' ? 'document.querySelector("canvas")?.dataset.whole > 0 && document.querySelector("tbody tr")' : `(document.body.innerText + (document.querySelector("main div")?.shadowRoot?.textContent ?? [...document.querySelectorAll("main div")].map((each) => each.shadowRoot?.textContent ?? "").join(""))).includes(${JSON.stringify(what)})`);

async function show(page: BrowserPage, hash: string): Promise<void> {
  await page.evaluate(`location.hash = ${JSON.stringify(hash)}`);
  await page.until(`${hash} to show ${PAGES[hash]}`, isThere(PAGES[hash]!));
}

async function opened(options: { scheme?: 'light' | 'dark'; width?: number } = {}, first?: string, server = dashboard): Promise<BrowserPage> {
  const page = await browser.page(options);
  await page.open(server.address, first);
  await page.until('the graph', isThere('canvas whole'));
  return page;
}

for (const scheme of ['light', 'dark'] as const) {
  test(`axe finds no violation on any page (${scheme})`, async () => {
    const page = await opened({ scheme }, undefined, small);
    await page.evaluate(`${AXE}; 0`);
    for (const hash of Object.keys(PAGES)) {
      await show(page, hash);
      const found = await page.evaluate<{ id: string; nodes: string[] }[]>('axe.run({ resultTypes: ["violations"] }).then(({ violations }) => violations.map(({ id, nodes }) => ({ id, nodes: nodes.slice(0, 3).map(({ html, failureSummary }) => `${html} ${failureSummary}`) })))');
      assert.deepEqual(found, [], hash);
    }
    assert.deepEqual(page.problems.filter((each) => !isRefused(each)), []);
    await page.close();
  });
}

test('the scheme is followed: text and page change their colours', async () => {
  const colours: string[] = [];
  for (const scheme of ['light', 'dark'] as const) {
    const page = await opened({ scheme });
    colours.push(await page.evaluate<string>('getComputedStyle(document.body).color + getComputedStyle(document.body).backgroundColor'));
    await page.close();
  }
  assert.notEqual(colours[0], colours[1]);
});

test('the token leaves the address, stays for the tab, and without it the mesh is not shown', async () => {
  const page = await opened();
  assert.equal(await page.evaluate('location.href'), `${dashboard.origin}/#/graph`);
  await page.send('Page.reload');
  await page.until('the graph after a reload', isThere('canvas whole'));
  await page.close();
  // Another tab has a storage of its own.
  const other = await browser.page();
  await other.open(`${dashboard.origin}/`);
  await other.until('the page to say what it lacks', 'document.body?.innerText.includes("The token is missing")');
  await other.close();
});

test(`of ${SERVICES} services no frame draws more than it may, and all of it is drawn`, async () => {
  const page = await opened({}, COUNT_TASKS);
  const loadedAt = await page.evaluate<number>('performance.now()');
  // Of the page's own thread, in CPU time: what others do on the machine is not in it.
  await page.send('Performance.enable', { timeDomain: 'threadTicks' });
  const cpu = async (): Promise<Record<string, number>> => Object.fromEntries(((await page.send('Performance.getMetrics'))['metrics'] as { name: string; value: number }[]).map(({ name, value }) => [name, value]));
  const cpuBefore = await cpu();
  const before = await page.evaluate<Record<string, string>>('({ ...document.querySelector("canvas").dataset })');
  // Figures that come, a search, another grouping, a drag: what people do.
  const busiest = await page.tasksOf(() => page.evaluate(`(async () => {
    const stage = document.querySelector(".graph");
    const { left, top } = stage.getBoundingClientRect();
    const at = (type, x, y) => stage.dispatchEvent(new PointerEvent(type, { clientX: left + x, clientY: top + y, pointerId: 1, bubbles: true }));
    stage.setPointerCapture = () => undefined;
    const frame = () => new Promise(requestAnimationFrame);
    globalThis.frames_ = [];
    let last = performance.now();
    const turn = async () => { await frame(); const now = performance.now(); globalThis.frames_.push(now - last); last = now; };
    for (let step = 0; step < 20; step++) { stage.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, clientX: left + 400, clientY: top + 300, bubbles: true, cancelable: true })); await turn(); }
    at("pointerdown", 400, 300);
    for (let step = 0; step < 60; step++) { at("pointermove", 400 + step * 6, 300 + step * 3); await turn(); }
    at("pointerup", 700, 400);
    for (const [id, value] of [["search", "service-1"], ["search", ""], ["group", "namespace"], ["group", "service"]]) {
      const input = document.getElementById(id); input.value = value; input.dispatchEvent(new Event(id === "search" ? "input" : "change"));
      for (let step = 0; step < 40; step++) await turn();
    }
  })()`));
  const cpuAfter = await cpu();
  await page.until('some more readings', `document.querySelector("canvas").dataset.whole > ${Number(before['whole']) + 5}`);
  const { most, frames, things } = await page.evaluate<Record<string, string>>('({ ...document.querySelector("canvas").dataset })');
  assert.ok(Number(most) <= MOST_A_FRAME, `${most} things in one frame`);
  assert.ok(Number(things) > SERVICES, `${things} things were drawn in ${frames} frames`);
  assert.ok(Number(before['frames']) > 1, 'the first picture took several frames');
  assert.ok(await page.evaluate<number>('document.querySelectorAll("tbody tr").length') <= 200, 'rows of tables');
  const tasks = await page.evaluate<[number, number][]>('globalThis.longTasks');
  const times = (await page.evaluate<number[]>('globalThis.frames_')).sort((a, b) => a - b);
  const late = tasks.filter(([at]) => at > loadedAt);
  console.log(`# ${SERVICES} services: the busiest tasks took ${busiest.slice(0, 3).map((ms) => ms.toFixed(0)).join(', ')} ms of CPU; ${late.length} tasks over 50 ms after the load (the longest ${Math.max(0, ...late.map(([, ms]) => ms))} ms), ${tasks.length - late.length} during it; CPU time of the page's thread ${['TaskDuration', 'ScriptDuration', 'LayoutDuration', 'RecalcStyleDuration'].map((name) => `${name} ${((((cpuAfter[name] ?? 0) - (cpuBefore[name] ?? 0)) * 1_000) / times.length).toFixed(1)} ms`).join(', ')} a frame; frames while it was dragged and searched: median ${times[times.length >> 1]!.toFixed(1)} ms, p99 ${times[Math.floor(times.length * 0.99)]!.toFixed(1)} ms of ${times.length}`);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('by the keyboard alone: over the skip link to the graph, from node to node, to a workload and to another page', async () => {
  const page = await opened();
  await page.press('Tab');
  assert.equal(await page.evaluate('document.activeElement.id'), 'skip');
  await page.press('Enter');
  assert.equal(await page.evaluate('document.activeElement.id'), 'main');
  const seen: string[] = [];
  for (let step = 0; step < 12 && !seen.at(-1)?.includes('graph'); step++) {
    await page.press('Tab');
    seen.push(await page.evaluate<string>('document.activeElement.className || document.activeElement.id || document.activeElement.tagName'));
  }
  assert.equal(seen.at(-1), 'graph', seen.join());
  const selected = (): Promise<string> => page.evaluate('document.querySelector("aside h2").textContent');
  await page.press('ArrowRight');
  const first = await selected();
  assert.match(first, /^team-\d+\/service-\d+$/);
  assert.match(await page.evaluate('document.querySelector("[aria-live]").textContent'), /^team-\d+\/service-\d+: .* in, .* out/);
  await page.press('ArrowRight');
  assert.notEqual(await selected(), first);
  await page.press('Escape');
  assert.equal(await selected(), 'Nothing selected');
  await page.press('ArrowDown');
  await page.press('Enter');
  await page.until('the workload\'s page', 'location.hash.startsWith("#/workload/team-") && document.querySelector("h1")?.textContent.startsWith("team-")');
  assert.equal(await page.evaluate('document.activeElement.id'), 'main');
  assert.deepEqual(page.problems, []);
  await page.close();
});

test('a search leaves what speaks with what was searched for, a namespace what is of it, and what is idle can be left out', async () => {
  const page = await opened();
  const count = (): Promise<number> => page.evaluate('Number(document.querySelector("[role=status]").textContent.match(/, (\\d+) edges/)[1])');
  const all = await count();
  const set = (id: string, property: string, value: unknown, event: string): Promise<void> => page.evaluate(`{ const e = document.getElementById("${id}"); e.${property} = ${JSON.stringify(value)}; e.dispatchEvent(new Event("${event}")); } undefined`);
  const fewer = (than: number): Promise<void> => page.until('fewer edges', `Number(document.querySelector("[role=status]").textContent.match(/, (\\d+) edges/)[1]) < ${than}`);
  await set('idle', 'checked', true, 'change');
  await fewer(all);
  const busy = await count();
  await set('namespace', 'value', 'team-7', 'change');
  await fewer(busy);
  await set('search', 'value', 'service-7', 'input');
  await fewer(await count());
  await page.until('the rows', 'document.querySelector(".below [data-left]").dataset.left === "0"');
  const rows = await page.evaluate<string[][]>('[...document.querySelectorAll("main > div:last-child tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent))');
  assert.ok(rows.length > 0);
  for (const [from = '', to = ''] of rows) assert.ok(`${from} ${to}`.includes('service-7') && `${from} ${to}`.includes('team-7/'), `${from} ${to}`);
  await page.close();
});

test('a report\'s scripts do not run, and nothing is loaded from elsewhere', async () => {
  const page = await opened();
  await show(page, '#/report');
  assert.deepEqual(await page.evaluate('[globalThis.hasRun ?? "no", [...document.querySelectorAll("main div")].map((each) => each.shadowRoot?.querySelectorAll("script, img, [onclick], [href]").length ?? 0).reduce((a, b) => a + b)]'), ['no', 0]);
  assert.ok(page.problems.length > 0 && page.problems.every(isRefused), page.problems.join('\n'));
  await page.close();
});
