// What tests of PrefixDisk have in common.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

#include "base/check.h"
#include "base/clock.h"
#include "engine/prefix_disk.h"

namespace moraine {

inline constexpr int64_t kLongNs = 60'000'000'000;

inline void FlipByte(const std::string& path, uint64_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(static_cast<char>(byte ^ 0x10));
  CHECK(file.good(), path);
}

inline void SaveAll(PrefixDisk& disk) {
  const int64_t end_ns = RealClock().NowNs() + kLongNs;
  for (disk.Save(UINT32_MAX); disk.saving(); disk.Save(UINT32_MAX)) {
    disk.Wait(kLongNs);
    CHECK(RealClock().NowNs() < end_ns, "the disk does not come to an end");
  }
}

}  // namespace moraine
