// What the GPU hands to a waiting host and gets from it, in the middle of a stream's work.
#include "compute/cuda/host_exchange.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

constexpr uint32_t kExperts = 40, kTopK = 4, kTurn = 3, kPages = 5;

// Page-locked, filled with 0xFF.
template <typename T>
struct Pinned {
  explicit Pinned(size_t count) : size(count) {
    void* memory = nullptr;
    CHECK(cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocDefault) == cudaSuccess, "pinned");
    data = static_cast<T*>(memory);
    std::memset(memory, 0xFF, count * sizeof(T));
  }
  ~Pinned() { cudaFreeHost(data); }
  Pinned(const Pinned&) = delete;
  T* data = nullptr;
  size_t size = 0;
};

struct Mailbox : Pinned<HostMailbox> {
  Mailbox() : Pinned(1) { *data = HostMailbox(); }
  static void Say(uint32_t& word, uint32_t value) {
    std::atomic_ref<uint32_t>(word).store(value, std::memory_order_release);
  }
  bool AwaitRouted(uint32_t turn) {
    const auto begin = std::chrono::steady_clock::now();
    while (std::atomic_ref<uint32_t>(data->routed).load(std::memory_order_acquire) < turn) {
      if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(40)) return false;
    }
    return true;
  }
};

