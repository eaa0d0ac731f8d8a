// llama.cpp over mmap: prefills random tokens, decodes by sampling, prints one JSON line.
//
//   node llama_cpp.mjs GGUF PREFILL_TOKENS DECODE_TOKENS [THREADS]
//
// CPU only, mmap on, no mlock, one sequence. Bytes are what this process made the kernel read from
// the drive (/proc/self/io read_bytes: readahead and page faults are charged to the process).
import fs from "node:fs";
import {getLlama} from "node-llama-cpp";

const [path, prefillText, decodeText, threadsText = "2"] = process.argv.slice(2);
const prefillTokens = Number(prefillText), decodeTokens = Number(decodeText);
const threads = Number(threadsText);
if (!path || !(prefillTokens > 1) || !(decodeTokens > 0) || !(threads > 0)) {
    console.error("usage: llama_cpp.mjs GGUF PREFILL_TOKENS DECODE_TOKENS [THREADS]");
    process.exit(2);
}

function counters() {
    const io = fs.readFileSync("/proc/self/io", "utf8");
    return {
        ns: process.hrtime.bigint(),
        bytes: Number(/^read_bytes: (\d+)$/m.exec(io)[1]),
        majorFaults: process.resourceUsage().majorPageFault,
    };
}

function difference(from, to, tokens) {
    const seconds = Number(to.ns - from.ns) * 1e-9;
    return {
        tokens,
        tok_per_s: tokens / seconds,
        bytes_per_token: (to.bytes - from.bytes) / tokens,
        major_faults_per_token: (to.majorFaults - from.majorFaults) / tokens,
        read_gb_per_s: (to.bytes - from.bytes) * 1e-9 / seconds,
    };
}

// Park and Miller's generator: the same prompt every time.
function randomTokens(count, vocabulary) {
    let state = 1;
    return Array.from({length: count}, () => (state = state * 48271 % 2147483647) % vocabulary);
}

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error",
                              progressLogs: false, maxThreads: threads});
const beforeLoad = counters();
const model = await llama.loadModel({modelPath: path, gpuLayers: 0, useMmap: true, useMlock: false,
                                     checkTensors: false, ignoreMemorySafetyChecks: true});
const context = await model.createContext({contextSize: prefillTokens + decodeTokens + 64,
                                           batchSize: 512, sequences: 1, threads,
                                           ignoreMemorySafetyChecks: true});
const sequence = context.getSequence();
const loaded = counters();

const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
const prompt = randomTokens(prefillTokens, vocabulary - 1);
await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1));
const prefilled = counters();

// The first token's step evaluates the prompt's last token: it is a decode step like the others.
let decoded = 0;
const options = {temperature: 1, topK: 40, topP: 1, minP: 0, seed: 1, yieldEogToken: true};
for await (const _ of sequence.evaluate(prompt.slice(-1), options)) {
    if (++decoded === decodeTokens) break;
}
const done = counters();

console.log(JSON.stringify({
    peer: `llama.cpp ${llama.llamaCppRelease.release}`,
    load_seconds: Number(loaded.ns - beforeLoad.ns) * 1e-9,
    prefill: difference(loaded, prefilled, prefillTokens - 1),
    decode: difference(prefilled, done, decoded),
}));
process.exit(0);
