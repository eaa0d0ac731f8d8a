#include "store/store_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "store/manifest.h"

namespace moraine {
namespace {

constexpr char kFormatName[] = "STORE_FORMAT";
constexpr char kFormatPrefix[] = "moraine store, format ";
// Longer than any format line; a foreign file of that name may have any size.
constexpr uint64_t kMaxFormatBytes = 64;

std::string FormatPath(const std::string& store) { return store + "/" + kFormatName; }

// Whether nothing but our own unfinished beginnings is in there.
Result<bool> IsVacant(const std::string& store) {
  std::error_code error;
  std::filesystem::directory_iterator entry(store, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    if (!entry->path().filename().string().starts_with(kFormatName)) return false;
  }
  if (error) return IoError(store + ": " + error.message());
  return true;
}

}  // namespace

std::string CatalogueDirectory(const std::string& store) { return store + "/catalogue"; }
std::string PacksDirectory(const std::string& store) { return store + "/packs"; }
std::string DensePackPath(const std::string& store) { return store + "/packs/dense-000.pack"; }

Status CreateStoreDirectory(const std::string& store) {
  std::error_code error;
  std::filesystem::create_directories(store, error);
  if (error) return IoError("create directory " + store + ": " + error.message());
  const Status format = CheckStoreFormat(store);
  if (format.ok() || format.code() == StatusCode::kUnsupported) return format;
  ASSIGN_OR_RETURN(const bool vacant, IsVacant(store));
  if (!vacant) {
    return FailedPrecondition(store + ": the directory is not empty and not a moraine store");
  }
  // Written aside and renamed, so that the name never stands for half a line.
  const std::string aside = FormatPath(store) + "." + std::to_string(getpid());
  const std::string line = kFormatPrefix + std::to_string(kStoreFormatVersion) + "\n";
  {
    ASSIGN_OR_RETURN(const PosixFile file,
                     PosixFile::Open(aside, O_WRONLY | O_CREAT | O_TRUNC));
    RETURN_IF_ERROR(file.WriteAt(0, std::as_bytes(std::span(line))));
    RETURN_IF_ERROR(file.SyncData());
  }
  if (rename(aside.c_str(), FormatPath(store).c_str()) != 0) {
    return IoErrorFromErrno("rename " + aside, errno);
  }
  std::filesystem::path parent = std::filesystem::absolute(store, error).lexically_normal();
  if (!parent.has_filename()) parent = parent.parent_path();
  RETURN_IF_ERROR(SyncDirectory(parent.parent_path().string()));
  return SyncDirectory(store);
}

Status CheckStoreFormat(const std::string& store) {
  std::error_code error;
  if (!std::filesystem::is_directory(store, error)) {
    return NotFound(store + ": no such directory");
  }
  const Result<PosixFile> file = PosixFile::Open(FormatPath(store), O_RDONLY);
  if (!file.ok()) {
    if (file.status().code() != StatusCode::kNotFound) return file.status();
    return FailedPrecondition(store + ": not a moraine store (it has no " + kFormatName + ")");
  }
  ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  std::string line(std::min(size, kMaxFormatBytes), '\0');
  RETURN_IF_ERROR(file->ReadAt(0, std::as_writable_bytes(std::span(line))));
  uint32_t version = 0;
  const size_t digits = sizeof(kFormatPrefix) - 1;
  const bool known = line.starts_with(kFormatPrefix) &&
                     std::from_chars(line.data() + digits, line.data() + line.size(), version).ec ==
                         std::errc();
  if (!known) {
    return FailedPrecondition(FormatPath(store) + ": not the mark of a moraine store");
  }
  if (version != kStoreFormatVersion) {
    return Unsupported(store + ": store format " + std::to_string(version) +
                       ", but this program reads format " + std::to_string(kStoreFormatVersion) +
                       (version < kStoreFormatVersion ? "; import the model again"
                                                      : "; a newer moraine wrote it"));
  }
  return OkStatus();
}

Result<PosixFile> LockStoreForWriting(const std::string& store) {
  // kFailedPrecondition, as for a lock held elsewhere: whoever only wants to read may still do so.
  if (access(FormatPath(store).c_str(), W_OK) != 0 && (errno == EROFS || errno == EACCES)) {
    return FailedPrecondition(store + ": the store cannot be written: " + std::strerror(errno));
  }
  ASSIGN_OR_RETURN(PosixFile file, PosixFile::Open(FormatPath(store), O_RDWR));
  if (flock(file.fd(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return FailedPrecondition(store + ": the store is already open for writing elsewhere");
    }
    return IoErrorFromErrno("lock " + file.path(), errno);
  }
  return file;
}

}  // namespace moraine
