#include "engine/gpu/gpu_link.h"

#include "memory/cuda/gpu_devices.h"

namespace moraine {

Result<std::unique_ptr<GpuLink>> GpuLink::Create(GpuStage& from, GpuStage& to, uint32_t max_tokens,
                                                 uint32_t columns) {
  std::unique_ptr<GpuLink> link(new GpuLink(from, to));
  link->token_bytes_ = columns * sizeof(float);
  ASSIGN_OR_RETURN(link->reaches_peer_, gpu::AllowPeerAccess(from.device(), to.device()));
  RETURN_IF_ERROR(to.Use());
  ASSIGN_OR_RETURN(link->taken_, gpu::Event::Create());
  ASSIGN_OR_RETURN(link->inbox_, gpu::DeviceMemory::Allocate(max_tokens * link->token_bytes_,
                                                             "hidden states from another GPU"));
  RETURN_IF_ERROR(from.Use());
  ASSIGN_OR_RETURN(link->copy_stream_, gpu::OwnedStream::Create());
  ASSIGN_OR_RETURN(link->computed_, gpu::Event::Create());
  ASSIGN_OR_RETURN(link->arrived_, gpu::Event::Create());
  return link;
}

GpuLink::~GpuLink() {
  if (copy_stream_.get() != nullptr) static_cast<void>(copy_stream_.Synchronize());
}

Status GpuLink::Bring(uint32_t tokens) {
  const uint64_t bytes = tokens * token_bytes_;
  const gpu::PeerCopy copy = {.to = inbox_.data(),
                              .to_device = to_.device(),
                              .from = from_.pass().hidden(),
                              .from_device = from_.device(),
                              .bytes = bytes};
  RETURN_IF_ERROR(computed_.Record(from_.stream()));
  RETURN_IF_ERROR(computed_.Before(copy_stream_.get()));
  RETURN_IF_ERROR(taken_.Before(copy_stream_.get()));
  RETURN_IF_ERROR(gpu::CopyToPeer(copy, copy_stream_.get()));
  RETURN_IF_ERROR(arrived_.Record(copy_stream_.get()));
  RETURN_IF_ERROR(arrived_.Before(from_.stream()));
  RETURN_IF_ERROR(arrived_.Before(to_.stream()));
  RETURN_IF_ERROR(gpu::Copy(to_.pass().hidden(), inbox_.data(), bytes, to_.stream()));
  return taken_.Record(to_.stream());
}

Status GpuLink::BringToIdle(uint32_t tokens) {
  const gpu::PeerCopy copy = {.to = to_.pass().hidden(),
                              .to_device = to_.device(),
                              .from = from_.pass().hidden(),
                              .from_device = from_.device(),
                              .bytes = tokens * token_bytes_};
  RETURN_IF_ERROR(gpu::CopyToPeer(copy, from_.stream()));
  RETURN_IF_ERROR(computed_.Record(from_.stream()));
  return computed_.Before(to_.stream());
}

}  // namespace moraine