class OwnStream {
 public:
  OwnStream() {
    CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess, "stream");
  }
  ~OwnStream() { cudaStreamDestroy(stream_); }
  Stream get() const { return stream_; }
  void Synchronize() const { CHECK(cudaStreamSynchronize(stream_) == cudaSuccess, "stream"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// One layer's worth: inputs on the device, the host's side page-locked.
struct Layer {
  Layer(uint32_t token_count, uint32_t hidden_size, bool f32_rows, uint64_t seed)
      : tokens(token_count),
        hidden(hidden_size),
        f32(f32_rows),
        random(seed),
        x(NormalValues(random, size_t{tokens} * hidden)),
        weights(NormalValues(random, tokens * kTopK)),
        sum(NormalValues(random, size_t{tokens} * hidden)),
        host_experts(tokens * kTopK),
        host_weights(tokens * kTopK),
        host_x(x.size()),
        host_sum(x.size()),
        host_records(kExperts) {
    for (uint32_t i = 0; i < tokens * kTopK; ++i) {
      experts.push_back(static_cast<uint32_t>(random.Below(kExperts)));
    }
    for (uint32_t e = 0; e < kExperts; ++e) {
      host_records.data[e] = random.Chance(0.4)
                                 ? nullptr
                                 : reinterpret_cast<const std::byte*>(random.Next());
    }
    std::memcpy(host_sum.data, sum.data(), sum.size() * sizeof(float));
    device_x = OnDevice(x);
    device_experts = OnDevice(experts);
    device_weights = OnDevice(weights);
    MakeRows();
  }

  void MakeRows() {
    const size_t page = KvPageElements(2, 32) * (f32 ? 4 : 2);
    keys = std::vector<std::byte>(kPages * page);
    for (std::byte& byte : keys) byte = static_cast<std::byte>(random.Below(255));
    values = keys;
    std::ranges::reverse(values);
    device_keys = OnDevice(keys);
    device_values = OnDevice(values);
    for (uint32_t t = 0; t < tokens; ++t) {
      positions.push_back(t % 2 == 0 ? 70 + t : t);
      for (uint32_t i = 0; i < 2; ++i) tables.push_back((t + 3 * i) % kPages);
    }
    device_positions = OnDevice(positions);
    device_tables = OnDevice(tables);
    pool = std::make_unique<Pinned<std::byte>>(2 * keys.size());
  }
  PagedKv Kv() {
    PagedKv kv{.kv_heads = 2, .head_dim = 32, .block_tables = device_tables.data(),
               .table_stride = 2};
    if (f32) {
      kv.keys_f32 = reinterpret_cast<float*>(device_keys.data());
      kv.values_f32 = reinterpret_cast<float*>(device_values.data());
    } else {
      kv.keys = reinterpret_cast<uint16_t*>(device_keys.data());
      kv.values = reinterpret_cast<uint16_t*>(device_values.data());
    }
    return kv;
  }
  HostExchange Exchange(Mailbox& mailbox, uint32_t turn) {
    return {.kv_rows = {.kv = Kv(),
                        .positions = device_positions.data(),
                        .token_count = tokens,
                        .host_blocks = pool->data},
            .host_mailbox = mailbox.data,
            .turn = turn,
            .token_count = tokens,
            .top_k = kTopK,
            .hidden = hidden,
            .experts = device_experts.data(),
            .weights = device_weights.data(),
            .x = device_x.data(),
            .host_experts = host_experts.data,
            .host_weights = host_weights.data,
            .host_x = host_x.data,
            .host_records = host_records.data,
            .records = reinterpret_cast<const std::byte**>(records.data()),
            .sum_state = sum_state.data()};
  }
  HostSum Sum(Mailbox& mailbox, uint32_t turn) {
    return {.host_mailbox = mailbox.data,
            .turn = turn,
            .sum_state = sum_state.data(),
            .host_sum = host_sum.data,
            .token_count = tokens,
            .hidden = hidden,
            .x = device_x.data()};
  }
  // Element by element: rows of the tokens as on the device, all else untouched.
  void CheckPool(bool with_values = true) const {
    const size_t element = f32 ? 4 : 2, row = 32 * element, page = keys.size() / kPages;
    const size_t block_bytes = with_values ? 2 * page : page;
    std::vector<std::byte> expected(pool->size, std::byte{0xFF});
    for (uint32_t t = 0; t < tokens; ++t) {
      const size_t block = tables[2 * t + positions[t] / 64];
      for (size_t head = 0; head < 2; ++head) {
        const size_t at = (head * 64 + positions[t] % 64) * row;
        std::memcpy(&expected[block * block_bytes + at], &keys[block * page + at], row);
        if (!with_values) continue;
        std::memcpy(&expected[block * block_bytes + page + at], &values[block * page + at], row);
      }
    }
    Comparison compare("rows in the pool");
    for (size_t i = 0; i < expected.size(); ++i) {
      compare.Check(i / page, i % page, std::to_integer<int>(pool->data[i]),
                    std::to_integer<int>(expected[i]), 0);
    }
  }

  const uint32_t tokens, hidden;
  const bool f32;
  Random random;
  std::vector<float> x, weights, sum;
  std::vector<uint32_t> experts, positions, tables;
  std::vector<std::byte> keys, values;
  DeviceArray<float> device_x = Poisoned<float>(1), device_weights = Poisoned<float>(1);
  DeviceArray<uint32_t> device_experts = Poisoned<uint32_t>(1);
  DeviceArray<uint32_t> device_positions = Poisoned<uint32_t>(1);
  DeviceArray<uint32_t> device_tables = Poisoned<uint32_t>(1);
  DeviceArray<std::byte> device_keys = Poisoned<std::byte>(1);
  DeviceArray<std::byte> device_values = Poisoned<std::byte>(1);
  DeviceArray<uint64_t> records = Poisoned<uint64_t>(kExperts);
  DeviceArray<uint32_t> sum_state = Poisoned<uint32_t>(1);
  Pinned<uint32_t> host_experts;
  Pinned<float> host_weights, host_x, host_sum;
  Pinned<const std::byte*> host_records;
  std::unique_ptr<Pinned<std::byte>> pool;
};

void CheckRecords(const Layer& layer, bool abandoned) {
  const std::vector<uint64_t> found = Host(layer.records);
  for (uint32_t e = 0; e < kExperts; ++e) {
    const bool chosen = std::ranges::find(layer.experts, e) != layer.experts.end();
    const uint64_t said = reinterpret_cast<uint64_t>(layer.host_records.data[e]);
    EXPECT_EQ(found[e], !chosen ? ~uint64_t{0} : abandoned ? 0 : said) << "expert " << e;
  }
}

TEST(HostExchangeTest, GivesAndTakes) {
  SKIP_WITHOUT_GPU();
  const OwnStream stream;
  for (const bool f32 : {false, true}) {
    for (const uint32_t tokens : {1u, 3u, 8u}) {
      for (const uint32_t hidden : {128u, 2052u, 7168u}) {
        for (const bool follows : {true, false}) {
          SCOPED_TRACE(testing::Message() << tokens << " tokens of " << hidden << ", f32 " << f32);
          Layer layer(tokens, hidden, f32, hidden + tokens);
          Mailbox mailbox;
          mailbox.data->placed = PlacedWord(kTurn - 1, true);
          mailbox.data->computed = kTurn - 1;
          NeedOk(RunHostExchange(layer.Exchange(mailbox, kTurn), stream.get()));
          ASSERT_TRUE(mailbox.AwaitRouted(kTurn));
          for (uint32_t i = 0; i < tokens * kTopK; ++i) {
            EXPECT_EQ(layer.host_experts.data[i], layer.experts[i]);
            EXPECT_EQ(layer.host_weights.data[i], layer.weights[i]);
          }
          EXPECT_EQ(std::memcmp(layer.host_x.data, layer.x.data(), layer.x.size() * 4), 0);
          Mailbox::Say(mailbox.data->placed, PlacedWord(kTurn, follows));
          stream.Synchronize();
          CheckRecords(layer, false);
          layer.CheckPool();
          NeedOk(RunAddHostSum(layer.Sum(mailbox, kTurn), stream.get()));
          if (follows) Mailbox::Say(mailbox.data->computed, kTurn);
          stream.Synchronize();
          const std::vector<float> found = Host(layer.device_x);
          Comparison compare("sum");
          for (size_t i = 0; i < found.size(); ++i) {
            compare.Check(i / hidden, i % hidden, found[i],
                          follows ? layer.x[i] + layer.sum[i] : layer.x[i], 0);
          }
          EXPECT_EQ(mailbox.data->timed_out, 0u);
        }
      }
    }
  }
}

TEST(HostExchangeTest, AnAbandonedStepGoesOn) {
  SKIP_WITHOUT_GPU();
  const OwnStream stream;
  for (const bool middle : {false, true}) {
    Layer layer(3, 256, false, 5);
    Mailbox mailbox;
    NeedOk(RunHostExchange(layer.Exchange(mailbox, 1), stream.get()));
    NeedOk(RunAddHostSum(layer.Sum(mailbox, 1), stream.get()));
    Mailbox::Say(mailbox.data->placed, middle ? PlacedWord(1, true) : kAbandoned);
    Mailbox::Say(mailbox.data->computed, kAbandoned);
    stream.Synchronize();
    CheckRecords(layer, !middle);
    EXPECT_EQ(Host(layer.device_x), layer.x);
  }
}

// Where launches wait for kernels the host cannot answer: the first waits its time, the others do
// not.
TEST(HostExchangeTest, WhoIsNotAnsweredGivesUp) {
  SKIP_WITHOUT_GPU();
  const OwnStream stream;
  for (const bool placed : {false, true}) {
    Layer layer(2, 256, false, 29);
    Mailbox mailbox;
    if (placed) mailbox.data->placed = PlacedWord(1, true);
    const auto begin = std::chrono::steady_clock::now();
    for (const uint32_t turn : {1u, 2u, 3u}) {
      HostExchange exchange = layer.Exchange(mailbox, turn);
      HostSum sum = layer.Sum(mailbox, turn);
      exchange.wait_ms = sum.wait_ms = 200;
      NeedOk(RunHostExchange(exchange, stream.get()));
      NeedOk(RunAddHostSum(sum, stream.get()));
    }
    stream.Synchronize();
    const auto waited = std::chrono::steady_clock::now() - begin;
    EXPECT_GE(waited, std::chrono::milliseconds(200));
    EXPECT_LT(waited, std::chrono::milliseconds(350));
    EXPECT_EQ(mailbox.data->timed_out, 1u);
    EXPECT_EQ(mailbox.data->routed, 3u);
    CheckRecords(layer, true);
    EXPECT_EQ(Host(layer.device_x), layer.x);
  }
}

TEST(HostExchangeTest, LayersThatDoNotMeet) {
  SKIP_WITHOUT_GPU();
  for (const uint32_t tokens : {1u, 8u}) {
    for (const bool with_values : {true, false}) {
      Layer layer(tokens, 128, tokens == 1, 17);
      Mailbox mailbox;
      LayerToHost to_host = {.kv_rows = layer.Exchange(mailbox, 1).kv_rows,
                             .experts = layer.device_experts.data(),
                             .expert_count = with_values ? tokens * kTopK : 0,
                             .host_experts = layer.host_experts.data};
      PagedKv& kv = to_host.kv_rows.kv;
      if (!with_values) kv.values = nullptr, kv.values_f32 = nullptr;
      NeedOk(RunLayerToHost(to_host, nullptr));
      Finish();
      layer.CheckPool(with_values);
      for (uint32_t i = 0; i < tokens * kTopK; ++i) {
        EXPECT_EQ(layer.host_experts.data[i], with_values ? layer.experts[i] : ~0u);
      }
    }
  }
}

TEST(HostExchangeTest, RefusesWhatItCannot) {
  HostExchange exchange;
  exchange.hidden = 130;
  EXPECT_EQ(RunHostExchange(exchange, nullptr).code(), StatusCode::kUnsupported);
  std::byte byte{};
  LayerToHost layer;
  layer.kv_rows.token_count = 1;
  layer.kv_rows.host_blocks = &byte;
  layer.kv_rows.kv.head_dim = 4;
  EXPECT_EQ(RunLayerToHost(layer, nullptr).code(), StatusCode::kUnsupported);
}

// A graph of many layers, as deep as the deepest models and more: launching it must not wait for
// it. Prints what a meeting takes.
TEST(HostExchangeTest, AGraphOfManyMeetings) {
  SKIP_WITHOUT_GPU();
  const OwnStream stream;
  for (const auto& [turns, tokens] :
       {std::pair(100u, 1u), std::pair(1500u, 1u), std::pair(100u, 8u)}) {
    Layer layer(tokens, 2048, false, 23);
    for (uint32_t c = 0; c < tokens * 2048; ++c) layer.host_sum.data[c] = 0;
    Mailbox mailbox;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    // Loads the kernels' code, too.
    Mailbox::Say(mailbox.data->placed, kAbandoned);
    Mailbox::Say(mailbox.data->computed, kAbandoned);
    for (const bool record : {false, true}) {
      if (record) cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal);
      for (uint32_t turn = 1; turn <= turns; ++turn) {
        NeedOk(RunHostExchange(layer.Exchange(mailbox, turn), stream.get()));
        NeedOk(RunAddHostSum(layer.Sum(mailbox, turn), stream.get()));
      }
      record ? static_cast<void>(cudaStreamEndCapture(stream.get(), &graph)) : stream.Synchronize();
    }
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    for (const bool follows : {false, true}) {
      std::vector<double> us;
      for (int round = 0; round < 20; ++round) {
        *mailbox.data = HostMailbox();
        const auto begin = std::chrono::steady_clock::now();
        ASSERT_EQ(cudaGraphLaunch(executable, stream.get()), cudaSuccess);
        ASSERT_EQ(mailbox.data->timed_out, 0u) << "the launch waited for the graph";
        for (uint32_t turn = 1; turn <= turns; ++turn) {
          ASSERT_TRUE(mailbox.AwaitRouted(turn));
          Mailbox::Say(mailbox.data->placed, PlacedWord(turn, follows));
          if (follows) Mailbox::Say(mailbox.data->computed, turn);
        }
        stream.Synchronize();
        us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() -
                                                               begin)
                         .count());
      }
      std::ranges::nth_element(us, us.begin() + 10);
      std::printf("%u meetings of %u tokens in a graph, %s: %.2f us each\n", turns, tokens,
                  follows ? "a sum follows at once" : "no sum", us[10] / turns);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
}

}  // namespace
}  // namespace moraine::gpu
