#include "io/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "base/log.h"

namespace moraine {
namespace {

// What O_DIRECT asks of an open file, or nothing where the kernel says that the file has none
// (ext4 with data journaling or encryption opens with O_DIRECT and then reads buffered).
std::optional<IoAlignment> DirectAlignment(int descriptor) {
  IoAlignment alignment;
#ifdef STATX_DIOALIGN  // Linux 6.1
  struct statx status = {};
  if (statx(descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0) {
    if (status.stx_dio_offset_align == 0) return std::nullopt;
    alignment.offset_bytes = status.stx_dio_offset_align;
    alignment.memory_bytes = status.stx_dio_mem_align;
  }
#else
  (void)descriptor;
#endif
  return alignment;
}

}  // namespace

OpenFileTable::~OpenFileTable() {
  for (const File& file : files_) close(file.descriptor);
}

Result<FileId> OpenFileTable::Open(const std::string& path, bool direct) {
  File file;
  file.path = path;
  if (direct) {
    file.descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (file.descriptor >= 0) {
      if (const auto alignment = DirectAlignment(file.descriptor)) {
        file.alignment = *alignment;
      } else {
        close(file.descriptor);
        file.descriptor = -1;
        errno = EINVAL;
      }
    }
    if (file.descriptor < 0 && errno == EINVAL) {
      LOG_WARN("{}: the file system has no O_DIRECT; reading through the page cache", path);
      direct = false;
    }
  }
  if (!direct) {
    file.descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    file.alignment = {1, 1};
  }
  if (file.descriptor < 0) {
    if (errno == ENOENT) return NotFound(path + ": no such file");
    return IoErrorFromErrno(path + ": open for reading", errno);
  }
  files_.push_back(std::move(file));
  return FileId(static_cast<uint32_t>(files_.size() - 1));
}

const OpenFileTable::File& OpenFileTable::At(FileId file) const {
  CHECK(file.value() < files_.size(), "unknown file id " + std::to_string(file.value()));
  return files_[file.value()];
}

}  // namespace moraine
