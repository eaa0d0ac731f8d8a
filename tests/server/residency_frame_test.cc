// Frames against the vectors that the page's tests read too, and against a decoder written from the
// header's description.
#include "server/residency_frame.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/random.h"
#include "server/residency_stream.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

// What a reader knows after a frame.
struct Picture {
  uint64_t sequence = 0;
  Json header;
  std::vector<int64_t> numbers;  // layers' follow
  std::vector<uint8_t> cells, heats;
  std::vector<std::vector<uint64_t>> steps;
};

class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : bytes_(bytes) {}

  void Apply(Picture* picture) {
    const bool is_full = Byte() == 1;
    picture->sequence = Varint();
    if (is_full) {
      picture->header = Json::parse(Take(Varint()));
      size_t cells = 0;
      for (const Json& layer : picture->header["layers"]) cells += layer["experts"].get<size_t>();
      const size_t numbers =
          picture->header["numbers"].size() +
          picture->header["layers"].size() * picture->header["layer_numbers"].size();
      picture->numbers.assign(numbers, 0);
      picture->cells.assign(cells, 0);
      picture->heats.assign(cells, 0);
    }
    for (int64_t& number : picture->numbers) number += Difference();
    size_t at = 0;
    for (uint64_t runs = Varint(); runs > 0; --runs) {
      at += Varint();
      const size_t length = Varint();
      for (auto* plane : {&picture->cells, &picture->heats}) {
        const std::string_view values = Take(length);
        ASSERT_LE(at + length, plane->size());
        std::copy(values.begin(), values.end(), plane->begin() + static_cast<ptrdiff_t>(at));
      }
      at += length;
    }
    picture->steps.clear();
    for (uint64_t steps = Varint(); steps > 0; --steps) {
      auto& step = picture->steps.emplace_back();
      for (size_t i = 0; i < picture->header["step_numbers"].size(); ++i) step.push_back(Varint());
    }
    EXPECT_TRUE(bytes_.empty()) << bytes_.size() << " bytes too many";
  }

 private:
  uint8_t Byte() { return static_cast<uint8_t>(Take(1)[0]); }
  std::string_view Take(size_t count) {
    CHECK(count <= bytes_.size(), "the frame is cut off");
    const std::string_view taken = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return taken;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = Byte();
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
  }
  int64_t Difference() {
    const uint64_t value = Varint();
    return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
  }

  std::string_view bytes_;
};

std::string ToHex(const std::string& bytes) {
  std::string hex;
  for (const char c : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex.push_back(kDigits[static_cast<uint8_t>(c) >> 4]);
    hex.push_back(kDigits[static_cast<uint8_t>(c) & 15]);
  }
  return hex;
}

// The length in front, checked; then the rest.
std::string_view Body(const std::string& frame) {
  uint32_t length = 0;
  for (int i = 3; i >= 0; --i) length = length << 8 | static_cast<uint8_t>(frame[i]);
  EXPECT_EQ(length + 4, frame.size());
  return std::string_view(frame).substr(4);
}

struct Counts {
  std::vector<std::pair<uint16_t, uint16_t>> of_expert;  // lookups and misses
  uint64_t steps = 0;
};

// A snapshot that shows what a vector describes, after those before it. Numbers that it does not name are
// 0. Evictions show by themselves.
ResidencySnapshot SnapshotOf(const Json& vector, Counts* counts) {
  ResidencySnapshot snapshot;
  snapshot.sequence = vector["sequence"];
  snapshot.top_k = 2;
  EngineStats& s = snapshot.stats;
  s.model = "demo";
  s.policy = "heat";
  s.isa = "avx2";
  s.io = "io_uring";
  s.threads = 2;
  s.residency.slot_bytes = 65536;
  const Json& numbers = vector["numbers"];
  s.uptime_ns = 1000 * numbers.value("uptime_us", int64_t{0});
  s.requests = numbers.value("requests", 0u);
  s.decode.tokens = numbers.value("decode_tokens", 0u);
  s.decode.wall_ns = 1000 * numbers.value("decode_us", int64_t{0});
  s.decode.bytes_read = numbers.value("decode_bytes", uint64_t{0});
  s.decode.stall_ns = 1000 * numbers.value("stall_us", int64_t{0});
  s.residency.decode.prefetch_hit = numbers.value("decode_hits", 0u);
  s.residency.decode.in_flight_miss = numbers.value("decode_misses", 0u);
  s.residency.slot_count = numbers.value("slot_count", 0u);
  s.residency.resident = numbers.value("resident", 0u);
  s.reads.speculative_bytes = numbers.value("bytes_read", uint64_t{0});
  for (const Json& entry : vector["layers"]) {
    LayerStats& layer = s.layers.emplace_back();
    layer.layer = entry["layer"];
    layer.experts = entry["experts"];
    layer.resident = entry["resident"];
    layer.lookups.hit = entry["hits"];
    layer.lookups.cold_miss = entry["misses"];
    layer.stall_ns = 1000 * entry["stall_us"].get<int64_t>();
  }
  for (const uint8_t cell : vector["cells"].get<std::vector<uint8_t>>()) {
    const size_t i = snapshot.residences.size();
    if (counts->of_expert.size() == i) counts->of_expert.push_back({65535, 65535});  // about to wrap
    auto& [lookups, misses] = counts->of_expert[i];
    lookups = static_cast<uint16_t>(lookups + (cell & kCellUsed ? 1 : 0));
    misses = static_cast<uint16_t>(misses + (cell & kCellMissed ? 1 : 0));
    snapshot.residences.push_back(static_cast<Residence>(cell & kCellResidenceMask));
    snapshot.lookups.push_back(lookups);
    snapshot.misses.push_back(misses);
  }
  snapshot.heats = vector["heats"].get<std::vector<uint8_t>>();
  for (const Json& entry : vector["steps"]) {
    StepTimes& step = snapshot.steps.emplace_back();
    step.decode = entry["decode"] == 1;
    step.tokens = entry["tokens"];
    step.attention_us = entry["attention_us"];
    step.expert_us = entry["expert_us"];
    step.stall_us = entry["stall_us"];
    step.other_us = entry["other_us"];
  }
  snapshot.step_count = counts->steps += snapshot.steps.size();
  return snapshot;
}

