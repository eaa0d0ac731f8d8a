#include "residency/routing_trace.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

namespace moraine {
namespace {

// Far above every published model (DeepSeek-V3: 61 x 256 top-8); what is absurd is told as such.
constexpr uint32_t kMaxLayers = 4096, kMaxExperts = 65535, kMaxTopK = 64;
constexpr uint64_t kMaxRow = 8192;  // experts a token
constexpr size_t kMaxTextBytes = size_t{4} << 30;

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : rest_(text), name_(name) {}
  Result<RoutingTrace> Parse();

 private:
  bool NextLine(std::string_view* line);
  Status Error(const std::string& what) const {
    return InvalidArgument(fmt::format("{}:{}: {}", name_, line_number_, what));
  }
  Status ParseHeader(std::string_view line);
  Status ParseRow(std::string_view line);
  Status ParsePlace(std::string_view* rest);
  void FillUp(uint64_t rows);
  Status CountColumns(size_t columns);
  Status ParseExperts(std::string_view column, const char* what, std::vector<uint16_t>* out);
  Status ParseWeights(std::string_view column, size_t expected);

  std::string_view rest_;
  const std::string& name_;
  size_t line_number_ = 0;
  RoutingTrace trace_;
  std::optional<uint32_t> announced_tokens_;
  uint64_t rows_ = 0;
  size_t columns_ = 0;  // of the first row; 0 before it
};

// Splits at `separator`; false at the end.
bool NextPart(std::string_view* rest, char separator, std::string_view* part) {
  if (rest->data() == nullptr) return false;
  const size_t end = rest->find(separator);
  *part = rest->substr(0, end);
  *rest = end == std::string_view::npos ? std::string_view() : rest->substr(end + 1);
  return true;
}

template <typename T>
bool ParseNumber(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

bool Parser::NextLine(std::string_view* line) {
  if (rest_.empty()) return false;
  const size_t end = rest_.find('\n');
  *line = rest_.substr(0, end);
  rest_ = end == std::string_view::npos ? std::string_view() : rest_.substr(end + 1);
  ++line_number_;
  if (!line->empty() && line->back() == '\r') line->remove_suffix(1);
  return true;
}

Status Parser::ParseHeader(std::string_view line) {
  if (!line.starts_with("# ")) {
    return Error("expected '# layers= experts= top_k= ...', found '" +
                 std::string(line.substr(0, 40)) + "'");
  }
  std::string_view rest = line.substr(2);
  const size_t note = rest.find("note=");
  if (note != std::string_view::npos) {
    trace_.note = rest.substr(note + 5);
    rest = rest.substr(0, note);
  }
  struct Field {
    const char* name;
    uint32_t highest;
    std::optional<uint32_t> value;
  };
  Field fields[] = {{"layers", kMaxLayers, {}},   {"experts", kMaxExperts, {}},
                    {"top_k", kMaxTopK, {}},      {"tokens", UINT32_MAX, {}},
                    {"prefill_tokens", UINT32_MAX, {}}};
  std::string_view word;
  while (NextPart(&rest, ' ', &word)) {
    const size_t equals = word.find('=');
    if (equals == std::string_view::npos) continue;
    for (Field& field : fields) {
      if (word.substr(0, equals) != field.name) continue;
      uint32_t value = 0;
      if (!ParseNumber(word.substr(equals + 1), &value) || value > field.highest) {
        return Error(fmt::format("field '{}' is '{}', expected a number up to {}", field.name,
                                 word.substr(equals + 1), field.highest));
      }
      field.value = value;
    }
  }
  for (uint32_t i = 0; i < 3; ++i) {
    if (fields[i].value.value_or(0) > 0) continue;
    return Error(fmt::format("field '{}' is missing or 0: expected a number from 1 to {}",
                             fields[i].name, fields[i].highest));
  }
  trace_.layers = *fields[0].value;
  trace_.experts = *fields[1].value;
  trace_.top_k = *fields[2].value;
  announced_tokens_ = fields[3].value;
  trace_.prefill_tokens = fields[4].value.value_or(0);
  if (trace_.top_k > trace_.experts) {
    return Error(fmt::format("field 'top_k' is {}, expected at most the {} experts", trace_.top_k,
                             trace_.experts));
  }
  if (uint64_t{trace_.layers} * trace_.top_k > kMaxRow) {
    return Error(fmt::format("{} layers x top_k {}: expected at most {} experts a token",
                             trace_.layers, trace_.top_k, kMaxRow));
  }
  return OkStatus();
}

Status Parser::ParseExperts(std::string_view column, const char* what, std::vector<uint16_t>* out) {
  const size_t begin = out->size();
  std::string_view part, rest = column;
  while (!column.empty() && NextPart(&rest, ' ', &part)) {
    uint16_t expert = 0;
    if (!ParseNumber(part, &expert) || expert >= trace_.experts) {
      return Error(fmt::format("{}: '{}', expected an expert below {}", what, part, trace_.experts));
    }
    if (out->size() == begin + trace_.top_k) {
      return Error(fmt::format("{}: more than top_k = {} experts", what, trace_.top_k));
    }
    if (std::find(out->begin() + static_cast<ptrdiff_t>(begin), out->end(), expert) != out->end()) {
      return Error(fmt::format("{}: expert {} twice", what, expert));
    }
    out->push_back(expert);
  }
  out->resize(begin + trace_.top_k, kNoTracedExpert);
  return OkStatus();
}

Status Parser::ParseWeights(std::string_view column, size_t expected) {
  const size_t begin = trace_.gate_weights.size();
  std::string_view part, rest = column;
  size_t count = 0;
  for (; !column.empty() && NextPart(&rest, ' ', &part); ++count) {
    float weight = 0;
    if (!ParseNumber(part, &weight)) {
      return Error(fmt::format("gate weights: '{}', expected a number", part));
    }
    if (count < expected) trace_.gate_weights.push_back(weight);
  }
  if (count != expected) {
    return Error(fmt::format("gate weights: {} found, expected one for each of {} experts", count,
                             expected));
  }
  trace_.gate_weights.resize(begin + trace_.top_k, 0.0f);
  return OkStatus();
}

Status Parser::CountColumns(size_t columns) {
  if (columns < 3 || columns > 6) {
    return Error(fmt::format("{} columns, expected 3 to 6", columns));
  }
  if (columns_ == 0) columns_ = columns;
  if (columns != columns_) {
    return Error(fmt::format("{} columns, expected {} as in the first row", columns, columns_));
  }
  return OkStatus();
}

// Token and layer. Rows that were not recorded are filled up, so that a row's place tells what it is.
Status Parser::ParsePlace(std::string_view* rest) {
  const uint64_t next_token = rows_ / trace_.layers, next_layer = rows_ % trace_.layers;
  uint64_t place[2] = {};
  for (uint64_t& number : place) {
    std::string_view column;
    NextPart(rest, ',', &column);
    if (!ParseNumber(column, &number)) return Error("'" + std::string(column) + "' is no number");
  }
  const auto [token, layer] = place;
  // A token may lack layers, but none may be missing altogether: a few bytes must not fill memory.
  const bool token_follows = token == next_token || (token == next_token + 1 && next_layer > 0);
  if (!token_follows || layer >= trace_.layers || (token == next_token && layer < next_layer)) {
    return Error(fmt::format("token {}, layer {}: expected token {}, layer {} or a later one of {}",
                             token, layer, next_token, next_layer, trace_.layers));
  }
  FillUp((token * trace_.layers + layer));
  return OkStatus();
}

void Parser::FillUp(uint64_t rows) {
  if (rows == rows_) return;
  rows_ = rows;
  const size_t size = static_cast<size_t>(rows_ * trace_.top_k);
  trace_.picks.resize(size, kNoTracedExpert);
  if (columns_ >= 5) {
    trace_.next.resize(size, kNoTracedExpert);
    trace_.after_next.resize(size, kNoTracedExpert);
  }
  if (columns_ == 4 || columns_ == 6) trace_.gate_weights.resize(size, 0.0f);
}

Status Parser::ParseRow(std::string_view line) {
  RETURN_IF_ERROR(CountColumns(1 + static_cast<size_t>(std::count(line.begin(), line.end(), ','))));
  std::string_view column, rest = line;
  RETURN_IF_ERROR(ParsePlace(&rest));
  NextPart(&rest, ',', &column);
  const size_t begin = trace_.picks.size();
  RETURN_IF_ERROR(ParseExperts(column, "experts", &trace_.picks));
  const auto row = trace_.picks.begin() + static_cast<ptrdiff_t>(begin);
  const auto picked = std::find(row, trace_.picks.end(), kNoTracedExpert) - row;
  if (columns_ >= 5) {
    NextPart(&rest, ',', &column);
    RETURN_IF_ERROR(ParseExperts(column, "lookahead to the next layer", &trace_.next));
    NextPart(&rest, ',', &column);
    RETURN_IF_ERROR(ParseExperts(column, "lookahead by two layers", &trace_.after_next));
  }
  if (columns_ == 4 || columns_ == 6) {
    NextPart(&rest, ',', &column);
    RETURN_IF_ERROR(ParseWeights(column, static_cast<size_t>(picked)));
  }
  ++rows_;
  return OkStatus();
}

Result<RoutingTrace> Parser::Parse() {
  std::string_view line;
  if (!NextLine(&line)) return InvalidArgument(name_ + ": empty, expected a routing trace");
  RETURN_IF_ERROR(ParseHeader(line));
  while (NextLine(&line)) {
    if (line.starts_with("#") || (line.empty() && rest_.empty())) continue;
    RETURN_IF_ERROR(ParseRow(line));
  }
  const uint64_t tokens = (rows_ + trace_.layers - 1) / trace_.layers;
  if (announced_tokens_ && *announced_tokens_ != tokens) {
    return Error(fmt::format("{} tokens, the header announced {}", tokens, *announced_tokens_));
  }
  if (trace_.prefill_tokens > tokens) {
    return Error(fmt::format("field 'prefill_tokens' is {}, expected at most the {} tokens",
                             trace_.prefill_tokens, tokens));
  }
  if (tokens > 0) FillUp(tokens * trace_.layers);
  return std::move(trace_);
}

void AppendExperts(std::span<const uint16_t> experts, std::string* out) {
  for (size_t i = 0; i < experts.size(); ++i) {
    fmt::format_to(std::back_inserter(*out), "{}{}", i == 0 ? "" : " ", experts[i]);
  }
}

std::string ZlibError(gzFile file) {
  int code = 0;
  const char* message = gzerror(file, &code);
  return code == Z_ERRNO || *message == '\0' ? std::strerror(errno) : message;
}

struct CloseGzip {
  void operator()(gzFile_s* file) const { gzclose(file); }
};

}  // namespace

std::span<const uint16_t> RoutingTrace::Row(const std::vector<uint16_t>& column, uint32_t token,
                                            uint32_t layer) const {
  if (column.empty()) return {};
  const auto begin = column.begin() + static_cast<ptrdiff_t>(token * row_size() + layer * size_t{top_k});
  const auto end = std::find(begin, begin + top_k, kNoTracedExpert);
  return {begin, end};
}

Result<RoutingTrace> ParseRoutingTrace(std::string_view text, const std::string& name) {
  return Parser(text, name).Parse();
}

std::string FormatRoutingTrace(const RoutingTrace& trace) {
  std::string text =
      fmt::format("# layers={} experts={} top_k={} tokens={} ", trace.layers, trace.experts,
                  trace.top_k, trace.tokens());
  if (trace.prefill_tokens > 0) text += fmt::format("prefill_tokens={} ", trace.prefill_tokens);
  std::string note = trace.note;
  std::replace(note.begin(), note.end(), '\n', ' ');
  text += fmt::format("note={}\n# columns: token,layer,actual experts (space separated, best first)",
                      note);
  const bool lookahead = !trace.next.empty(), weights = !trace.gate_weights.empty();
  if (lookahead) {
    text += ",experts the router of layer+1 picks from this layer's input,the same for layer+2 (both "
            "empty where there is no such layer)";
  }
  if (weights) text += ",gate weights of those experts";
  text += '\n';
  for (uint32_t token = 0; token < trace.tokens(); ++token) {
    for (uint32_t layer = 0; layer < trace.layers; ++layer) {
      fmt::format_to(std::back_inserter(text), "{},{},", token, layer);
      const std::span<const uint16_t> experts = trace.At(token, layer);
      AppendExperts(experts, &text);
      for (uint32_t distance = 1; lookahead && distance <= 2; ++distance) {
        text += ',';
        AppendExperts(trace.Lookahead(token, layer, distance), &text);
      }
      const size_t row = token * trace.row_size() + layer * size_t{trace.top_k};
      for (size_t i = 0; weights && i < std::max<size_t>(experts.size(), 1); ++i) {
        text += i == 0 ? "," : " ";
        if (i < experts.size()) text += fmt::format("{:.5f}", trace.gate_weights[row + i]);
      }
      text += '\n';
    }
  }
  return text;
}

Result<RoutingTrace> ReadRoutingTrace(const std::string& path) {
  const std::unique_ptr<gzFile_s, CloseGzip> file(gzopen(path.c_str(), "rb"));
  if (!file) return IoErrorFromErrno("open " + path, errno);
  std::string text;
  for (;;) {
    constexpr size_t kBlock = 1 << 20;
    if (text.size() + kBlock > kMaxTextBytes) {
      return InvalidArgument(path + ": more than 4 GiB of text");
    }
    const size_t size = text.size();
    text.resize(size + kBlock);
    const int count = gzread(file.get(), text.data() + size, kBlock);
    if (count < 0) return InvalidArgument(path + ": " + ZlibError(file.get()));
    text.resize(size + static_cast<size_t>(count));
    if (static_cast<size_t>(count) < kBlock) break;
  }
  int code = 0;
  gzerror(file.get(), &code);
  if (code != Z_OK && code != Z_STREAM_END) {
    return InvalidArgument(path + ": " + ZlibError(file.get()));
  }
  return ParseRoutingTrace(text, path);
}

Status WriteRoutingTrace(const RoutingTrace& trace, const std::string& path) {
  const std::string text = FormatRoutingTrace(trace), partial = path + ".partial";
  gzFile file = gzopen(partial.c_str(), path.ends_with(".gz") ? "wb6" : "wbT");
  if (file == nullptr) return IoErrorFromErrno("create " + partial, errno);
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t block = std::min<size_t>(rest.size(), 1 << 20);
    if (gzwrite(file, rest.data(), static_cast<unsigned>(block)) != static_cast<int>(block)) {
      const std::string why = ZlibError(file);
      gzclose(file);
      std::remove(partial.c_str());
      return IoError("write " + partial + ": " + why);
    }
    rest.remove_prefix(block);
  }
  if (gzclose(file) != Z_OK || std::rename(partial.c_str(), path.c_str()) != 0) {
    const int error_number = errno;
    std::remove(partial.c_str());
    return IoErrorFromErrno("write " + path, error_number);
  }
  return OkStatus();
}

}  // namespace moraine
