// The figures of MeasureReads on a simulated drive whose speed is known.
#include "io/read_measurement.h"

#include <gtest/gtest.h>

#include <set>

#include "io/simulated_reader.h"
#include "scheduler_fixture.h"

namespace moraine {
namespace {

constexpr uint64_t kRecordBytes = 16 * kBlock;
constexpr uint64_t kRecords = 64;
constexpr int64_t kLatencyNs = 1'000'000;

class MeasureReadsTest : public testing::Test {
 protected:
  // Every read takes exactly 1 ms.
  std::unique_ptr<BlockReader> Drive(uint32_t capacity, SimulatedFaults faults = {}) {
    SimulatedReaderOptions options;
    options.capacity = capacity;
    options.manual_clock = &clock_;
    options.faults = faults;
    options.faults.min_latency_ns = options.faults.max_latency_ns = kLatencyNs;
    options.memory_files["pack"] = RandomBytes(kRecords * kRecordBytes, 9);
    return CreateSimulatedReader(std::move(options));
  }
  static ReadMeasurementOptions Options() {
    ReadMeasurementOptions options;
    options.paths = {"pack"};
    options.pick = [](Random& random) {
      const uint64_t index = random.Below(kRecords);
      return ReadPlace{0, index * kRecordBytes, kRecordBytes, index};
    };
    options.max_record_bytes = kRecordBytes;
    options.records = 1;
    options.seconds = 0.5;
    return options;
  }

  ManualClock clock_;
};

TEST_F(MeasureReadsTest, OneRequestAtATimeOnADriveOfOneMillisecond) {
  const auto measured = MeasureReads(Drive(8), Options(), clock_);
  ASSERT_TRUE(measured.ok()) << measured.status().ToString();
  EXPECT_EQ(measured->records, 500u);
  EXPECT_EQ(measured->requests, 500u);
  EXPECT_EQ(measured->bytes, 500 * kRecordBytes);
  EXPECT_DOUBLE_EQ(measured->seconds, 0.5);
  EXPECT_NEAR(measured->gb_per_s, static_cast<double>(kRecordBytes) * 1e-6, 1e-9);
  EXPECT_DOUBLE_EQ(measured->p50_us, 1000);
  EXPECT_DOUBLE_EQ(measured->p99_us, 1000);
  EXPECT_GT(measured->cpu_s_per_gb, 0);
  EXPECT_EQ(measured->configuration, "simulated");
}

TEST_F(MeasureReadsTest, CapacityLimitsTheRequestsInFlight) {
  ReadMeasurementOptions options = Options();
  options.records = 4;
  options.chunk_bytes = kRecordBytes / 4;
  // Two of a record's four requests at a time: a record takes two milliseconds of the drive.
  const auto measured = MeasureReads(Drive(2), options, clock_);
  ASSERT_TRUE(measured.ok()) << measured.status().ToString();
  EXPECT_NEAR(measured->gb_per_s, static_cast<double>(kRecordBytes) * 0.5e-6,
              0.02 * static_cast<double>(kRecordBytes) * 0.5e-6);
  EXPECT_EQ(measured->requests, 4 * measured->records);
}

TEST_F(MeasureReadsTest, RecordsReachTheirBytesAndTheSeedChoosesThem) {
  const std::vector<std::byte> contents = RandomBytes(kRecords * kRecordBytes, 9);
  std::vector<std::vector<uint64_t>> orders;
  for (const uint64_t seed : {1, 1, 2}) {
    ReadMeasurementOptions options = Options();
    options.seed = seed;
    orders.emplace_back();
    options.on_record = [&](const ReadPlace& place, std::span<const std::byte> bytes) {
      orders.back().push_back(place.tag);
      EXPECT_EQ(std::memcmp(bytes.data(), contents.data() + place.offset, bytes.size()), 0);
      return OkStatus();
    };
    ASSERT_TRUE(MeasureReads(Drive(8), options, clock_).ok());
  }
  EXPECT_EQ(orders[0], orders[1]);
  EXPECT_NE(orders[0], orders[2]);
  EXPECT_GT(std::set<uint64_t>(orders[0].begin(), orders[0].end()).size(), kRecords / 2);
}

TEST_F(MeasureReadsTest, AnErrorOfTheDriveOrOfTheCallbackEndsIt) {
  SimulatedFaults broken;
  broken.error_probability = 1;
  const auto failed = MeasureReads(Drive(8, broken), Options(), clock_);
  EXPECT_EQ(failed.status().code(), StatusCode::kIoError);
  ReadMeasurementOptions options = Options();
  options.on_record = [](const ReadPlace&, std::span<const std::byte>) {
    return Corruption("wrong checksum");
  };
  EXPECT_EQ(MeasureReads(Drive(8), options, clock_).status().message(), "wrong checksum");
  EXPECT_EQ(MeasureReads(Drive(8), {}, clock_).status().code(), StatusCode::kInvalidArgument);
}

TEST(Quantile, NearestRank) {
  std::vector<double> samples = {5, 1, 4, 2, 3};
  EXPECT_EQ(Quantile(&samples, 0.5), 3);
  EXPECT_EQ(Quantile(&samples, 0.99), 5);
  EXPECT_EQ(Quantile(&samples, 0.0), 1);
  samples.clear();
  EXPECT_EQ(Quantile(&samples, 0.5), 0);
}

}  // namespace
}  // namespace moraine
