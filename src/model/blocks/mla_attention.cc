#include "model/blocks/mla_attention.h"

#include <algorithm>
#include <cstring>

#include "compute/kv_format.h"

namespace moraine {
namespace {

// Queries worked on at a time: the projections around attention are read again for each so many, which
// costs them about a twentieth, and scratch is 92 MB for DeepSeek-V3's 128 heads.
constexpr uint32_t kMlaTokens = 128;

KvFormat LatentFormat(KvFormat format) {
  return format == KvFormat::kF32 ? format : KvFormat::kBf16;
}

// Floats of one query on its way: as projected, absorbed, attended, as values.
size_t QueryFloats(const MlaConfig& c) {
  return size_t{c.heads} * (c.nope_dim + c.rope_dim + c.kv_rank + c.rope_dim + c.kv_rank +
                            c.value_dim);
}

}  // namespace

void MlaAttention::AppendRoles(const MlaConfig& c, uint32_t hidden, RoleList* roles) {
  const uint32_t q = c.heads * (c.nope_dim + c.rope_dim);
  if (c.q_rank > 0) {
    roles->Matrix("q_a", c.q_rank, hidden);
    roles->Norm("q_a_norm", c.q_rank);
    roles->Matrix("q_b", q, c.q_rank);
  } else {
    roles->Matrix("q", q, hidden);
  }
  roles->Matrix("kv_a", c.kv_rank + c.rope_dim, hidden);
  roles->Norm("kv_a_norm", c.kv_rank);
  // kv_b_proj: for each head the rows of its keys, then those of its values.
  const uint32_t both = c.nope_dim + c.value_dim;
  const std::vector<uint64_t> shape = {uint64_t{c.heads} * both, c.kv_rank};
  roles->Stack("k_up", c.heads, c.kv_rank, c.nope_dim,
               {.tensor = "kv_b", .shape = shape, .period = both, .transposed = true});
  roles->Stack("v_up", c.heads, c.value_dim, c.kv_rank,
               {.tensor = "kv_b", .shape = shape, .period = both, .offset = c.nope_dim});
  roles->Matrix("o", hidden, c.heads * c.value_dim);
}

LayerStateShape MlaAttention::StateShape(const MlaConfig& c, KvFormat format) {
  return {.position_bytes = KvHeadBytes(LatentFormat(format), c.kv_rank + c.rope_dim)};
}

size_t MlaAttention::ScratchFloats(const MlaConfig& c, uint32_t, uint32_t max_tokens) {
  const uint32_t queries = std::min(max_tokens, kMlaTokens);
  return Scratch::Padded(size_t{max_tokens} * (c.kv_rank + c.rope_dim)) +
         Scratch::Padded(size_t{max_tokens} * c.q_rank) +
         Scratch::Padded(queries * QueryFloats(c)) + 3 * Scratch::Padded(1);
}

MlaAttention::MlaAttention(const MlaConfig& config, const MixerContext& context,
                           const DenseSource& weights, const std::string& prefix)
    : config_(config), context_(context) {
  if (config.q_rank > 0) {
    q_a_ = weights.Matrix(prefix + "q_a");
    q_a_norm_ = weights.Vector(prefix + "q_a_norm");
  }
  q_b_ = weights.Matrix(prefix + (config.q_rank > 0 ? "q_b" : "q"));
  kv_a_ = weights.Matrix(prefix + "kv_a");
  kv_a_norm_ = weights.Vector(prefix + "kv_a_norm");
  k_up_ = StackOf(weights.Matrix(prefix + "k_up"), config.heads, config.kv_rank);
  v_up_ = StackOf(weights.Matrix(prefix + "v_up"), config.heads, config.value_dim);
  o_ = weights.Matrix(prefix + "o");
}

void MlaAttention::Run(const MixerInput& input, float* out) {
  CpuBackend& backend = *context_.backend;
  Scratch& scratch = *context_.scratch;
  const uint32_t count = input.token_count, hidden = context_.hidden;
  float* const latents = scratch.Take(size_t{count} * key_dim());
  float* const low = scratch.Take(size_t{count} * config_.q_rank);
  CpuBackend::MatMulTarget targets[] = {{kv_a_, latents, key_dim()}, {q_a_, low, config_.q_rank}};
  const size_t target_count = config_.q_rank > 0 ? 2 : 1;
  backend.MatMulMany({targets, target_count}, input.x, hidden, count);
  WriteLatents(input, latents);
  const float* queries = input.x;
  if (config_.q_rank > 0) {
    backend.RmsNorm(low, config_.q_rank, q_a_norm_.data(), config_.norm_epsilon, count,
                    config_.q_rank, low, config_.q_rank);
    queries = low;
  }
  for (uint32_t t = 0; t < count; t += kMlaTokens) {
    Attend(input, t, std::min(kMlaTokens, count - t), queries + size_t{t} * q_b_.cols,
           out + size_t{t} * hidden);
  }
}

void MlaAttention::WriteLatents(const MixerInput& input, float* latents) const {
  const uint32_t count = input.token_count;
  context_.backend->RmsNorm(latents, key_dim(), kv_a_norm_.data(), config_.norm_epsilon, count,
                            config_.kv_rank, latents, key_dim());
  context_.rope->Apply(*context_.backend, latents + config_.kv_rank, key_dim(), {0, count}, 1,
                       key_dim());
  for (const MixerSegment& segment : input.segments) {
    const SequenceState& state = *segment.state;
    const KvFormat format = LatentFormat(state.format());
    const size_t bytes = KvHeadBytes(format, key_dim());
    const PositionBlocks blocks = state.positions(context_.layer);
    const float* from = latents + size_t{segment.first} * key_dim();
    ForBlocks(state.length(), segment.count, [&](uint32_t position, uint32_t part, uint32_t index) {
      EncodeKv(format, from, key_dim(), part, 1, key_dim(),
               {blocks.BlockOf(position), {bytes, 0}, index});
      from += size_t{part} * key_dim();
    });
  }
}

// Tokens first .. first + count - 1 of the batch; query_input and out are those of the first.
void MlaAttention::Attend(const MixerInput& input, uint32_t first, uint32_t count,
                          const float* query_input, float* out) const {
  CpuBackend& backend = *context_.backend;
  Scratch& scratch = *context_.scratch;
  const uint32_t heads = config_.heads, nope = config_.nope_dim, rope = config_.rope_dim;
  const uint32_t rank = config_.kv_rank, head_dim = nope + rope;
  const size_t q_stride = size_t{heads} * head_dim, absorbed_stride = size_t{heads} * key_dim();
  const size_t attended_stride = size_t{heads} * rank;
  const size_t value_stride = size_t{heads} * config_.value_dim;
  const Scratch::Mark mark = scratch.mark();
  float* const q = scratch.Take(count * q_stride);
  float* const absorbed = scratch.Take(count * absorbed_stride);
  float* const attended = scratch.Take(count * attended_stride);
  float* const values = scratch.Take(count * value_stride);

  backend.MatMul(q_b_, query_input, q_b_.cols, count, q, q_stride);
  context_.rope->Apply(backend, q + nope, q_stride, {first, count}, heads, head_dim);
  backend.MatMulStacked({k_up_, q, q_stride, head_dim, count, absorbed, absorbed_stride,
                         key_dim()});
  backend.pool().ParallelFor(count, [&](uint32_t t, uint32_t) {
    for (uint32_t head = 0; head < heads; ++head) {
      std::memcpy(absorbed + t * absorbed_stride + size_t{head} * key_dim() + rank,
                  q + t * q_stride + size_t{head} * head_dim + nope, rope * sizeof(float));
    }
  });

  const AttentionShape shape{.query_heads = heads,
                             .kv_heads = 1,
                             .head_dim = key_dim(),
                             .scale = config_.scale,
                             .value_dim = rank};
  ForSegments(input, first, count, [&](const MixerSegment& segment, uint32_t row, uint32_t rows) {
    const SequenceState& state = *segment.state;
    const KvFormat format = LatentFormat(state.format());
    const PositionBlocks latents = state.positions(context_.layer);
    const KvView view = {format, latents.first, latents.first, {KvHeadBytes(format, key_dim()), 0},
                         latents.blocks, latents.block_bytes};
    backend.Attention(shape, absorbed + (row - first) * absorbed_stride, absorbed_stride, view,
                      state.length() + row - segment.first, rows,
                      attended + (row - first) * attended_stride, attended_stride);
  });
  backend.MatMulStacked({v_up_, attended, attended_stride, rank, count, values, value_stride,
                         config_.value_dim});
  backend.MatMul(o_, values, value_stride, count, out, context_.hidden);
  scratch.Return(mark);
}

}  // namespace moraine
