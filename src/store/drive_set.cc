#include "store/drive_set.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <sstream>

#include "store/posix_file.h"
#include "store/store_directory.h"

namespace moraine {
namespace {

constexpr char kFirstLine[] = "moraine drives, format 1";
constexpr uint32_t kMaxWeight = 1000;

std::string DrivesPath(const std::string& store) { return store + "/DRIVES"; }

std::string Resolve(const std::string& store, const std::string& directory) {
  return directory.starts_with("/") ? directory : store + "/" + directory;
}

std::string PackName(uint32_t number) {
  char name[32];
  std::snprintf(name, sizeof(name), "/experts-%03u.pack", number);
  return name;
}

}  // namespace

std::string DriveSet::ExpertPackPath(const std::string& store, uint32_t number) const {
  const std::string directory = stripes.empty()
                                    ? PacksDirectory(store)
                                    : Resolve(store, stripes[number % stripes.size()].directory);
  return directory + PackName(number);
}

std::vector<std::string> DriveSet::ExpertPackPaths(const std::string& store,
                                                   uint32_t number) const {
  std::vector<std::string> paths = {ExpertPackPath(store, number)};
  if (mirror) paths.push_back(Resolve(store, mirror->directory) + PackName(number));
  return paths;
}

std::vector<DriveSet::Drive> DriveSet::ExpertDrives(const std::string& store) const {
  std::vector<Drive> drives = stripes;
  if (drives.empty()) drives.push_back({PacksDirectory(store), 1});
  if (mirror) drives.push_back(*mirror);
  for (Drive& drive : drives) drive.directory = Resolve(store, drive.directory);
  return drives;
}

std::vector<std::string> DriveSet::PackDirectories(const std::string& store) const {
  std::vector<std::string> directories = {PacksDirectory(store)};
  for (const Drive& drive : ExpertDrives(store)) {
    if (drive.directory != directories[0]) directories.push_back(drive.directory);
  }
  return directories;
}

Status DriveSet::Check() const {
  std::set<std::string> seen;
  std::vector<Drive> drives = stripes;
  if (mirror) drives.push_back(*mirror);
  for (const Drive& drive : drives) {
    if (drive.weight < 1 || drive.weight > kMaxWeight) {
      return InvalidArgument("drives: " + drive.directory + " has weight " +
                             std::to_string(drive.weight) + ", expected 1 to " +
                             std::to_string(kMaxWeight));
    }
    if (drive.directory.empty() || drive.directory.find('\n') != std::string::npos) {
      return InvalidArgument("drives: '" + drive.directory + "' is no directory name");
    }
    const std::filesystem::path normal =
        std::filesystem::path(drive.directory + "/").lexically_normal();  // with and without a slash
    if (!seen.insert(normal.string()).second) {
      return InvalidArgument("drives: " + drive.directory + " is named twice");
    }
  }
  return OkStatus();
}

Result<DriveSet> DriveSet::Read(const std::string& store) {
  DriveSet drives;
  const std::string path = DrivesPath(store);
  const Result<std::string> text = ReadWholeFile(path);
  if (!text.ok()) {
    if (text.status().code() == StatusCode::kNotFound) return drives;
    return text.status();
  }
  std::istringstream lines(*text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const auto bad = [&](const std::string& expected) {
      return Corruption(path + ": line " + std::to_string(number) + ": expected " + expected +
                        ", found '" + line + "'");
    };
    if (number == 1) {
      if (line != kFirstLine) return bad(std::string("'") + kFirstLine + "'");
      continue;
    }
    if (line.empty()) continue;
    std::istringstream fields(line);
    std::string kind, directory;
    fields >> kind;
    Drive drive;
    if ((kind != "stripe" && kind != "mirror") || !(fields >> drive.weight)) {
      return bad("'stripe WEIGHT DIRECTORY' or 'mirror WEIGHT DIRECTORY'");
    }
    std::getline(fields >> std::ws, drive.directory);
    if (kind == "stripe") {
      drives.stripes.push_back(drive);
    } else if (drives.mirror) {
      return bad("one mirror");
    } else {
      drives.mirror = drive;
    }
  }
  const Status status = drives.Check();
  if (!status.ok()) return Corruption(path + ": " + status.message());
  return drives;
}

Status DriveSet::Write(const std::string& store) const {
  const std::string path = DrivesPath(store);
  if (stripes.empty() && !mirror) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return IoErrorFromErrno("remove " + path, errno);
    return SyncDirectory(store);
  }
  std::string text = std::string(kFirstLine) + "\n";
  for (const Drive& stripe : stripes) {
    text += "stripe " + std::to_string(stripe.weight) + " " + stripe.directory + "\n";
  }
  if (mirror) text += "mirror " + std::to_string(mirror->weight) + " " + mirror->directory + "\n";
  // Written aside and renamed, so that the name never stands for half of it.
  const std::string aside = path + "." + std::to_string(getpid());
  {
    ASSIGN_OR_RETURN(const PosixFile file, PosixFile::Open(aside, O_WRONLY | O_CREAT | O_TRUNC));
    RETURN_IF_ERROR(file.WriteAt(0, std::as_bytes(std::span(text))));
    RETURN_IF_ERROR(file.SyncData());
  }
  if (rename(aside.c_str(), path.c_str()) != 0) return IoErrorFromErrno("rename " + aside, errno);
  return SyncDirectory(store);
}

StripeDealer::StripeDealer(const DriveSet& drives) {
  for (const DriveSet::Drive& stripe : drives.stripes) weights_.push_back(stripe.weight);
  if (weights_.empty()) weights_.push_back(1);
  credit_.resize(weights_.size());
  for (const int64_t weight : weights_) total_ += weight;
}

uint32_t StripeDealer::Next() {
  for (size_t i = 0; i < credit_.size(); ++i) credit_[i] += weights_[i];
  const auto chosen = std::max_element(credit_.begin(), credit_.end());  // the first of equals
  *chosen -= total_;
  return static_cast<uint32_t>(chosen - credit_.begin());
}

}  // namespace moraine
