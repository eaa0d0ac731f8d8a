// Trains a tokenizer of each kind and compares our ids and decoded text with those of the libraries
// that publish the formats: Hugging Face's tokenizers (Rust and JavaScript) and tiktoken.
// Usage: node tokenizer_differential_test.mjs ENCODE_BINARY [SEED [TEXTS_A_KIND]]
import { spawnSync } from "node:child_process";
import { Tokenizer as JsTokenizer } from "@huggingface/tokenizers";
import rust from "tokenizers";
import { Tiktoken } from "tiktoken";
import { SPELLING, train } from "./bpe_trainer.mjs";
import { CORPUS, Random, damage, randomText } from "./texts.mjs";
import { KINDS, kimi } from "./tokenizer_kinds.mjs";

const [binary, seedText, countText] = process.argv.slice(2);
const seed = Number(seedText ?? 1 + (Date.now() % 1000000));
const textsPerKind = Number(countText ?? 300);
const MERGES = 700;

function tokenizerJson(kind, tokens, merges) {
  const vocab = Object.fromEntries(tokens.map((text, id) => [text, id]));
  let next = tokens.length;  // the Rust library numbers them so, whatever the file says
  const added = kind.added.map((t) => ({ id: vocab[t.content] ?? next++, ...t }));
  const bos = added.find((t) => t.content === kind.bos);
  const template = bos && {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: bos.content, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
    special_tokens: { [bos.content]: { id: bos.content, ids: [bos.id], tokens: [bos.content] } },
  };
  const byteLevel = { type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true };
  return {
    version: "1.0", truncation: null, padding: null, added_tokens: added,
    normalizer: kind.normalizer ?? null, pre_tokenizer: kind.pre_tokenizer,
    post_processor: template ? { type: "Sequence", processors: [byteLevel, template] } : byteLevel,
    decoder: byteLevel,
    model: { type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null,
             end_of_word_suffix: null, fuse_unk: false, byte_fallback: false,
             ignore_merges: kind.ignore_merges ?? false, vocab,
             merges: kind.pairs ? merges : merges.map((pair) => pair.join(" ")) },
  };
}

// The pre-tokens of the corpus in GPT-2's spelling, as the Rust library cuts them.
function wordsOf(kind) {
  const bare = rust.Tokenizer.fromString(JSON.stringify(tokenizerJson({ ...kind, added: [] }, SPELLING, [])));
  const normalize = (text) => bare.getNormalizer()?.normalizeString(text) ?? text;
  return CORPUS.flatMap((text) =>
    bare.getPreTokenizer().preTokenizeString(normalize(text)).map(([word]) => word));
}

// Valid texts, and for each fourth one bytes that are not UTF-8: libraries that take strings get what
// the standard replacement makes of them.
function makeTexts(random, specials) {
  const texts = [...CORPUS, "", " ", "\n"];
  while (texts.length < textsPerKind) texts.push(randomText(random, specials));
  return texts.map((text, i) => {
    const raw = i % 4 === 3 ? damage(random, text) : Buffer.from(text);
    return { raw, text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(raw) };
  });
}

function runOurs(request, texts) {
  const input = [JSON.stringify(request), ...texts.map(({ raw }) => raw.toString("hex"))].join("\n") + "\n";
  const run = spawnSync(binary, { input, encoding: "utf-8", maxBuffer: 1 << 28 });
  if (run.status !== 0) throw new Error(`${binary}: ${run.status} ${run.stderr}`);
  const answers = run.stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  if (answers.length !== texts.length) throw new Error(`${answers.length} answers to ${texts.length} texts`);
  return answers;
}

let compared = 0;
let failures = 0;
function check(kind, oracle, text, found, expected) {
  ++compared;
  if (JSON.stringify(found) === JSON.stringify(expected)) return;
  if (++failures > 20) return;
  console.log(`--- ${kind}: ${oracle}\n  text     ${JSON.stringify(text)}\n` +
              `  expected ${JSON.stringify(expected)}\n  found    ${JSON.stringify(found)}`);
}

async function testKind(kind, random) {
  const { tokens, merges } = train(wordsOf(kind), MERGES);
  const json = tokenizerJson(kind, tokens, merges);
  const texts = makeTexts(random, kind.added.map((t) => t.content));
  const answers = runOurs({ tokenizer_json: JSON.stringify(json) }, texts);
  const reference = rust.Tokenizer.fromString(JSON.stringify(json));
  const js = kind.js === false ? null : new JsTokenizer(json, { clean_up_tokenization_spaces: false });
  let jsCompared = 0;
  for (const [i, { text }] of texts.entries()) {
    const { ids, text: decoded, error } = answers[i];
    if (error) check(kind.name, "error", text, error, null);
    const wanted = (await reference.encode(text)).getIds();
    check(kind.name, "ids of Rust's", text, ids, wanted);
    check(kind.name, "text of Rust's", text, decoded, await reference.decode(wanted, false));
    if (!kind.lossy && !kind.bos && !kind.normalizer) check(kind.name, "round trip", text, decoded, text);
    if (js === null || (kind.jsReads && !kind.jsReads(text))) continue;
    ++jsCompared;
    check(kind.name, "ids of JavaScript's", text, ids, js.encode(text).ids);
  }
  if (js !== null && jsCompared < texts.length / 4) throw new Error(`${kind.name}: too few with JavaScript`);
}

// Kimi's files: tiktoken.model, names of special tokens in the config, all others reserved.
function testTiktoken(random) {
  const { tokens } = train(wordsOf(KINDS.find((kind) => kind.name === "kimi")), MERGES);
  const byteOf = new Map(SPELLING.map((spelling, byte) => [spelling, byte]));
  const base64 = tokens.map((t) => Buffer.from([...t].map((c) => byteOf.get(c))).toString("base64"));
  const base = tokens.length;
  const names = new Map([[base, "[BOS]"], [base + 1, "[EOS]"], [base + 2, "<|im_end|>"],
                         [base + 40, "<|tool_call_begin|>"]]);
  const config = { bos_token: "[BOS]", eos_token: "[EOS]", tokenizer_class: "TikTokenTokenizer",
                   added_tokens_decoder: Object.fromEntries([...names].map(([id, content]) =>
                     [id, { content, special: id < base + 3, lstrip: false, rstrip: false,
                            single_word: false, normalized: false }])) };
  const specials = {};
  for (let id = base; id < base + 256; ++id) specials[names.get(id) ?? `<|reserved_token_${id}|>`] = id;
  const reference = new Tiktoken(`! 0 ${base64.join(" ")}`, specials, kimi);
  const texts = makeTexts(random, [...names.values(), `<|reserved_token_${base + 255}|>`]);
  const answers = runOurs({ tiktoken_model: base64.map((t, rank) => `${t} ${rank}\n`).join(""),
                            config: JSON.stringify(config) }, texts);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  for (const [i, { text }] of texts.entries()) {
    const wanted = reference.encode(text, "all");
    check("tiktoken", "ids", text, answers[i].ids, [...wanted]);
    check("tiktoken", "text", text, answers[i].text, decoder.decode(reference.decode(wanted)));
  }
  reference.free();
}

console.log(`seed ${seed}`);
const random = new Random(seed);
for (const kind of KINDS) await testKind(kind, random);
testTiktoken(random);
console.log(`${KINDS.length + 1} kinds, ${compared} comparisons, ${failures} failures`);
process.exit(failures > 0 ? 1 : 0);