TEST(ResidencyFrameTest, VectorsAreWhatTheEncoderWrites) {
  std::ifstream file(MORAINE_SOURCE_DIR "/tests/page/residency_frames.json");
  const Json vectors = Json::parse(file);
  ASSERT_FALSE(vectors.empty());
  ResidencyFrameEncoder encoder;
  Counts counts;
  for (const Json& vector : vectors) {
    EXPECT_EQ(ToHex(encoder.Encode(SnapshotOf(vector, &counts))), vector["frame"].get<std::string>())
        << "snapshot " << vector["sequence"];
  }
}

// `before`: its last steps are in this one, too.
ResidencySnapshot RandomSnapshot(Random* random, const std::vector<uint32_t>& layers,
                                 const ResidencySnapshot& before) {
  const auto number = [&] {  // of every magnitude; also smaller than the one before
    return random->Next() >> (14 + random->Next() % 50);
  };
  ResidencySnapshot snapshot;
  snapshot.sequence = number();
  snapshot.stats.uptime_ns = static_cast<int64_t>(number());
  snapshot.stats.decode.tokens = number();
  snapshot.stats.residency.slot_count = static_cast<uint32_t>(number());
  snapshot.stats.memory.resident_set_bytes = number();
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    LayerStats& entry = snapshot.stats.layers.emplace_back();
    entry.layer = layer;
    entry.experts = layers[layer];
    entry.lookups.hit = number();
    entry.stall_ns = static_cast<int64_t>(number());
    for (uint32_t i = 0; i < layers[layer]; ++i) {
      const bool same = random->Next() % 3 != 0;
      snapshot.residences.push_back(same ? Residence::kMemory
                                         : static_cast<Residence>(random->Next() % kResidenceCount));
      snapshot.lookups.push_back(same ? 7 : static_cast<uint16_t>(random->Next()));
      snapshot.misses.push_back(same ? 5 : static_cast<uint16_t>(random->Next()));
      snapshot.heats.push_back(same ? 9 : static_cast<uint8_t>(random->Next()));
    }
  }
  const size_t kept = random->Next() % (before.steps.size() + 1);
  snapshot.steps.assign(before.steps.end() - static_cast<ptrdiff_t>(kept), before.steps.end());
  const size_t fresh = random->Next() % 4;
  for (size_t i = 0; i < fresh; ++i) {
    snapshot.steps.emplace_back().tokens = static_cast<uint32_t>(number());
  }
  snapshot.step_count = before.step_count + fresh;
  return snapshot;
}

