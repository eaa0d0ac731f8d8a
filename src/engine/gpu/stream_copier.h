// StreamCopier: DeviceCopier over a CUDA stream; a mark is an event. With a pacer copies take as long as over
// a slower link.
//
// Threads: owned by one thread.
#pragma once

#include <array>
#include <cstdint>

#include "engine/gpu/streamed_experts.h"
#include "memory/cuda/gpu_runtime.h"
#include "memory/cuda/link_pacer.h"

namespace moraine {

class StreamCopier final : public DeviceCopier {
 public:
  // pacer: of this stream; null: none. Not owned.
  static Result<StreamCopier> Create(gpu::Stream stream, gpu::LinkPacer* pacer = nullptr);

  Status Copy(std::byte* to, const std::byte* from, uint64_t bytes) override;
  Result<uint64_t> Mark() override;
  bool Reached(uint64_t mark) override;
  void Wait(uint64_t mark) override;

 private:
  // Marks of two layers of experts that came one by one, without waiting for any.
  static constexpr uint64_t kMarks = 1024;

  const gpu::Event& EventOf(uint64_t mark) const { return events_[mark % kMarks]; }

  gpu::Stream stream_ = nullptr;
  gpu::LinkPacer* pacer_ = nullptr;
  std::array<gpu::Event, kMarks> events_;
  uint64_t next_ = 0, reached_ = 0;  // marks below reached_ have been
};

}  // namespace moraine
