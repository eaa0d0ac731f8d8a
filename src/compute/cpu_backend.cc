#include "compute/cpu_backend.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "compute/cpu/activations.h"
#include "compute/cpu/attention.h"
#include "compute/cpu/expert_runner.h"
#include "compute/cpu/gated_delta.h"
#include "compute/cpu/isa.h"
#include "compute/cpu/panel.h"
#include "compute/cpu/stacked_matmul.h"

namespace moraine {
namespace {

// Elementwise work below this many floats (about 10 us) stays on the calling thread.
constexpr size_t kInlineFloats = size_t{1} << 15;

}  // namespace

class CpuBackend::Impl {
 public:
  Impl(Isa isa, ThreadPool& pool, uint32_t max_tokens, uint32_t max_cols)
      : isa_(isa),
        kernels_(KernelsOf(isa)),
        pool_(pool),
        dense_input_(max_tokens, max_cols),
        dense_packed_(BlockCount(max_tokens), max_cols),
        stacked_(kernels_, pool, max_cols),
        experts_(kernels_, pool, max_tokens, max_cols),
        attention_(kernels_, pool) {
    CHECK(IsaSupported(isa), std::string("this CPU lacks ") + IsaName(isa));
    CHECK(max_tokens > 0 && max_cols > 0);
  }

  void MatMulMany(std::span<const MatMulTarget> targets, const float* x, size_t x_stride,
                  uint32_t token_count) {
    if (targets.empty() || token_count == 0) return;
    bool want_floats = false, want_codes = false;
    uint32_t panels = 0;
    for (const MatMulTarget& target : targets) {
      CHECK(target.w.cols == targets[0].w.cols, "matrices on one input have its column count");
      (IsQuantised(target.w.encoding) ? want_codes : want_floats) = true;
      panels += PanelCount(target.w.rows);
    }
    dense_input_.Prepare(kernels_, pool_, x, x_stride, token_count, targets[0].w.cols, want_floats,
                         want_codes);
    packs_dense_ = want_codes && token_count >= kernels_.packed_tokens;
    if (packs_dense_) PackInput(token_count);
    const PanelSplit split =
        PanelSplit::Choose(panels, token_count, static_cast<uint32_t>(pool_.thread_count()));
    pool_.ParallelFor(split.task_count(), [&](uint32_t task, uint32_t) {
      const PanelSplit::Part part = split.part(task);
      uint32_t first = 0;  // of this target among all panels
      for (const MatMulTarget& target : targets) {
        const uint32_t end = first + PanelCount(target.w.rows);
        const uint32_t panel_end = std::min(part.panel_end, end);
        for (uint32_t p = std::max(part.panel_begin, first); p < panel_end; p += kMaxPanels) {
          RunPanels(target, p - first, std::min(kMaxPanels, panel_end - p), part.token_begin,
                    part.token_end);
        }
        first = end;
      }
    });
  }

  template <typename Function>
  void ForRows(uint32_t rows, uint32_t cols, Function function) {
    if (size_t{rows} * cols <= kInlineFloats) {
      for (uint32_t row = 0; row < rows; ++row) function(row);
    } else {
      pool_.ParallelFor(rows, [&](uint32_t row, uint32_t) { function(row); });
    }
  }

  // function(begin, count) for runs of kInlineFloats.
  template <typename Function>
  void ForRuns(size_t count, Function function) {
    const uint32_t runs = static_cast<uint32_t>((count + kInlineFloats - 1) / kInlineFloats);
    pool_.ParallelFor(runs, [&](uint32_t run, uint32_t) {
      const size_t begin = run * kInlineFloats;
      function(begin, std::min(kInlineFloats, count - begin));
    });
  }

  const Isa isa_;
  const KernelTable& kernels_;
  ThreadPool& pool_;
  Activations dense_input_;
  PackedActivations dense_packed_;
  bool packs_dense_ = false;
  StackedMatMul stacked_;
  ExpertRunner experts_;
  AttentionRunner attention_;

 private:
  void PackInput(uint32_t token_count) {
    const uint32_t blocks = BlockCount(token_count);
    dense_packed_.Shape(blocks, dense_input_.cols());
    pool_.ParallelFor(blocks, [&](uint32_t block, uint32_t) {
      const uint32_t first = block * kPackedTokens;
      dense_packed_.PackBlock(block, dense_input_, nullptr, first,
                              std::min(kPackedTokens, token_count - first));
    });
  }

