#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "base/bytes.h"
#include "store/file_checkpoint.h"
#include "store/gguf.h"

namespace moraine {
namespace {

// What is read of a file at first. A vocabulary of 150,000 tokens makes a header of 6 MB.
constexpr uint64_t kFirstReadBytes = 16 * kMiB;

struct OpenedGguf {
  PosixFile file;
  std::vector<std::byte> beginning;
  GgufHeader header;
};

Result<OpenedGguf> OpenPart(const std::string& path) {
  OpenedGguf part;
  ASSIGN_OR_RETURN(part.file, PosixFile::Open(path, O_RDONLY));
  ASSIGN_OR_RETURN(const uint64_t file_bytes, part.file.Size());
  for (uint64_t bytes = kFirstReadBytes;; bytes *= 4) {
    part.beginning.resize(std::min(bytes, file_bytes));
    RETURN_IF_ERROR(part.file.ReadAt(0, part.beginning));
    ASSIGN_OR_RETURN(std::optional<GgufHeader> header,
                     ParseGgufHeader(part.beginning, file_bytes, path));
    if (!header) continue;
    part.header = std::move(*header);
    part.beginning.resize(part.header.header_bytes);
    return part;
  }
}

std::string PartSuffix(uint64_t index, uint64_t count) {
  char text[64];
  std::snprintf(text, sizeof(text), "-%05u-of-%05u.gguf", static_cast<unsigned>(index + 1),
                static_cast<unsigned>(count));
  return text;
}

class GgufCheckpoint final : public FileCheckpoint {
 public:
  Status Open(const std::string& path) {
    ASSIGN_OR_RETURN(OpenedGguf first, OpenPart(path));
    const GgufHeader& header = first.header;
    const uint64_t count = std::max<uint64_t>(header.split_count, 1);
    const std::optional<uint64_t> tensor_count = header.split_tensor_count;
    metadata_json_ = header.metadata_json;
    if (header.split_index != 0) {
      return InvalidArgument(path + ": is part " + std::to_string(header.split_index + 1) + " of " +
                             std::to_string(count) + ": give the first part");
    }
    RETURN_IF_ERROR(AddPart(path, std::move(first)));
    if (count > 1) RETURN_IF_ERROR(OpenOthers(path, count));
    if (count > 1 && tensor_count && *tensor_count != tensors().size()) {
      return Corruption(path + ": metadata key 'split.tensors.count' is " +
                        std::to_string(*tensor_count) + ", but the " + std::to_string(count) +
                        " parts have " + std::to_string(tensors().size()) + " tensors");
    }
    Identify("gguf", path);
    return OkStatus();
  }

  std::optional<std::string> ReadFile(const std::string& name) const override {
    if (name != kGgufMetadataName) return std::nullopt;
    return metadata_json_;
  }

 private:
  Status AddPart(const std::string& path, OpenedGguf part) {
    const std::string_view header(reinterpret_cast<const char*>(part.beginning.data()),
                                  part.beginning.size());
    return AddFile(std::filesystem::path(path).filename().string(), std::move(part.file), header,
                   std::move(part.header.tensors));
  }

  Status OpenOthers(const std::string& first_path, uint64_t count) {
    const std::string suffix = PartSuffix(0, count);
    if (!first_path.ends_with(suffix)) {
      return InvalidArgument(first_path + ": is the first of " + std::to_string(count) +
                             " parts, whose name is expected to end in '" + suffix + "'");
    }
    const std::string stem = first_path.substr(0, first_path.size() - suffix.size());
    for (uint64_t i = 1; i < count; ++i) {
      const std::string path = stem + PartSuffix(i, count);
      ASSIGN_OR_RETURN(OpenedGguf part, OpenPart(path));
      if (part.header.split_index != i || part.header.split_count != count) {
        return Corruption(path + ": says that it is part " +
                          std::to_string(part.header.split_index + 1) + " of " +
                          std::to_string(part.header.split_count) + ", expected part " +
                          std::to_string(i + 1) + " of " + std::to_string(count));
      }
      RETURN_IF_ERROR(AddPart(path, std::move(part)));
    }
    return OkStatus();
  }

  std::string metadata_json_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  RETURN_IF_ERROR(checkpoint->Open(path));
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace moraine
