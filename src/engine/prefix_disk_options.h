// What the prefix cache on disk (prefix_disk.h) is told.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace moraine {

struct PrefixDiskOptions {
  std::string directory;  // "": none
  uint64_t budget_bytes = uint64_t{8} << 30;
  // Tests hold the disk thread up here, before each read and write.
  std::function<void()> before_io;
};

}  // namespace moraine
