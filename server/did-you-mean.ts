/** What somebody meant by a word that is not known: for messages. */

/** "; did you mean kv? Known are kv, files", or without the guess where nothing is near. */
export function didYouMean(given: unknown, known: readonly string[]): string {
  if (known.length === 0) return "";
  const word = String(given).toLowerCase();
  const [best] = known
    .map((other) => ({ other, far: editDistance(word, other.toLowerCase()) }))
    .filter(({ other, far }) => far <= Math.max(1, other.length >> 1))
    .sort((a, b) => a.far - b.far);
  const list = known.join(", ");
  return best === undefined ? `; known are ${list}` : `; did you mean ${best.other}? Known are ${list}`;
}

/** Levenshtein's, of the first 64 characters. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 0; i < Math.min(a.length, 64); i++) {
    const next = [i + 1];
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] ?? 0) + (a[i] === b[j - 1] ? 0 : 1);
      next.push(Math.min(swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
