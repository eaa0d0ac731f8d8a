// Any bytes are a trace or an error that names its line; a trace survives being written and read.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "residency/routing_trace.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto trace = moraine::ParseRoutingTrace(text, "fuzz");
  if (!trace.ok()) return 0;
  const auto again = moraine::ParseRoutingTrace(moraine::FormatRoutingTrace(*trace), "again");
  // Without a single row there are no columns to tell lookahead from none.
  if (!again.ok() || again->picks != trace->picks) std::abort();
  return 0;
}
