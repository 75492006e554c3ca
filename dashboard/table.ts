/** Tables that are written anew each second: rows and cells stay, so that focus and selection do, and a bounded number of rows is there. */
import { h, setText } from './dom.js';

export interface Cell {
  text: string;
  href?: string;
  /** `number`, `good`, `warn`, `bad`, … */
  style?: string;
}

export type Row = readonly (Cell | string)[];

/** Rows that are shown before more are asked for. */
const ROWS = 100;

export class Table {
  readonly element: HTMLElement;
  readonly #body = h('tbody');
  readonly #more: HTMLButtonElement;
  readonly #empty: HTMLElement;
  readonly #scroll: HTMLElement;
  #shown = ROWS;
  #length = 0;
  #row: (index: number) => Row = () => [];

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
    const rows = this.#body.rows;
    for (let index = 0; index < shown; index++) this.#write(rows[index] ?? this.#body.insertRow(), this.#row(index));
    while (rows.length > shown) this.#body.deleteRow(-1);
    this.#scroll.hidden = this.#length === 0;
    this.#empty.hidden = this.#length > 0;
    this.#more.hidden = this.#length <= shown;
    setText(this.#more, `Show ${Math.min(ROWS, this.#length - shown)} more of ${this.#length - shown}`);
  }

  #showMore(): void {
    this.#shown += ROWS;
    this.#show();
  }

  #write(to: HTMLTableRowElement, row: Row): void {
    row.forEach((cell, index) => {
      const { text, href, style = '' } = typeof cell === 'string' ? { text: cell } : cell;
      const td = to.cells[index] ?? to.insertCell();
      const style_ = `${this.numbers.has(index) ? 'number ' : ''}${style}`.trim();
      if (td.className !== style_) td.className = style_;
      const link = td.firstElementChild as HTMLAnchorElement | null;
      if (href === undefined) return void (link ? td.replaceChildren(text) : setText(td, text));
      if (!link) return td.replaceChildren(h('a', { href }, text));
      if (link.getAttribute('href') !== href) link.setAttribute('href', href);
      setText(link, text);
    });
  }
}
