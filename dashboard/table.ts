/**
 * Tables that are written anew each second: rows and cells stay, so that focus and selection do, a bounded number of rows is there, and
 * of these as many are written in a frame as there is time for.
 */
import { h, setText } from './dom.js';

export interface Cell {
  text: string;
  href?: string;
  /** `number`, `good`, `warn`, `bad`, … */
  style?: string;
}

export type Row = readonly (Cell | string)[];

/** Rows that are shown before more are asked for. */
const ROWS = 50;
/** Of a frame, for one table. */
const FRAME_MS = 4;

export class Table {
  readonly element: HTMLElement;
  readonly #body = h('tbody');
  readonly #more: HTMLButtonElement;
  readonly #empty: HTMLElement;
  readonly #scroll: HTMLElement;
  #shown = ROWS;
  #length = 0;
  #row: (index: number) => Row = () => [];
  /** What the cells of each row have, so that nothing is asked of the page. */
  readonly #written: string[][] = [];
  #next = 0;
  /** Rows that are to be written. */
  #left = 0;
  #frame = 0;

  /** @param caption names it @param empty in place of no rows @param numbers columns of figures, by index */
  constructor(caption: string, readonly columns: readonly string[], empty: string, readonly numbers: ReadonlySet<number> = new Set()) {
    const head = h('tr', {}, ...columns.map((name, index) => h('th', { scope: 'col', class: numbers.has(index) ? 'number' : false }, name)));
    const table = h('table', { 'aria-label': caption }, h('thead', {}, head), this.#body);
    this.#scroll = h('div', { class: 'wide', tabindex: '0', role: 'region', 'aria-label': `${caption}, scrolls` }, table);
    this.#empty = h('p', { class: 'soft' }, empty);
    this.#more = h('button', { type: 'button', hidden: true, click: () => this.#showMore() });
    this.element = h('div', {}, this.#scroll, this.#empty, this.#more);
  }

  update(rows: readonly Row[]): void {
    this.updateFrom(rows, (row) => row);
  }

  /** @param row asked for of those alone that are shown: there may be thousands */
  updateFrom<T>(items: readonly T[], row: (item: T) => Row): void {
    this.#length = items.length;
    this.#row = (index) => row(items[index]!);
    this.#show();
  }

  #show(): void {
    const shown = Math.min(this.#length, this.#shown);
    while (this.#written.length > shown) {
      this.#body.deleteRow(-1);
      this.#written.pop();
    }
    this.#scroll.hidden = this.#length === 0;
    this.#empty.hidden = this.#length > 0;
    this.#more.hidden = this.#length <= shown;
    setText(this.#more, `Show ${Math.min(ROWS, this.#length - shown)} more of ${this.#length - shown}`);
    // Each row once, going on where the last figures had come to: those that come often leave none out.
    this.#left = shown;
    if (this.#frame === 0) this.#writeSome();
  }

  #writeSome(): void {
    this.#frame = 0;
    const until = performance.now() + FRAME_MS;
    const shown = Math.min(this.#length, this.#shown);
    while (this.#left > 0) {
      this.#next = this.#next >= shown ? 0 : Math.min(this.#next, this.#written.length);
      this.#write(this.#next, this.#row(this.#next));
      this.#next++;
      this.#left--;
      if (performance.now() >= until) break;
    }
    this.element.dataset['left'] = String(this.#left);
    if (this.#left > 0) this.#frame = requestAnimationFrame(() => this.#writeSome());
  }

  #showMore(): void {
    this.#shown += ROWS;
    this.#show();
  }

  #write(index: number, row: Row): void {
    const written = (this.#written[index] ??= []);
    const cells = (this.#body.rows[index] ?? this.#body.insertRow()).cells;
    row.forEach((cell, column) => {
      const { text, href, style = '' } = typeof cell === 'string' ? { text: cell } : cell;
      const all = `${style}\0${href ?? ''}\0${text}`;
      if (written[column] === all) return;
      written[column] = all;
      const td = cells[column] ?? this.#body.rows[index]!.insertCell();
      td.className = `${this.numbers.has(column) ? 'number ' : ''}${style}`.trim();
      const link = td.firstElementChild as HTMLAnchorElement | null;
      if (href === undefined) return void (link ? td.replaceChildren(text) : setText(td, text));
      if (!link) return td.replaceChildren(h('a', { href }, text));
      link.setAttribute('href', href);
      setText(link, text);
    });
  }
}
