// What the tokenizers are trained on and what they are asked to encode: several scripts, code, emoji,
// digits, runs of white space, special tokens in the text, bytes that are not UTF-8.

export const CORPUS = [
  "The glacier carries stones down the valley, and leaves them behind in layers. They've said it's so.",
  "I'll go; you're late, he'd know, we've seen it, DON'T shout, THEY'RE here. camelCase HTTPServer XMLHttpRequest2",
  "def count(words):\n    total = {}\n    for word in words:\n        total[word] = total.get(word, 0) + 1\n    return total\n",
  "int main(int argc, char** argv) {\n\tfor (int i = 0; i < 10; ++i) {\n\t\tprintf(\"%d\\n\", i * 2);\n\t}\n\treturn 0;\n}\n",
  "In 1984 there were 12,345.67 units; 2025-11-21T20:05:15Z; 3.14159265; 0xFF; 1_000_000; ½ ² ٣٤٥ ४५६ Ⅷ ①②③",
  "Der Gletscher trägt Geröll; Größe, Übermut, Straße. À bientôt, garçon! El niño soñó. Žluťoučký kůň.",
  "Ледник несёт камни вниз по долине и оставляет их слоями. Съешь ещё этих мягких булок.",
  "冰川把石头带下山谷，一层一层地留下。中文字符与English混排，共有3个句子。人工智能模型。",
  "氷河は石を谷へ運び、層にして残す。カタカナとひらがな、漢字も。東京タワー、ラーメン。",
  "빙하는 돌을 골짜기 아래로 나르고 층층이 남긴다. 한국어 문장입니다.",
  "हिमनद पत्थरों को घाटी में ले जाता है। नमस्ते दुनिया। क्षत्रिय। தமிழ் மொழி। বাংলা ভাষা। ภาษาไทย สวัสดีครับ",
  "النهر الجليدي يحمل الحجارة. שלום עולם, זה עברית. Ελληνικά: ο παγετώνας μεταφέρει πέτρες.",
  "👍👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 😀😀😀 e\u0301 a\u0308\u0323 \u1e9b\u0323 ﬁ ﬀ Å ℵ ½ ™ №",
  "a  b   c    d\t\te\n\n\nf \n g\r\nh\u00a0i\u3000j\u2009k      \n      l   ",
  "https://example.org/path?q=1&r=2#frag user@example.com C:\\dir\\file.txt $HOME ~/.bashrc <b>x</b> /* c */ // d",
  "aaaa aaaaaaa aaa aa baaaaa hahahaha ha ...... .... ----- ",
  "!!! ??? ... --- ___ *** === +++ ((())) [[]] {{}} «quoted» “double” ‘single’ 、。！？「」【】",
];

// Park and Miller: the same sequence on every machine.
export class Random {
  constructor(seed) {
    this.state = (seed % 2147483646) + 1;
  }
  below(n) {
    this.state = (this.state * 48271) % 2147483647;
    return this.state % n;
  }
  pick(list) {
    return list[this.below(list.length)];
  }
}

// [first, last]: characters that had their properties long before the oldest of the libraries.
const RANGES = [
  [0x20, 0x7e], [0x20, 0x7e], [0x61, 0x7a], [0x41, 0x5a], [0x30, 0x39], [0x21, 0x2f], [0xa1, 0x17f],
  [0x1c4, 0x1cc], [0x300, 0x33f], [0x391, 0x3a1], [0x3b1, 0x3c9], [0x410, 0x44f], [0x5d0, 0x5ea],
  [0x620, 0x64a], [0x64b, 0x652], [0x660, 0x669], [0x904, 0x939], [0x93e, 0x94d], [0x966, 0x96f],
  [0xe01, 0xe3a], [0x1100, 0x1112], [0x1161, 0x1175], [0x1e00, 0x1e95], [0x1f00, 0x1f15],
  [0x1f70, 0x1f7d], [0x2010, 0x2027], [0x2150, 0x2188], [0x2460, 0x2473], [0x3001, 0x3011],
  [0x3041, 0x3096], [0x30a1, 0x30fa], [0x4e00, 0x9fa5], [0x4e00, 0x4e20], [0xac00, 0xd7a3],
  [0xff01, 0xff5e], [0x1f600, 0x1f64f], [0x1f3fb, 0x1f3ff], [0x1d7ce, 0x1d7ff], [0x20000, 0x20040],
];
const PIECES = [
  " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "'s", "'S", "'re",
  "'LL", "'ve", "'d", "'", "n't", "0", "12", "123", "1234567", "3.14", "for (", "();\n", "    return ",
  "</think>", "==", "//", "_x", "\u0301", "\u0308", "\u094d", "\u200d", "\ufe0f", "é", "Ünï", "HTTP", "aB",
  "aaaaa", "aaaaaaaaaaaaa", "hahahaha", "......", "\u0085", "\ufeff", "\u2029", "\x1f", "\0", "々", "〇", "〆", "、", "中文", "ー", "ٱ", "٣", "½", "ſ", "ß", "ﬁ", "K", "Ω", "İ", "ı", "Σς", "𝟘", "𠀀",
];

// `specials` are texts of added tokens.
export function randomText(random, specials) {
  const out = [];
  const parts = 1 + random.below(12);
  for (let i = 0; i < parts; ++i) {
    const kind = random.below(10);
    if (kind < 3) {
      const text = random.pick(CORPUS);
      const from = random.below(text.length);
      out.push(text.slice(from, from + 1 + random.below(40)));
    } else if (kind < 6) {
      const [first, last] = random.pick(RANGES);
      const count = 1 + random.below(8);
      for (let j = 0; j < count; ++j) {
        out.push(String.fromCodePoint(first + random.below(last - first + 1)));
      }
    } else if (kind < 8 || specials.length === 0) {
      const count = 1 + random.below(4);
      for (let j = 0; j < count; ++j) out.push(random.pick(PIECES));
    } else if (kind < 9) {
      out.push(random.pick(specials));
    } else {
      // Almost a special token.
      const special = random.pick(specials);
      out.push(special.slice(0, 1 + random.below(special.length)));
    }
  }
  return out.join("").replace(/\p{Cs}/gu, "");  // halves of characters
}

// A few bytes of a valid text are overwritten, cut or doubled.
export function damage(random, text) {
  const bytes = [...Buffer.from(text)];
  const count = 1 + random.below(3);
  for (let i = 0; i < count && bytes.length > 0; ++i) {
    const at = random.below(bytes.length);
    const kind = random.below(3);
    if (kind === 0) bytes[at] = random.below(256);
    else if (kind === 1) bytes.splice(at, 1);
    else bytes.splice(at, 0, 0x80 + random.below(0x80));
  }
  return Buffer.from(bytes);
}
