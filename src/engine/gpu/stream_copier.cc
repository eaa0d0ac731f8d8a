#include "engine/gpu/stream_copier.h"

#include <algorithm>

namespace moraine {

Result<StreamCopier> StreamCopier::Create(gpu::Stream stream, gpu::LinkPacer* pacer) {
  StreamCopier copier;
  copier.stream_ = stream;
  copier.pacer_ = pacer;
  for (gpu::Event& event : copier.events_) {
    ASSIGN_OR_RETURN(event, gpu::Event::Create());
  }
  return copier;
}

Status StreamCopier::Copy(std::byte* to, const std::byte* from, uint64_t bytes) {
  return pacer_ != nullptr ? pacer_->Copy(to, from, bytes) : gpu::Copy(to, from, bytes, stream_);
}

Result<uint64_t> StreamCopier::Mark() {
  if (next_ >= kMarks) Wait(next_ - kMarks);
  RETURN_IF_ERROR(EventOf(next_).Record(stream_));
  return next_++;
}

bool StreamCopier::Reached(uint64_t mark) {
  if (mark < reached_) return true;
  const Result<bool> reached = EventOf(mark).Reached();
  if (reached.ok() && !*reached) return false;
  reached_ = mark + 1;
  return true;
}

void StreamCopier::Wait(uint64_t mark) {
  if (mark < reached_) return;
  static_cast<void>(EventOf(mark).Synchronize());  // whoever uses what was copied is told
  reached_ = mark + 1;
}

}  // namespace moraine
