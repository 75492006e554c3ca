/** Reads the token out of the address, and shows the page that the rest of it names. */
import type { About } from '../common/dashboard-views.js';
import { ApiError, ask } from './api.js';
import { h, setText } from './dom.js';
import { graphPage } from './graph-page.js';
import { nodePage, nodesPage } from './node-pages.js';
import { objectPage, objectsPage } from './object-pages.js';
import type { Page } from './page.js';
import { reportPage } from './report-page.js';
import { workloadPage, workloadsPage } from './workload-pages.js';

const PAGES: Readonly<Record<string, { show: Page; menu: string; title?: string }>> = {
  graph: { show: graphPage, menu: 'graph', title: 'Graph' },
  workloads: { show: workloadsPage, menu: 'workloads', title: 'Workloads' },
  workload: { show: workloadPage, menu: 'workloads' },
  nodes: { show: nodesPage, menu: 'nodes', title: 'Nodes' },
  node: { show: nodePage, menu: 'nodes' },
  objects: { show: objectsPage, menu: 'objects', title: 'Configuration' },
  object: { show: objectPage, menu: 'objects' },
  report: { show: reportPage, menu: 'report', title: 'Benchmark' },
};
const TOKEN = 'underpass-token';

const part = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const [main, place, problem] = [part('main'), part('place'), part('problem')];

/** From the address once, then of this tab: it is not to stay in the address, nor in the history. */
function takeToken(): string {
  const [, given] = /^#token=([\w-]+)/.exec(location.hash) ?? [];
  if (given !== undefined) {
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, '', '#/graph');
  }
  return sessionStorage.getItem(TOKEN) ?? '';
}

function say(text: string | undefined): void {
  problem.hidden = text === undefined;
  setText(problem, text ?? '');
}

function menu(current: string): void {
  part('pages').replaceChildren(...Object.entries(PAGES).flatMap(([name, { title }]) => (title === undefined ? [] : [h('a', { href: `#/${name}`, ...(name === current ? { 'aria-current': 'page' } : {}) }, title)])));
}

let leave = new AbortController();

function open(token: string, about: About, isFirst: boolean): void {
  leave.abort();
  leave = new AbortController();
  const [, name = 'graph', ...rest] = location.hash.split('/');
  const page = PAGES[name];
  menu(page?.menu ?? '');
  say(undefined);
  if (!page) {
    main.replaceChildren(h('h1', {}, 'There is no such page'), h('p', {}, h('a', { href: '#/graph' }, 'To the graph')));
    return;
  }
  const title = (text: string): void => void (document.title = `${text} – Underpass`);
  void page.show({ token, about, main, signal: leave.signal, problem: say, title }, rest.map((word) => decodeURIComponent(word)));
  // Where one who can't see the change is told of it.
  if (!isFirst) main.focus({ preventScroll: true });
}

async function start(): Promise<void> {
  const token = takeToken();
  part('skip').addEventListener('click', (event) => {
    event.preventDefault();
    main.focus();
  });
  menu('');
  if (token === '') {
    main.replaceChildren(h('h1', {}, 'The token is missing'), h('p', {}, 'Open the address as `underpass dashboard` printed it: what stands behind # is for you alone.'));
    return;
  }
  try {
    const about = await ask<About>(token, '/api/about');
    setText(place, `${about.place}, version ${about.version}`);
    open(token, about, true);
    addEventListener('hashchange', () => {
      if (location.hash.startsWith('#token=')) location.reload();
      else open(token, about, false);
    });
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) sessionStorage.removeItem(TOKEN);
    main.replaceChildren(h('h1', {}, 'The mesh can\'t be read'), h('p', {}, error instanceof Error ? error.message : String(error)));
  }
}

void start();
