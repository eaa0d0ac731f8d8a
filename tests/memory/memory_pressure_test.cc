#include "memory/memory_pressure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace moraine {
namespace {

using testing::HasSubstr;

TEST(MemoryPressure, ParsesTheTotalOfSome) {
  const auto parsed =
      ParsePressure("some avg10=1.20 avg60=0.30 avg300=0.00 total=123456\n"
                    "full avg10=0.00 avg60=0.00 avg300=0.00 total=99\n");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed, 123456u);
  EXPECT_EQ(*ParsePressure("full total=1\nsome avg10=0 total=7"), 7u);
  EXPECT_THAT(ParsePressure("").status().message(), HasSubstr("'some'"));
  EXPECT_THAT(ParsePressure("some avg10=1\nfull total=3\n").status().message(),
              HasSubstr("'some total'"));
  EXPECT_THAT(ParsePressure("some total=x").status().message(), HasSubstr("found 'x'"));
}

TEST(MemoryPressure, FindsItsOwnCgroupsFileElseTheMachines) {
  const std::string root = testing::TempDir() + "/pressure-" + std::to_string(getpid());
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  };
  EXPECT_EQ(FindPressureFile(root).status().code(), StatusCode::kUnsupported);
  write("/proc/self/cgroup", "4:memory:/v1\n0::/pod/moraine\n");
  write("/proc/pressure/memory", "some total=0");
  EXPECT_EQ(*FindPressureFile(root), root + "/proc/pressure/memory");
  write("/sys/fs/cgroup/pod/moraine/memory.pressure", "some total=0");
  EXPECT_EQ(*FindPressureFile(root), root + "/sys/fs/cgroup/pod/moraine/memory.pressure");
  std::filesystem::remove_all(root);
}

// Plays one reading a second with a given share of stalled time.
class Player {
 public:
  Player() { Play(1, 0); }  // the first reading says nothing
  void Play(int seconds, double share) {
    for (int i = 0; i < seconds; ++i) {
      now_ns_ += 1'000'000'000;
      stalled_us_ += static_cast<uint64_t>(share * 1e6);
      const auto budget = controller_.OnReading(now_ns_, stalled_us_, limits_);
      if (!budget) continue;
      EXPECT_NE(*budget, limits_.current);
      limits_.current = *budget;
      ++changes_;
    }
  }
  uint64_t budget() const { return limits_.current; }
  int changes() const { return changes_; }

 private:
  PressureController controller_;
  PressureController::Limits limits_{100, 800, 800};
  int64_t now_ns_ = 0;
  uint64_t stalled_us_ = 0;
  int changes_ = 0;
};

TEST(PressureController, ShrinksOnSustainedPressureOnly) {
  Player player;
  for (int i = 0; i < 20; ++i) {
    player.Play(2, 0.9);
    player.Play(1, 0.05);
  }
  EXPECT_EQ(player.changes(), 0) << "two seconds are a peak";
  player.Play(3, 0.1);
  EXPECT_EQ(player.budget(), 700u);
  player.Play(2, 0.1);
  EXPECT_EQ(player.budget(), 700u) << "what was given back gets time to show";
  player.Play(60, 0.5);
  EXPECT_EQ(player.budget(), 100u) << "the minimum holds";
  EXPECT_EQ(player.changes(), 7);
}

TEST(PressureController, GrowsBackSlowlyAfterAMinuteOfCalm) {
  Player player;
  player.Play(6, 0.5);
  ASSERT_EQ(player.budget(), 600u);
  player.Play(200, 0.05);
  EXPECT_EQ(player.budget(), 600u) << "between the thresholds nothing changes";
  player.Play(59, 0.0);
  EXPECT_EQ(player.budget(), 600u);
  player.Play(1, 0.0);
  EXPECT_EQ(player.budget(), 625u);
  player.Play(10, 0.0);
  EXPECT_EQ(player.budget(), 650u);
  player.Play(600, 0.0);
  EXPECT_EQ(player.budget(), 800u) << "up to the maximum";
}

TEST(PressureController, ARelapseDoublesTheCalmThatIsAskedFor) {
  Player player;
  player.Play(3, 0.5);
  player.Play(60, 0.0);
  ASSERT_EQ(player.budget(), 725u);
  player.Play(3, 0.5);  // at once again
  ASSERT_EQ(player.budget(), 625u);
  player.Play(119, 0.0);
  EXPECT_EQ(player.budget(), 625u);
  player.Play(1, 0.0);
  EXPECT_EQ(player.budget(), 650u);
}

}  // namespace
}  // namespace moraine
