#include "store/posix_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/bytes.h"

namespace moraine {
namespace {

// pread and pwrite transfer at most 0x7ffff000 bytes a call; a round figure below that.
constexpr size_t kMaxTransferBytes = 1ull << 30;

}  // namespace

PosixFile::~PosixFile() {
  if (fd_ >= 0) close(fd_);
}

PosixFile& PosixFile::operator=(PosixFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

Result<PosixFile> PosixFile::Open(const std::string& path, int flags) {
  PosixFile file;
  file.path_ = path;
  file.fd_ = open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (file.fd_ < 0) {
    if (errno == ENOENT) return NotFound(path + ": no such file");
    return IoErrorFromErrno("open " + path, errno);
  }
  return file;
}

Result<uint64_t> PosixFile::Size() const {
  struct stat info;
  if (fstat(fd_, &info) != 0) return IoErrorFromErrno("stat " + path_, errno);
  return static_cast<uint64_t>(info.st_size);
}

Status PosixFile::ReadAt(uint64_t offset, std::span<std::byte> destination) const {
  size_t done = 0;
  while (done < destination.size()) {
    const size_t wanted = std::min(destination.size() - done, kMaxTransferBytes);
    const ssize_t got =
        pread(fd_, destination.data() + done, wanted, static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) continue;
      return IoErrorFromErrno("read " + path_ + " at offset " + std::to_string(offset + done),
                              errno);
    }
    if (got == 0) {
      return Corruption(path_ + ": ends at byte " + std::to_string(offset + done) + ", expected " +
                        std::to_string(destination.size()) + " bytes at offset " +
                        std::to_string(offset) + ", found " + std::to_string(done));
    }
    done += static_cast<size_t>(got);
  }
  return OkStatus();
}

Status PosixFile::WriteAt(uint64_t offset, std::span<const std::byte> source) const {
  size_t done = 0;
  while (done < source.size()) {
    const size_t wanted = std::min(source.size() - done, kMaxTransferBytes);
    const ssize_t written =
        pwrite(fd_, source.data() + done, wanted, static_cast<off_t>(offset + done));
    if (written < 0) {
      if (errno == EINTR) continue;
      const std::string what = "write " + path_ + " at offset " + std::to_string(offset + done);
      // A file size limit is, to the user, one more way of having no room.
      if (errno == EFBIG) return ResourceExhausted(what + ": file size limit reached");
      return IoErrorFromErrno(what, errno);
    }
    done += static_cast<size_t>(written);
  }
  return OkStatus();
}

Status PosixFile::Truncate(uint64_t bytes) const {
  if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) {
    return IoErrorFromErrno("truncate " + path_ + " to " + std::to_string(bytes), errno);
  }
  return OkStatus();
}

Status PosixFile::SyncData() const {
  if (fdatasync(fd_) != 0) return IoErrorFromErrno("fdatasync " + path_, errno);
  return OkStatus();
}

void PosixFile::StartWriteback(uint64_t offset, uint64_t bytes) const {
  (void)sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                        SYNC_FILE_RANGE_WRITE);
}

void PosixFile::DropCache(uint64_t offset, uint64_t bytes) const {
  (void)posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                      POSIX_FADV_DONTNEED);
}

Status SyncDirectory(const std::string& path) {
  ASSIGN_OR_RETURN(const PosixFile directory, PosixFile::Open(path, O_RDONLY | O_DIRECTORY));
  if (fsync(directory.fd()) != 0) return IoErrorFromErrno("fsync directory " + path, errno);
  return OkStatus();
}

Result<std::string> ReadWholeFile(const std::string& path) {
  ASSIGN_OR_RETURN(const PosixFile file, PosixFile::Open(path, O_RDONLY));
  ASSIGN_OR_RETURN(const uint64_t size, file.Size());
  std::string contents(size, '\0');
  RETURN_IF_ERROR(file.ReadAt(0, std::as_writable_bytes(std::span(contents))));
  return contents;
}

}  // namespace moraine
