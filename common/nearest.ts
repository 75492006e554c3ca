/** Names near to one that was mistyped. */

/** How many characters have to be added, removed, exchanged, or swapped with their neighbour (optimal string alignment). */
export function editDistance(from: string, to: string): number {
  let before: number[] = [];
  let last = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let row = 1; row <= from.length; row++) {
    const line = [row];
    for (let column = 1; column <= to.length; column++) {
      const isSame = from[row - 1] === to[column - 1];
      let cost = Math.min(last[column]! + 1, line[column - 1]! + 1, last[column - 1]! + (isSame ? 0 : 1));
      if (row > 1 && column > 1 && from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1]) cost = Math.min(cost, before[column - 2]! + 1);
      line.push(cost);
    }
    [before, last] = [last, line];
  }
  return last[to.length]!;
}

/** The nearest first: those that hold or begin the word, or are at most a third of its length, and two, away. */
export function nearest(word: string, names: Iterable<string>, most = 3): string[] {
  const allowed = Math.max(2, Math.floor(word.length / 3));
  return [...new Set(names)]
    .map((name) => {
      // A pod's name ends in what its controller made up.
      const start = name.slice(0, word.length);
      return { name, distance: name.includes(word) ? 0 : Math.min(editDistance(word, name), editDistance(word, start) + 0.5) };
    })
    .filter(({ distance }) => distance <= allowed)
    .sort((a, b) => a.distance - b.distance || a.name.localeCompare(b.name))
    .slice(0, most)
    .map(({ name }) => name);
}
