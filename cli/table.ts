/** Columns as wide as their widest entry, two blanks between. */
export function printTable(
  header: readonly string[],
  rows: readonly (readonly string[])[],
  write: (text: string) => void = (text) => void process.stdout.write(text),
): void {
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => (row[column] ?? '').length)));
  for (const row of [header, ...rows])
    write(
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd() + '\n',
    );
}
