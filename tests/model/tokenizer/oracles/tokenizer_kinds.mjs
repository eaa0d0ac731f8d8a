// One tokenizer for each way in which the supported families cut text, and for each option of the file
// format. `js: false` where the JavaScript library does not implement an option; jsReads tells whether
// it reads a text as the Rust library does.

const split = (Regex, behavior = "Isolated", invert = false) =>
  ({ type: "Split", pattern: { Regex }, behavior, invert });
const literal = (String, behavior, invert = false) =>
  ({ type: "Split", pattern: { String }, behavior, invert });
const bytes = (use_regex = false, add_prefix_space = false) =>
  ({ type: "ByteLevel", add_prefix_space, trim_offsets: true, use_regex });
const sequence = (...pretokenizers) => ({ type: "Sequence", pretokenizers });
const nfc = { type: "NFC" };

const contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const blanks = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const qwen2 = `${contraction}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${blanks}`;
const qwen35 = `${contraction}|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|` +
  ` ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${blanks}`;
const llama3 =
  `${contraction}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${blanks}`;
const cased = (upper, lower, ending) =>
  `[^\\r\\n\\p{L}\\p{N}]?${upper}*${lower}+${contraction}?|` +
  `[^\\r\\n\\p{L}\\p{N}]?${upper}+${lower}*${contraction}?|` +
  `\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+${ending}*|${blanks}`;
const o200k = cased("[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]", "[\\r\\n/]");
export const kimi = "[\\p{Han}]+|" +
  cased("[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]",
        "[\\r\\n]");
const deepseekV3 = sequence(
  split("\\p{N}{1,3}"),
  split("[一-龥぀-ゟ゠-ヿ]+"),
  split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|" +
        " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
  bytes());
// The published class of letters is longer; these ranges are part of it.
const deepseekV2 = sequence(
  split("[\r\n]"),
  split("\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯΑ-ΡΣ-ωЀ-ҁ\u1f5f-\u1f7dＡ-Ｚａ-ｚ]+"),
  split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"),
  split("\\s+$"),
  split("[一-龥ࠀ-一가-\ud7ff]+"),
  { type: "Digits", individual_digits: true },
  bytes());

// No content may consist of characters that spell bytes only, such as "Åé": the Rust library decodes
// such a token to those bytes, we and the JavaScript library to its text.
const token = (content, special, more = {}) =>
  ({ content, special, single_word: false, lstrip: false, rstrip: false, normalized: false, ...more });
const CHAT = [token("<|im_start|>", true), token("<|im_end|>", true), token("<think>", false),
              token("</think>", false), token("<|im_end|><|im_start|>", true)];
const BLANK_RUNS = [token("    ", false, { normalized: true }), token("  ", false, { normalized: true }),
                    token("|||EMAIL|||", false, { normalized: true }), token("<|im_end|>", true)];

const noOtherDigits = (text) => !/(?![0-9])\p{N}/u.test(text);
// JavaScript's \s has U+FEFF and lacks U+0085; ByteLevel's own pattern is used as it is.
const noOddBlanks = (text) => !/[\u0085\ufeff]/u.test(text);
// JavaScript's toLowerCase looks at what surrounds a sigma; Rust's normalizer maps each character alone.
const noSigma = (text) => !text.includes("\u03a3");

export const KINDS = [
  { name: "gpt2", pre_tokenizer: bytes(true), added: CHAT, jsReads: noOddBlanks },
  { name: "gpt2 with a prefix space", pre_tokenizer: bytes(true, true), added: CHAT, lossy: true,
    jsReads: noOddBlanks },
  { name: "olmoe", normalizer: nfc, pre_tokenizer: bytes(true), added: BLANK_RUNS, jsReads: noOddBlanks },
  { name: "qwen2", normalizer: nfc, pre_tokenizer: sequence(split(qwen2), bytes()), added: CHAT },
  { name: "qwen3.5", normalizer: nfc, pre_tokenizer: sequence(split(qwen35), bytes()), added: CHAT },
  { name: "llama3", pre_tokenizer: sequence(split(llama3), bytes()), added: CHAT, ignore_merges: true,
    bos: "<|im_start|>", pairs: true },
  { name: "glm4", pre_tokenizer: sequence(split(llama3), bytes()), added: CHAT },
  { name: "o200k", pre_tokenizer: sequence(split(o200k), bytes()), added: CHAT, pairs: true },
  { name: "deepseek-v2", normalizer: { type: "Sequence", normalizers: [] }, pre_tokenizer: deepseekV2,
    added: CHAT, jsReads: noOtherDigits },
  { name: "deepseek-v3", normalizer: { type: "Sequence", normalizers: [] }, pre_tokenizer: deepseekV3,
    added: CHAT, pairs: true },
  { name: "kimi", pre_tokenizer: sequence(split(kimi), bytes()), added: CHAT, pairs: true },
  { name: "digits together", pre_tokenizer: sequence({ type: "Digits", individual_digits: false },
    bytes(true)), added: [], jsReads: (text) => noOtherDigits(text) && noOddBlanks(text) },
  { name: "punctuation", pre_tokenizer: sequence({ type: "Punctuation", behavior: "Isolated" }, bytes()),
    added: [], js: false },
  ...["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"].flatMap((behavior) => [
    { name: `split ${behavior}`, pre_tokenizer: sequence(split("[\\p{P}\\s]", behavior), bytes()),
      added: [], js: false, lossy: behavior === "Removed" },
    { name: `split ${behavior} inverted`,
      pre_tokenizer: sequence(split("[\\p{L}\\p{M}]+", behavior, true), bytes()),
      added: [], js: false, lossy: behavior === "Removed" },
    { name: `literal ${behavior}`, pre_tokenizer: sequence(literal("a", behavior), bytes()),
      added: [], js: false, lossy: behavior === "Removed" },
  ]),
  { name: "line ends", pre_tokenizer: sequence(split("^\\s+|\\s+$|\\d+\\b|\\w+"), bytes()), added: [],
    js: false },
  { name: "escapes", pre_tokenizer: sequence(split("\\b\\w\\h*|\\W\\B|[\\w&&[^\\p{Han}]]+|\\d+\\b"), bytes()),
    added: [], js: false },
  { name: "added tokens", normalizer: nfc, pre_tokenizer: sequence(split(qwen2), bytes()), js: false,
    added: [token("<|left|>", true, { lstrip: true }), token("<|right|>", true, { rstrip: true }),
            token("<both>", false, { lstrip: true, rstrip: true, normalized: true }),
            token("aa", false, { single_word: true }), token("→é", false, { normalized: true }),
            token("<|im_end|>", true), token("<|im_", true)] },
  ...["NFD", "NFKC", "NFKD", "Lowercase"].map((type) => (
    { name: type, normalizer: { type }, pre_tokenizer: sequence(split(qwen2), bytes()), added: CHAT,
      jsReads: type === "Lowercase" ? noSigma : undefined })),
  { name: "prepend and replace", pre_tokenizer: sequence(split(qwen2), bytes()), added: CHAT, lossy: true,
    js: false,
    normalizer: { type: "Sequence", normalizers: [
      { type: "Prepend", prepend: "_" }, { type: "Replace", pattern: { String: " " }, content: "_" },
      { type: "Replace", pattern: { Regex: "a{2,}" }, content: "A" }, nfc] } },
];
