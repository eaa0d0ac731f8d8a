// Drives are what the probes say, one test excepted, which reads the disk it is on.
#include "store/drive_weights.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <map>
#include <mutex>

#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DriveWeightsTest : public ::testing::Test {
 protected:
  // A directory is on the device that its name begins with: /fast/a is on "fast".
  DriveWeightsTest() {
    probes_.device = [](const std::string& directory) -> Result<std::string> {
      return directory.substr(1, directory.find('/', 1) - 1);
    };
    probes_.bytes_per_second = [this](const std::string& directory) -> Result<double> {
      std::lock_guard lock(mutex_);
      measured_.push_back(directory);
      const auto speed = speeds_.find(directory.substr(1, directory.find('/', 1) - 1));
      if (speed == speeds_.end()) return IoError(directory + ": broken");
      return speed->second;
    };
  }
  // The weights that an import gets: stripes, then the mirror.
  std::vector<uint32_t> Weigh(const std::vector<std::string>& stripes, const std::string& mirror = "") {
    drives_ = DriveSet();
    for (const std::string& stripe : stripes) drives_.stripes.push_back({stripe, 1});
    if (!mirror.empty()) drives_.mirror = {mirror, 1};
    const auto weighed = WeighDrives(store_, &drives_, probes_);
    status_ = weighed.status();
    std::vector<uint32_t> weights;
    for (const DriveSet::Drive& stripe : drives_.stripes) weights.push_back(stripe.weight);
    if (drives_.mirror) weights.push_back(drives_.mirror->weight);
    return weights;
  }

  std::string store_ = "/store/s";
  std::map<std::string, double> speeds_ = {{"fast", 6e9}, {"slow", 3e9}, {"store", 4e9}};
  DriveProbes probes_;
  DriveSet drives_;
  Status status_;
  std::mutex mutex_;
  std::vector<std::string> measured_;  // guarded by mutex_
};

TEST_F(DriveWeightsTest, WeightsAreTheRatioOfTheSpeeds) {
  EXPECT_THAT(Weigh({"/fast/a", "/slow/b"}), ElementsAre(2, 1));
  EXPECT_EQ(measured_.size(), 2u);
}

TEST_F(DriveWeightsTest, DirectoriesOnOneDeviceShareItAndItIsMeasuredOnce) {
  EXPECT_THAT(Weigh({"/fast/a", "/fast/b", "/slow/c"}), ElementsAre(1, 1, 1));
  EXPECT_EQ(measured_.size(), 2u);
  EXPECT_THAT(Weigh({"/slow/a", "/slow/b", "/fast/c"}), ElementsAre(1, 1, 4));
}

TEST_F(DriveWeightsTest, NothingIsMeasuredWhereThereIsNothingToCompare) {
  EXPECT_THAT(Weigh({}), IsEmpty());
  EXPECT_THAT(Weigh({"/fast/a", "/fast/b"}), ElementsAre(1, 1));
  EXPECT_THAT(measured_, IsEmpty());
}

TEST_F(DriveWeightsTest, AMirrorIsWeighedAgainstTheStoresOwnDrive) {
  speeds_ = {{"store", 2e9}, {"fast", 6e9}};
  EXPECT_THAT(Weigh({}, "/fast/m"), ElementsAre(1, 3));
  EXPECT_EQ(drives_.stripes[0].directory, "packs");
  speeds_["fast"] = 2.1e9;
  EXPECT_THAT(Weigh({}, "/fast/m"), ElementsAre(1)) << "alike: no line for the store's own";
}

TEST_F(DriveWeightsTest, AnImportThatGoesOnKeepsItsWeights) {
  const TempDirectory directory;
  store_ = directory / "s";
  std::filesystem::create_directory(store_);
  DriveSet earlier;
  earlier.stripes = {{"/fast/a", 5}, {"/slow/b", 3}};
  ASSERT_TRUE(earlier.Write(store_).ok());
  EXPECT_THAT(Weigh({"/fast/a", "/slow/b"}), ElementsAre(5, 3));
  EXPECT_THAT(measured_, IsEmpty());
}

TEST_F(DriveWeightsTest, ADriveThatCannotBeMeasuredIsNamed) {
  Weigh({"/fast/a", "/gone/b"});
  EXPECT_THAT(status_.message(), AllOf(HasSubstr("/gone/b"), HasSubstr("--weights")));
}

TEST(WholeWeights, AreSmallAndNearEnough) {
  EXPECT_THAT(WholeWeights(std::vector<double>{3.0, 3.2}), ElementsAre(1, 1));
  EXPECT_THAT(WholeWeights(std::vector<double>{7.0, 3.5, 14.2}), ElementsAre(2, 1, 4));
  EXPECT_THAT(WholeWeights(std::vector<double>{3.0, 2.0}), ElementsAre(3, 2));
  EXPECT_THAT(WholeWeights(std::vector<double>{5e12, 1.0}), ElementsAre(1000, 1)) << "the most there is";
}

TEST(RealDriveProbes, ReadADirectoryThatDoesNotExistYetAndLeaveNothingBehind) {
  const TempDirectory directory;
  const std::string wanted = directory / "not/yet";
  const auto device = RealDriveProbes().device(wanted);
  ASSERT_TRUE(device.ok()) << device.status().message();
  EXPECT_EQ(*device, *RealDriveProbes().device(directory / "other"));
  const auto speed = RealDriveProbes().bytes_per_second(wanted);
  ASSERT_TRUE(speed.ok()) << speed.status().message();
  EXPECT_GT(*speed, 1e6);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

}  // namespace
}  // namespace moraine
