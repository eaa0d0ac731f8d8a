// RoutingTrace: which experts each token took, layer by layer; gzip CSV on disk.
//
//   # layers=48 experts=128 top_k=6 tokens=156 prefill_tokens=28 note=free text
//   # columns: token,layer,actual experts (space separated, best first),...
//   0,0,49 19 58 29 16 70,0.22130 0.19184 0.19079 0.14712 0.13674 0.11221
//
// One row for each token and layer, in order; a recorder may have lost some layers of a token.
// After the experts there is nothing, one column with the gate weights, or two with what the
// routers of layer+1 and layer+2 picked from this layer's input (empty where there is no such
// layer), or these three: weights last. Dense layers have no experts: their columns are empty.
//
// Why text: traces are exchanged with people who look at them with zcat. A megabyte takes some tens
// of milliseconds.
//
// Threads: values; the functions have no state.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace moraine {

struct RoutingTrace {
  uint32_t layers = 0, experts = 0, top_k = 0;
  uint32_t prefill_tokens = 0;  // the first tokens: they warm the cache and are not counted
  std::string note;
  // [token][layer][top_k]; kNoTracedExpert fills up a row that has fewer (dense layers, lost rows).
  std::vector<uint16_t> picks;
  std::vector<uint16_t> next, after_next;  // as picks: the lookahead to layer+1, layer+2; or empty
  std::vector<float> gate_weights;         // as picks; or empty

  size_t row_size() const { return size_t{layers} * top_k; }
  uint32_t tokens() const {
    return row_size() == 0 ? 0 : static_cast<uint32_t>(picks.size() / row_size());
  }
  // The experts of one row, without the filling.
  std::span<const uint16_t> At(uint32_t token, uint32_t layer) const {
    return Row(picks, token, layer);
  }
  // What distance (1 or 2) layers ahead expects; empty if that was not recorded.
  std::span<const uint16_t> Lookahead(uint32_t token, uint32_t layer, uint32_t distance) const {
    return Row(distance == 1 ? next : after_next, token, layer);
  }
  std::span<const uint16_t> Row(const std::vector<uint16_t>& column, uint32_t token,
                                uint32_t layer) const;
};

inline constexpr uint16_t kNoTracedExpert = 0xffff;

// `name` stands in errors, which are kInvalidArgument and name the line. Nothing is allocated that
// the text does not fill.
Result<RoutingTrace> ParseRoutingTrace(std::string_view text, const std::string& name);
std::string FormatRoutingTrace(const RoutingTrace& trace);
// gzip or plain text. kInvalidArgument beyond 4 GiB of text.
Result<RoutingTrace> ReadRoutingTrace(const std::string& path);
// gzip if the name ends in .gz. Replaces the file only when all is written.
Status WriteRoutingTrace(const RoutingTrace& trace, const std::string& path);

}  // namespace moraine
