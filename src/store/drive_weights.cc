#include "store/drive_weights.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <thread>

#include "base/bytes.h"
#include "io/read_measurement.h"
#include "store/posix_file.h"

namespace moraine {
namespace {

constexpr uint64_t kScratchBytes = 256 * kMiB;
constexpr uint64_t kRequestBytes = kMiB;
constexpr uint32_t kDepth = 16;  // fills one drive (docs/io.md)
constexpr double kMeasureSeconds = 1;

constexpr double kTolerance = 0.07;
constexpr double kMaxWeight = 1000;  // DriveSet::Check's
constexpr uint32_t kMostParts = 16;  // that the slowest drive's share is divided into

std::filesystem::path NearestExisting(const std::string& directory) {
  std::filesystem::path place = std::filesystem::absolute(directory);
  std::error_code ignored;
  while (!std::filesystem::is_directory(place, ignored) && place != place.parent_path()) {
    place = place.parent_path();
  }
  return place;
}

Result<std::string> DeviceOf(const std::string& directory) {
  const std::string place = NearestExisting(directory).string();
  struct stat info;
  if (stat(place.c_str(), &info) != 0) return IoErrorFromErrno("stat " + place, errno);
  const std::string number =
      std::to_string(major(info.st_dev)) + ":" + std::to_string(minor(info.st_dev));
  std::error_code error;
  std::filesystem::path device = std::filesystem::canonical("/sys/dev/block/" + number, error);
  if (error) return number;  // no block device: tmpfs, a network
  if (std::filesystem::exists(device / "partition", error)) device = device.parent_path();
  return device.filename().string();
}

// Removed when the object goes.
struct ScratchFile {
  explicit ScratchFile(std::string name) : path(std::move(name)) {}
  ~ScratchFile() { unlink(path.c_str()); }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  const std::string path;
};

Result<double> ReadSpeed(const std::string& directory) {
  const ScratchFile scratch(
      (NearestExisting(directory) / (".moraine-speed-" + std::to_string(getpid()))).string());
  {
    ASSIGN_OR_RETURN(const PosixFile file,
                     PosixFile::Open(scratch.path, O_WRONLY | O_CREAT | O_TRUNC));
    std::vector<std::byte> block(kRequestBytes);
    Random random(1);  // drives that compress shall not gain by it
    for (std::byte& byte : block) byte = static_cast<std::byte>(random.Next());
    for (uint64_t offset = 0; offset < kScratchBytes; offset += block.size()) {
      RETURN_IF_ERROR(file.WriteAt(offset, block));
    }
    RETURN_IF_ERROR(file.SyncData());
    file.DropCache(0, 0);
  }
  BlockReaderOptions reader_options;
  reader_options.capacity = reader_options.pread_threads = kDepth;
  ASSIGN_OR_RETURN(auto reader, CreateBlockReader(reader_options));
  ReadMeasurementOptions options;
  options.paths = {scratch.path};
  options.pick = [](Random& random) {
    return ReadPlace{0, random.Below(kScratchBytes / kRequestBytes) * kRequestBytes, kRequestBytes};
  };
  options.max_record_bytes = kRequestBytes;
  options.records = kDepth;
  options.seconds = kMeasureSeconds;
  ASSIGN_OR_RETURN(const ReadMeasurement measured, MeasureReads(std::move(reader), options));
  return measured.gb_per_s * 1e9;
}

// True if the store has drives already, whose weights stay.
Result<bool> TakeEarlierWeights(const std::string& store, DriveSet* drives) {
  ASSIGN_OR_RETURN(const DriveSet earlier, DriveSet::Read(store));
  if (earlier.stripes.empty() && !earlier.mirror) return false;
  if (earlier.stripe_count() != drives->stripe_count()) return true;  // the import will say so
  for (size_t i = 0; i < earlier.stripes.size(); ++i) {
    if (i == drives->stripes.size()) drives->stripes.push_back({"packs", 1});
    drives->stripes[i].weight = earlier.stripes[i].weight;
  }
  if (drives->mirror && earlier.mirror) drives->mirror->weight = earlier.mirror->weight;
  return true;
}

// Each device once, all at the same time.
Result<std::map<std::string, double>> MeasureDevices(const std::vector<WeighedDrive>& drives,
                                                     const DriveProbes& probes) {
  struct Measurement {
    std::string directory;
    std::optional<Result<double>> speed;
  };
  std::map<std::string, Measurement> devices;
  for (const WeighedDrive& drive : drives) devices[drive.device].directory = drive.directory;
  std::vector<std::thread> threads;
  for (auto& [device, measurement] : devices) {
    threads.emplace_back([&probes, one = &measurement] {
      one->speed = probes.bytes_per_second(one->directory);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::map<std::string, double> speeds;
  for (const auto& [device, measurement] : devices) {
    const Result<double>& speed = *measurement.speed;
    const std::string what = "measuring the drive of " + measurement.directory;
    if (!speed.ok()) return speed.status().WithContext(what + " (--weights says it instead)");
    if (!(*speed > 0)) return IoError(what + ": nothing was read; --weights says it instead");
    speeds[device] = *speed;
  }
  return speeds;
}

void SetWeights(const std::vector<WeighedDrive>& weighed, DriveSet* drives) {
  const auto unlike = [&](const WeighedDrive& drive) { return drive.weight != weighed[0].weight; };
  // The store's own directory has a line only if its weight is another than the mirror's.
  if (drives->stripes.empty() && std::any_of(weighed.begin(), weighed.end(), unlike)) {
    drives->stripes.push_back({"packs", 1});
  }
  for (size_t i = 0; i < drives->stripes.size(); ++i) drives->stripes[i].weight = weighed[i].weight;
  if (drives->mirror) drives->mirror->weight = weighed.back().weight;
}

}  // namespace

const DriveProbes& RealDriveProbes() {
  static const DriveProbes probes = {DeviceOf, ReadSpeed};
  return probes;
}

std::vector<uint32_t> WholeWeights(std::span<const double> speeds) {
  const auto [least, most] = std::minmax_element(speeds.begin(), speeds.end());
  const double slowest = std::max(*least, *most / kMaxWeight);
  std::vector<uint32_t> weights(speeds.size());
  for (uint32_t parts = 1; parts <= kMostParts; ++parts) {
    double worst = 0;
    for (size_t i = 0; i < speeds.size(); ++i) {
      const double exact = std::max(speeds[i], slowest) / slowest * parts;
      weights[i] = static_cast<uint32_t>(std::clamp(std::round(exact), 1.0, kMaxWeight));
      worst = std::max(worst, std::abs(weights[i] / exact - 1));
    }
    if (worst <= kTolerance) break;
  }
  return weights;
}

Result<std::vector<WeighedDrive>> WeighDrives(const std::string& store, DriveSet* drives,
                                              const DriveProbes& probes) {
  std::vector<WeighedDrive> weighed;
  const std::vector<DriveSet::Drive> directories = drives->ExpertDrives(store);
  if (directories.size() == 1) return weighed;
  ASSIGN_OR_RETURN(const bool taken, TakeEarlierWeights(store, drives));
  if (taken) return weighed;
  std::map<std::string, uint32_t> sharing;  // directories, by device
  for (const DriveSet::Drive& drive : directories) {
    ASSIGN_OR_RETURN(const std::string device, probes.device(drive.directory));
    weighed.push_back({.directory = drive.directory, .device = device});
    ++sharing[device];
  }
  if (sharing.size() == 1) return weighed;
  ASSIGN_OR_RETURN(const auto speeds, MeasureDevices(weighed, probes));
  std::vector<double> shares;
  for (WeighedDrive& drive : weighed) {
    drive.bytes_per_second = speeds.at(drive.device) / sharing[drive.device];
    shares.push_back(drive.bytes_per_second);
  }
  const std::vector<uint32_t> weights = WholeWeights(shares);
  for (size_t i = 0; i < weighed.size(); ++i) weighed[i].weight = weights[i];
  SetWeights(weighed, drives);
  return weighed;
}

}  // namespace moraine
