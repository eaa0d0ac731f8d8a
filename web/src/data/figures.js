// Figures from the counters of two moments. Every one is a difference: what happened between them. null
// where nothing happened that it could be told from.

const ratio = (part, whole) => (whole > 0 ? part / whole : null);

export function figures(before, after) {
  const d = (name) => after[name] - before[name];
  const tokens = d('decode_tokens');
  const hits = d('decode_hits') + d('prefill_hits');
  const misses = d('decode_misses') + d('prefill_misses');
  return {
    seconds: d('uptime_us') / 1e6,
    tokens,
    tokensPerSecond: ratio(tokens * 1e6, d('decode_us')),
    promptTokensPerSecond: ratio(d('prefill_tokens') * 1e6, d('prefill_us')),
    hitRate: ratio(hits, hits + misses),
    decodeHitRate: ratio(d('decode_hits'), d('decode_hits') + d('decode_misses')),
    bytesPerToken: ratio(d('decode_bytes'), tokens),
    stallMsPerToken: ratio(d('stall_us') / 1e3, tokens),
    readBytesPerSecond: ratio(d('bytes_read') * 1e6, d('read_busy_us')),
    evictions: d('evictions'),
    prefetchUsed: ratio(d('prefetch_used'), d('prefetch_used') + d('prefetch_wasted')),
  };
}

// The parts of a step's time, in the order in which they are stacked. They sum to the wall time.
export const COMPONENTS = [
  { key: 'attention_us', name: 'Attention', what: 'attention, norms, routers, dense matrices' },
  { key: 'expert_us', name: 'Experts', what: 'routed expert kernels' },
  { key: 'stall_us', name: 'Stall', what: 'waiting for expert reads with nothing to compute' },
  { key: 'verify_us', name: 'Checksums', what: 'checksums of records that arrived' },
  { key: 'residency_us', name: 'Residency', what: 'lookups, evictions, submitting and reaping reads' },
  { key: 'other_us', name: 'Other', what: 'the rest: sampling, text, the queue' },
];

// Per layer between two moments: stall in ms a token, hit rate, lookups.
export function layerFigures(before, after) {
  const tokens = after.numbers.decode_tokens - before.numbers.decode_tokens +
                 after.numbers.prefill_tokens - before.numbers.prefill_tokens;
  return after.layers.map((layer, i) => {
    const old = before.layers[i];
    const hits = layer.hits - old.hits;
    const lookups = hits + layer.misses - old.misses;
    return {
      resident: layer.resident,
      lookups,
      stallMs: tokens > 0 ? (layer.stall_us - old.stall_us) / 1e3 / tokens : null,
      hitRate: ratio(hits, lookups),
    };
  });
}
