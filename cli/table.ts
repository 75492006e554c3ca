import { stripVTControlCharacters } from 'node:util';

/** Columns as wide as their widest entry, two blanks between; colours take no width. */
export function printTable(
  header: readonly string[],
  rows: readonly (readonly string[])[],
  write: (text: string) => void = (text) => void process.stdout.write(text),
): void {
  const width = (cell: string): number => stripVTControlCharacters(cell).length;
  const widths = header.map((title, column) => rows.reduce((most, row) => Math.max(most, width(row[column] ?? '')), width(title)));
  for (const row of [header, ...rows])
    write(
      row
        .map((cell, column) => cell + ' '.repeat(Math.max(0, (widths[column] ?? 0) - width(cell))))
        .join('  ')
        .trimEnd() + '\n',
    );
}

/** The same as one text. */
export function tableText(header: readonly string[], rows: readonly (readonly string[])[]): string {
  let text = '';
  printTable(header, rows, (line) => (text += line));
  return text;
}
