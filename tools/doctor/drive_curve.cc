#include "doctor/drive_curve.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/bytes.h"
#include "base/random.h"
#include "io/read_measurement.h"

namespace moraine {
namespace {

constexpr uint64_t kRequestBytes[] = {4 * kKiB, 64 * kKiB, 512 * kKiB, 2 * kMiB};
constexpr uint32_t kDepths[] = {1, 4, 16, 64};
// Larger than a drive's own cache, small enough to be written within the time the curve takes.
constexpr uint64_t kScratchBytes = kGiB;

struct SizedFile {
  std::string path;
  uint64_t bytes = 0;
};

Result<std::vector<SizedFile>> FilesToRead(const std::vector<std::string>& paths) {
  std::vector<SizedFile> files;
  for (const std::string& path : paths) {
    struct stat status = {};
    if (stat(path.c_str(), &status) != 0) return IoErrorFromErrno(path, errno);
    const auto bytes = static_cast<uint64_t>(status.st_size);
    if (bytes >= *std::rbegin(kRequestBytes)) files.push_back({path, bytes});
  }
  if (files.empty()) {
    return InvalidArgument("the drive's curve needs a file of at least " +
                           FormatByteSize(*std::rbegin(kRequestBytes)));
  }
  return files;
}

Result<CurvePoint> MeasurePoint(const std::vector<SizedFile>& files, uint64_t request_bytes,
                                uint32_t depth, double seconds) {
  BlockReaderOptions reader_options;
  reader_options.capacity = depth;
  reader_options.pread_threads = depth;
  ASSIGN_OR_RETURN(auto reader, CreateBlockReader(reader_options));
  uint64_t total_bytes = 0;
  for (const SizedFile& file : files) total_bytes += file.bytes;
  ReadMeasurementOptions options;
  for (const SizedFile& file : files) options.paths.push_back(file.path);
  options.pick = [&](Random& random) {
    uint64_t position = random.Below(total_bytes);
    uint32_t index = 0;
    while (position >= files[index].bytes) position -= files[index++].bytes;
    const uint64_t places = files[index].bytes / request_bytes;
    return ReadPlace{index, random.Below(places) * request_bytes, request_bytes};
  };
  options.max_record_bytes = request_bytes;
  options.records = depth;
  options.seconds = seconds;
  options.seed = request_bytes + depth;
  ASSIGN_OR_RETURN(const ReadMeasurement measured, MeasureReads(std::move(reader), options));
  return CurvePoint{request_bytes,
                    depth,
                    measured.gb_per_s,
                    static_cast<double>(measured.records) / measured.seconds,
                    measured.p50_us,
                    measured.p99_us};
}

Status WriteRandomBytes(int descriptor, uint64_t bytes) {
  // Random, because drives and file systems that compress would make zeroes look fast.
  std::vector<uint64_t> block(kMiB / sizeof(uint64_t));
  Random random(1);
  for (uint64_t offset = 0; offset < bytes; offset += kMiB) {
    for (uint64_t& word : block) word = random.Next();
    uint64_t done = 0;
    while (done < kMiB) {
      const ssize_t count = pwrite(descriptor, reinterpret_cast<const char*>(block.data()) + done,
                                   kMiB - done, static_cast<off_t>(offset + done));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return IoErrorFromErrno("writing the scratch file", errno);
      done += static_cast<uint64_t>(count);
    }
  }
  if (fdatasync(descriptor) != 0) return IoErrorFromErrno("syncing the scratch file", errno);
  posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  return OkStatus();
}

}  // namespace

Result<std::vector<CurvePoint>> MeasureDriveCurve(const std::vector<std::string>& paths,
                                                  double seconds) {
  ASSIGN_OR_RETURN(const std::vector<SizedFile> files, FilesToRead(paths));
  const double each = seconds / static_cast<double>(std::size(kRequestBytes) * std::size(kDepths));
  std::vector<CurvePoint> curve;
  for (const uint64_t request_bytes : kRequestBytes) {
    for (const uint32_t depth : kDepths) {
      ASSIGN_OR_RETURN(CurvePoint point, MeasurePoint(files, request_bytes, depth, each));
      curve.push_back(point);
    }
  }
  return curve;
}

const CurvePoint& FastestPoint(const std::vector<CurvePoint>& curve) {
  CHECK(!curve.empty(), "a curve without points");
  return *std::max_element(
      curve.begin(), curve.end(),
      [](const CurvePoint& a, const CurvePoint& b) { return a.gb_per_s < b.gb_per_s; });
}

Finding CheckDriveCurve(const std::vector<CurvePoint>& curve) {
  const CurvePoint& fastest = FastestPoint(curve);
  // What is needed at least to come near it: the fewest bytes in flight.
  const CurvePoint* least = &fastest;
  constexpr double kNear = 0.9;  // points of half a second scatter by about as much as is left
  for (const CurvePoint& point : curve) {
    const bool smaller =
        point.request_bytes * point.depth < least->request_bytes * least->depth;
    if (point.gb_per_s >= kNear * fastest.gb_per_s && smaller) least = &point;
  }
  Finding finding{"drive_speed", FindingStatus::kOk,
                  fmt::format("{:.2f} GB/s at best ({} x {}); 90 % of it from {} x {} on",
                              fastest.gb_per_s, FormatByteSize(fastest.request_bytes),
                              fastest.depth, FormatByteSize(least->request_bytes), least->depth),
                  ""};
  // Below what any PCIe NVMe drive reads; SATA ends at 0.6.
  constexpr double kSlowGbPerS = 1.0;
  if (fastest.gb_per_s < kSlowGbPerS) {
    finding.status = FindingStatus::kWarning;
    finding.found += ": slower than NVMe drives are";
    finding.advice = fmt::format(
        "a model that misses 100 MB of experts a token decodes at {:.1f} tokens/s at most: put the "
        "store on a faster drive, end what else reads (iostat -x 1), or raise --ram-budget",
        fastest.gb_per_s * 10);
  }
  return finding;
}

Result<ScratchFile> ScratchFile::Create(const std::string& directory, uint64_t free_bytes) {
  const uint64_t bytes = std::min(kScratchBytes, free_bytes / 4) / kMiB * kMiB;
  if (bytes < *std::rbegin(kRequestBytes)) {
    return ResourceExhausted(directory + ": " + FormatByteSize(free_bytes) +
                             " free is too little for a file to measure with");
  }
  std::string path = directory + "/.moraine-doctor-XXXXXX";
  const int descriptor = mkostemp(path.data(), O_CLOEXEC);
  if (descriptor < 0) return IoErrorFromErrno(directory + ": creating a scratch file", errno);
  ScratchFile file(descriptor);
  unlink(path.c_str());
  RETURN_IF_ERROR(WriteRandomBytes(descriptor, bytes).WithContext(directory));
  return file;
}

ScratchFile::~ScratchFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

ScratchFile::ScratchFile(ScratchFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

std::string ScratchFile::path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

}  // namespace moraine
