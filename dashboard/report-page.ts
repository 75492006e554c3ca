/**
 * The benchmark's report, a page of its own that is put into this one: its style in a shadow root, so that neither touches the other;
 * scripts, forms and what would load anything are taken out.
 */
import { h } from './dom.js';
import { getText, type Page } from './page.js';

const TAKEN_OUT = 'script, style, link, meta, base, iframe, object, embed, form, input, button, img, video, audio, template';

export const reportPage: Page = async (context) => {
  context.title('Benchmark report');
  const host = h('div');
  const said = h('p', { role: 'status' }, 'Reading…');
  context.main.replaceChildren(h('h1', {}, 'Benchmark report'), said, host);
  try {
    show(host, await getText(context, '/api/report'));
    said.textContent = `From ${context.about.report ?? ''}`;
    context.problem(undefined);
  } catch (error) {
    if (!context.signal.aborted) said.textContent = error instanceof Error ? error.message : String(error);
  }
};

function show(host: HTMLElement, text: string): void {
  let style = '';
  // What a parser makes is no page that is shown: nothing of it runs or is loaded. A style in it would be against this page's policy.
  const report = new DOMParser().parseFromString(text.replaceAll(/<style[^>]*>([\s\S]*?)<\/style>/gi, (_, own: string) => ((style += own), '')), 'text/html');
  for (const element of report.querySelectorAll(TAKEN_OUT)) element.remove();
  for (const element of report.querySelectorAll('*')) {
    for (const { name, value } of [...element.attributes]) if (/^on|^style$/i.test(name) || (/href|src|action/i.test(name) && !value.startsWith('#'))) element.removeAttribute(name);
  }
  report.querySelector('h1')?.remove();
  for (const cell of report.querySelectorAll('th')) if (cell.textContent?.trim() === '') cell.replaceWith(report.createElement('td'));
  report.querySelectorAll('.wide').forEach((element, index) => {
    element.setAttribute('tabindex', '0');
    element.setAttribute('role', 'region');
    element.setAttribute('aria-label', `Table ${index + 1}, scrolls`);
  });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(style.replaceAll(':root', ':host').replaceAll(/(^|[\s}])body\s*\{/g, '$1.report {'));
  const root = host.shadowRoot ?? host.attachShadow({ mode: 'open' });
  root.adoptedStyleSheets = [sheet];
  const body = h('div', { class: 'report' });
  body.append(...[...report.body.childNodes].map((node) => document.importNode(node, true)));
  root.replaceChildren(body);
}
