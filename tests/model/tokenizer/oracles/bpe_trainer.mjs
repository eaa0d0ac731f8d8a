// A small byte-pair trainer: the most frequent pair is merged next, ties by the text of the pair, so
// that the same corpus gives the same tokenizer everywhere.

// GPT-2's printable spelling of the 256 bytes.
export const SPELLING = (() => {
  const printable = (b) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  const table = [];
  let next = 256;
  for (let b = 0; b < 256; ++b) table.push(String.fromCodePoint(printable(b) ? b : next++));
  return table;
})();

// words: pre-tokens in that spelling. Returns {tokens, merges}: the spellings by id, and pairs of spellings.
export function train(words, mergeCount) {
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  const pieces = [...counts].map(([word, count]) => ({ symbols: [...word], count }));
  const tokens = [...SPELLING];
  const known = new Set(tokens);
  const merges = [];
  while (merges.length < mergeCount) {
    const pairs = new Map();
    for (const { symbols, count } of pieces) {
      for (let i = 0; i + 1 < symbols.length; ++i) {
        const key = symbols[i] + " " + symbols[i + 1];
        pairs.set(key, (pairs.get(key) ?? 0) + count);
      }
    }
    let best = null;
    for (const [key, count] of pairs) {
      if (best === null || count > best.count || (count === best.count && key < best.key)) {
        best = { key, count };
      }
    }
    if (best === null) break;
    const [left, right] = best.key.split(" ");
    merges.push([left, right]);
    if (!known.has(left + right)) tokens.push(left + right);
    known.add(left + right);
    for (const piece of pieces) {
      const merged = [];
      for (let i = 0; i < piece.symbols.length; ++i) {
        if (piece.symbols[i] === left && piece.symbols[i + 1] === right) {
          merged.push(left + right);
          ++i;
        } else {
          merged.push(piece.symbols[i]);
        }
      }
      piece.symbols = merged;
    }
  }
  return { tokens, merges };
}
