// One GET over plain HTTP, for `moraine stats`: blocking, bounded in time and size. Not a client for
// anything else.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace moraine {

struct HttpGetOptions {
  std::string url;      // "http://127.0.0.1:8080/stats"
  std::string api_key;  // sent as a bearer token if not empty
  int timeout_s = 10;   // for connecting and for each read
  uint64_t limit_bytes = 64ull << 20;
};

struct HttpGetResult {
  int status = 0;
  std::string body;
};

// kInvalidArgument for a URL that is not http://HOST[:PORT]/..., kIoError naming host and port.
Result<HttpGetResult> HttpGet(const HttpGetOptions& options);

}  // namespace moraine