TEST(ResidencyFrameTest, AReaderSeesEverySnapshot) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    std::vector<uint32_t> layers(random.Next() % 5);
    for (uint32_t& experts : layers) experts = static_cast<uint32_t>(1 + random.Next() % 200);
    ResidencyFrameEncoder encoder;
    Picture picture;
    ResidencySnapshot before;
    for (int frame = 0; frame < 6; ++frame) {
      const ResidencySnapshot snapshot = RandomSnapshot(&random, layers, before);
      const std::string bytes = encoder.Encode(snapshot);
      Decoder(Body(bytes)).Apply(&picture);
      EXPECT_EQ(picture.sequence, snapshot.sequence);
      EXPECT_EQ(picture.heats, snapshot.heats);
      for (size_t i = 0; i < snapshot.residences.size(); ++i) {
        ASSERT_EQ(picture.cells[i] & kCellResidenceMask, static_cast<int>(snapshot.residences[i]));
        const int marks = picture.cells[i] & ~kCellResidenceMask;
        if (frame == 0) {
          ASSERT_EQ(marks, 0);
          continue;
        }
        ASSERT_EQ((marks & kCellUsed) != 0, snapshot.lookups[i] != before.lookups[i]);
        const bool missed = snapshot.misses[i] != before.misses[i];
        ASSERT_EQ((marks & kCellMissed) != 0, missed);
        ASSERT_EQ((marks & kCellEvicted) != 0, (missed || IsInMemory(before.residences[i])) &&
                                                   snapshot.residences[i] == Residence::kDrive);
      }
      std::map<std::string, int64_t> numbers;
      for (size_t i = 0; i < picture.header["numbers"].size(); ++i) {
        numbers[picture.header["numbers"][i]] = picture.numbers[i];
      }
      EXPECT_EQ(numbers["uptime_us"], snapshot.stats.uptime_ns / 1000);
      EXPECT_EQ(numbers["decode_tokens"], static_cast<int64_t>(snapshot.stats.decode.tokens));
      EXPECT_EQ(numbers["slot_count"], snapshot.stats.residency.slot_count);
      EXPECT_EQ(numbers["resident_set_bytes"],
                static_cast<int64_t>(snapshot.stats.memory.resident_set_bytes));
      const size_t fresh = snapshot.step_count - before.step_count;
      ASSERT_EQ(picture.steps.size(), fresh);
      for (size_t i = 0; i < fresh; ++i) {
        EXPECT_EQ(picture.steps[i][1], snapshot.steps[snapshot.steps.size() - fresh + i].tokens);
      }
      before = snapshot;
    }
  }
}

TEST(ResidencyFrameTest, NothingNewCostsAByteANumber) {
  Random random(1);
  ResidencySnapshot snapshot = RandomSnapshot(&random, {128, 128}, ResidencySnapshot());
  ResidencyFrameEncoder encoder;
  Picture picture;
  Decoder(Body(encoder.Encode(snapshot))).Apply(&picture);
  snapshot.sequence = 1;
  // Length, kind, sequence, one zero a number, no runs, no steps.
  EXPECT_EQ(encoder.Encode(snapshot).size(), 4 + 1 + 1 + picture.numbers.size() + 1 + 1);
}

// A step is in one frame, whichever snapshots the reader has seen; what no snapshot has any more is lost.
TEST(ResidencyFrameTest, StepsOfSnapshotsThatWereMissedAreSent) {
  const auto snapshot = [](std::initializer_list<uint32_t> tokens, uint64_t count) {
    ResidencySnapshot made;
    for (const uint32_t value : tokens) made.steps.emplace_back().tokens = value;
    made.step_count = count;
    return made;
  };
  const std::tuple<ResidencySnapshot, std::vector<uint32_t>> cases[] = {
      {snapshot({1, 2}, 5), {1, 2}},        // the first: all that it has
      {snapshot({2, 3, 4}, 7), {3, 4}},     // the one with only 3 was missed
      {snapshot({2, 3, 4}, 7), {}},
      {snapshot({9, 10}, 13), {9, 10}}};    // 5 to 8 are gone
  ResidencyFrameEncoder encoder;
  Picture picture;
  for (const auto& [made, expected] : cases) {
    Decoder(Body(encoder.Encode(made))).Apply(&picture);
    std::vector<uint32_t> tokens;
    for (const auto& step : picture.steps) tokens.push_back(static_cast<uint32_t>(step[1]));
    EXPECT_EQ(tokens, expected);
  }
}

TEST(ResidencyStreamTest, EverySnapshotIsSentOnceAndSilenceIsBroken) {
  const auto feed = std::make_shared<ResidencyFeed>();
  ResidencyStream stream(feed->TryWatch(1));
  EXPECT_EQ(stream.Next(), "");
  feed->Publish(std::make_unique<ResidencySnapshot>());
  const std::string full = stream.Next();
  EXPECT_EQ(full[4], 1);
  int quiet = 1;
  std::string bytes;
  for (; bytes.empty(); ++quiet) bytes = stream.Next();
  EXPECT_EQ(bytes, std::string(4, '\0'));
  EXPECT_EQ(quiet * ResidencyStream::kInterval, std::chrono::milliseconds(10'200));
  feed->Publish(std::make_unique<ResidencySnapshot>());
  EXPECT_EQ(stream.Next()[4], 2);
}

}  // namespace
}  // namespace moraine