  void RunPanels(const MatMulTarget& target, uint32_t panel, uint32_t count, uint32_t token_begin,
                 uint32_t token_end) {
    float* y = target.y + token_begin * target.y_stride + panel * kTileRows;
    PanelArguments arguments = ArgumentsForPanels(target.w, panel, count, y);
    dense_input_.FillArguments(token_begin, &arguments);
    if (packs_dense_ && IsQuantised(target.w.encoding)) {
      dense_packed_.FillArguments(token_begin, &arguments);
    }
    arguments.token_count = token_end - token_begin;
    arguments.y_stride = target.y_stride;
    PanelKernel(kernels_, target.w.encoding)(arguments);
  }
};

CpuBackend::CpuBackend(Isa isa, ThreadPool& pool, uint32_t max_tokens, uint32_t max_cols)
    : impl_(std::make_unique<Impl>(isa, pool, max_tokens, max_cols)) {}
CpuBackend::~CpuBackend() = default;

Isa CpuBackend::isa() const { return impl_->isa_; }
ThreadPool& CpuBackend::pool() { return impl_->pool_; }

void CpuBackend::MatMul(const MatrixView& w, const float* x, size_t x_stride, uint32_t token_count,
                        float* y, size_t y_stride) {
  const MatMulTarget target{w, y, y_stride};
  impl_->MatMulMany({&target, 1}, x, x_stride, token_count);
}

void CpuBackend::MatMulMany(std::span<const MatMulTarget> targets, const float* x, size_t x_stride,
                            uint32_t token_count) {
  impl_->MatMulMany(targets, x, x_stride, token_count);
}

void CpuBackend::SetExpertInput(const float* x, size_t x_stride, uint32_t token_count,
                                uint32_t hidden, Encoding encoding) {
  impl_->experts_.SetInput(x, x_stride, token_count, hidden, encoding);
}

void CpuBackend::RunExperts(std::span<const ExpertTask> tasks) { impl_->experts_.Run(tasks); }

void CpuBackend::CombineExperts(const ExpertCombination& c) {
  const size_t hidden = c.hidden;
  pool().ParallelFor(c.token_count, [&](uint32_t t, uint32_t) {
    float* sum = c.out + t * hidden;
    std::fill(sum, sum + hidden, 0.0f);
    for (uint32_t rank = 0; rank < c.top_k; ++rank) {
      const size_t i = size_t{t} * c.top_k + rank;
      const float weight = c.weights[i];
      const float* y = c.outputs + c.rows[i] * hidden;
      for (size_t k = 0; k < hidden; ++k) sum[k] += weight * y[k];
    }
  });
}

void CpuBackend::RmsNorm(const float* x, size_t x_stride, const float* weight, float epsilon,
                         uint32_t rows, uint32_t cols, float* out, size_t out_stride) {
  impl_->ForRows(rows, cols, [&](uint32_t row) {
    impl_->kernels_.rms_norm(x + row * x_stride, weight, epsilon, cols, out + row * out_stride);
  });
}

void CpuBackend::Rope(float* x, size_t x_stride, uint32_t token_count, uint32_t heads,
                      uint32_t head_dim, uint32_t rotary_dim, const float* cos, const float* sin) {
  const uint32_t half = rotary_dim / 2;
  impl_->ForRows(token_count, heads * head_dim, [&](uint32_t token) {
    for (uint32_t head = 0; head < heads; ++head) {
      impl_->kernels_.rope(x + token * x_stride + head * head_dim, half, cos + size_t{token} * half,
                           sin + size_t{token} * half);
    }
  });
}

void CpuBackend::RopeInterleaved(float* x, size_t x_stride, uint32_t token_count, uint32_t heads,
                                 uint32_t head_dim, uint32_t rotary_dim, const float* cos,
                                 const float* sin) {
  const uint32_t half = rotary_dim / 2;
  impl_->ForRows(token_count, heads * rotary_dim, [&](uint32_t token) {
    const float* const c = cos + size_t{token} * half;
    const float* const s = sin + size_t{token} * half;
    for (uint32_t head = 0; head < heads; ++head) {
      float* const pairs = x + token * x_stride + size_t{head} * head_dim;
      for (uint32_t i = 0; i < half; ++i) {
        const float even = pairs[2 * i], odd = pairs[2 * i + 1];
        pairs[2 * i] = even * c[i] - odd * s[i];
        pairs[2 * i + 1] = odd * c[i] + even * s[i];
      }
    }
  });
}

void CpuBackend::Add(float* x, size_t x_stride, const float* y, size_t y_stride, uint32_t rows,
                     uint32_t cols) {
  impl_->ForRows(rows, cols, [&](uint32_t row) {
    impl_->kernels_.add(x + row * x_stride, y + row * y_stride, cols);
  });
}

void CpuBackend::SiluMul(float* gate, const float* up, size_t count) {
  impl_->ForRuns(count, [&](size_t begin, size_t run) {
    impl_->kernels_.silu_mul(gate + begin, up + begin, run, gate + begin);
  });
}

void CpuBackend::SigmoidMul(const float* gate, float* x, size_t count) {
  impl_->ForRuns(count, [&](size_t begin, size_t run) {
    impl_->kernels_.sigmoid_mul(gate + begin, run, x + begin);
  });
}

void CpuBackend::MatMulStacked(const StackedMatMulCall& call) { impl_->stacked_.Run(call); }

void CpuBackend::CausalConv(const CausalConvCall& call) {
  RunCausalConv(impl_->kernels_, impl_->pool_, call);
}

void CpuBackend::GatedDelta(const GatedDeltaCall& call) {
  RunGatedDelta(impl_->kernels_, impl_->pool_, call);
}

void CpuBackend::Attention(const AttentionShape& shape, const float* q, size_t q_stride,
                           const KvView& kv, uint32_t first_position, uint32_t token_count,
                           float* out, size_t out_stride) {
  impl_->attention_.Run({shape, q, q_stride, kv, first_position, token_count, out, out_stride});
}

}  // namespace moraine
