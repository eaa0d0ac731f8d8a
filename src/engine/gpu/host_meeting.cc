#include "engine/gpu/host_meeting.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "base/bytes.h"
#include "base/check.h"
#include "engine/gpu/pass_layout.h"

namespace moraine {
namespace {

// The GPU reads and writes these words, too: release pairs with the kernels' acquire, and acquire
// with their release.
void Tell(uint32_t& word, uint32_t value) {
  std::atomic_ref<uint32_t>(word).store(value, std::memory_order_release);
}
uint32_t Ask(uint32_t& word) {
  return std::atomic_ref<uint32_t>(word).load(std::memory_order_acquire);
}

}  // namespace

Result<std::unique_ptr<HostMeeting>> HostMeeting::Create(const ModelConfig& config,
                                                         const VramPlan& plan,
                                                         GpuHandover& handover,
                                                         const KvPool& pool) {
  std::unique_ptr<HostMeeting> meeting(new HostMeeting(config, handover, pool));
  meeting->turns_.assign(config.layers.size(), 0);
  for (uint32_t layer = 0; layer < config.layers.size(); ++layer) {
    if (plan.anchored[layer]) continue;
    meeting->layers_.push_back(layer);
    meeting->turns_[layer] = static_cast<uint32_t>(meeting->layers_.size());
  }
  const uint64_t ranked_bytes = AlignUp(uint64_t{kFewTokens} * config.top_k * sizeof(float), 256);
  const uint64_t row_bytes = AlignUp(uint64_t{kFewTokens} * config.hidden * sizeof(float), 256);
  const uint64_t table_bytes = AlignUp(config.expert_count * sizeof(std::byte*), 256);
  ASSIGN_OR_RETURN(meeting->memory_,
                   gpu::PinnedMemory::Allocate(sizeof(gpu::HostMailbox) + table_bytes +
                                               2 * ranked_bytes + 3 * row_bytes + 256));
  std::byte* next = meeting->memory_.data();
  const auto take = [&](uint64_t bytes) {
    std::byte* const at = next;
    next += bytes;
    return at;
  };
  meeting->mailbox_ = new (take(256)) gpu::HostMailbox();
  static_assert(sizeof(gpu::HostMailbox) <= 256);
  meeting->host_records_ = reinterpret_cast<const std::byte**>(take(table_bytes));
  std::fill_n(meeting->host_records_, config.expert_count, nullptr);
  for (int i = 0; i < 2; ++i) {
    meeting->weights_[i] = reinterpret_cast<float*>(take(ranked_bytes));
    meeting->hidden_[i] = reinterpret_cast<float*>(take(row_bytes));
  }
  meeting->sum_ = reinterpret_cast<float*>(take(row_bytes));
  ASSIGN_OR_RETURN(meeting->on_device_, gpu::DeviceMemory::Allocate(table_bytes + sizeof(uint32_t),
                                                                    "exchange with the host"));
  return meeting;
}

void HostMeeting::FindPool() {
  if (pool_.format() != KvFormat::kF32 && pool_.format() != KvFormat::kBf16) return;
  pool_on_device_ = gpu::MappedAddress(pool_.memory().data());
}

const std::byte* const* HostMeeting::records() const {
  return reinterpret_cast<const std::byte* const*>(on_device_.data());
}

Status HostMeeting::EnqueueLayer(uint32_t layer, gpu::LayerToHost to_host,
                                 gpu::Stream stream) const {
  if (pool_on_device_ != nullptr) {
    to_host.kv_rows.host_blocks =
        pool_on_device_ + (pool_.layer(layer) - pool_.memory().data());
  } else if (to_host.expert_count == 0) {
    return OkStatus();
  }
  to_host.host_experts = handover_.routed(layer);
  return gpu::RunLayerToHost(to_host, stream);
}

Status HostMeeting::EnqueueExchange(uint32_t layer, gpu::HostExchange exchange,
                                    gpu::Stream stream) const {
  const uint32_t turn = turns_[layer];
  if (pool_on_device_ != nullptr) {
    exchange.kv_rows.host_blocks = pool_on_device_ + (pool_.layer(layer) - pool_.memory().data());
  }
  exchange.host_mailbox = mailbox_;
  exchange.turn = turn;
  exchange.host_experts = handover_.routed(layer);
  exchange.host_weights = weights_[turn % 2];
  exchange.host_x = hidden_[turn % 2];
  exchange.host_records = host_records_;
  exchange.records = reinterpret_cast<const std::byte**>(on_device_.data());
  exchange.sum_state = reinterpret_cast<uint32_t*>(
      on_device_.data() + on_device_.size_bytes() - sizeof(uint32_t));
  return gpu::RunHostExchange(exchange, stream);
}

Status HostMeeting::EnqueueSum(uint32_t layer, gpu::HostSum sum, gpu::Stream stream) const {
  sum.host_mailbox = mailbox_;
  sum.turn = turns_[layer];
  sum.sum_state = reinterpret_cast<uint32_t*>(
      on_device_.data() + on_device_.size_bytes() - sizeof(uint32_t));
  sum.host_sum = sum_;
  return gpu::RunAddHostSum(sum, stream);
}

void HostMeeting::Begin() {
  for (uint32_t* word :
       {&mailbox_->routed, &mailbox_->timed_out, &mailbox_->placed, &mailbox_->computed}) {
    Tell(*word, 0);
  }
}

void HostMeeting::Abandon() {
  Tell(mailbox_->placed, gpu::kAbandoned);
  Tell(mailbox_->computed, gpu::kAbandoned);
}

bool HostMeeting::Routed(uint32_t turn) const { return Ask(mailbox_->routed) >= turn; }
bool HostMeeting::timed_out() const { return Ask(mailbox_->timed_out) != 0; }

RoutedLayer HostMeeting::routed(uint32_t turn, uint32_t token_count) const {
  const uint32_t layer = layers_[turn - 1];
  return {.layer = layer,
          .token_count = token_count,
          .top_k = config_.top_k,
          .experts = handover_.routed(layer),
          .weights = weights_[turn % 2],
          .hidden = hidden_[turn % 2]};
}

bool HostMeeting::SumFollows(const RoutedLayer& layer) const {
  const uint32_t* const end = layer.experts + layer.token_count * layer.top_k;
  return std::any_of(layer.experts, end,
                     [&](uint32_t expert) { return host_records_[expert] == nullptr; });
}

void HostMeeting::TellPlaced(uint32_t turn, bool sum_follows) {
  Tell(mailbox_->placed, gpu::PlacedWord(turn, sum_follows));
}

void HostMeeting::TellComputed(uint32_t turn) { Tell(mailbox_->computed, turn); }

}  // namespace moraine
