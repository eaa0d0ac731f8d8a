#include "engine/evaluation.h"

#include <fmt/format.h>
#define XXH_STATIC_LINKING_ONLY // the streaming state as a member
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "store/checkpoint.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;

// As text_nll.json was measured.
constexpr size_t kWindowTokens = 512;
// Below this distance of the best two logits a reference's choice is rounding, not the model's.
constexpr double kTieMargin = 1e-3;
// Tokens of a window whose baseline logits are kept at a time.
constexpr size_t kBaselineTokens = 32;
constexpr size_t kMaxAnswerTokens = 256;
constexpr size_t kMaxMismatchLines = 20;

Result<std::string> ReadWholeFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return IoErrorFromErrno(path, errno);
  if (std::filesystem::is_directory(path)) return InvalidArgument(path + ": a directory");
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// What nlohmann says, without the number of the exception in brackets in front.
std::string Reason(const ordered_json::exception& error) {
  const std::string_view what = error.what();
  const size_t end = what.find("] ");
  return std::string(end == std::string_view::npos ? what : what.substr(end + 2));
}

// Parsed JSON of the expected shape; `read` throws nlohmann's exceptions on any other, which become one
// error that names the file.
template <typename Read>
Status ReadJsonFile(const std::string& path, Read&& read) {
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path));
  try {
    read(ordered_json::parse(text));
  } catch (const ordered_json::exception& error) {
    return InvalidArgument(path + ": " + Reason(error));
  }
  return OkStatus();
}

// Calls `compare` on each item of a file that is a JSON list, until one fails; the error names the item.
template <typename Compare>
Status ForEachItem(const std::string& file, Compare&& compare) {
  std::vector<ordered_json> items;
  RETURN_IF_ERROR(ReadJsonFile(file, [&](const ordered_json& json) {
    for (const auto& item : json) items.push_back(item);
  }));
  for (size_t i = 0; i < items.size(); ++i) {
    Status status;
    try {
      status = compare(items[i]);
    } catch (const ordered_json::exception& error) {
      status = InvalidArgument(Reason(error));
    }
    if (!status.ok()) return status.WithContext(fmt::format("{}: item {}", file, i));
  }
  return OkStatus();
}

// The F32 tensor 'logits' of a safetensors file, which must be positions x vocab.
Result<std::vector<float>> ReadLogits(const std::string& path, uint64_t positions,
                                      uint64_t vocab) {
  ASSIGN_OR_RETURN(const std::string file, ReadWholeFile(path));
  uint64_t header_bytes = 0;
  if (file.size() >= sizeof(header_bytes)) {
    std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  }
  if (file.size() < 8 || header_bytes > file.size() - 8) {
    return Corruption(fmt::format("{}: header of {} bytes in a file of {}", path, header_bytes,
                                  file.size()));
  }
  const uint64_t data = 8 + header_bytes;
  ASSIGN_OR_RETURN(const std::vector<SourceTensor> tensors,
                   ParseSafetensorsHeader(std::string_view(file).substr(8, header_bytes),
                                          file.size() - data, path));
  const std::vector<uint64_t> shape{positions, vocab};
  for (const SourceTensor& tensor : tensors) {
    if (tensor.name != "logits") continue;
    if (tensor.type != SourceType::kF32 || tensor.shape != shape) {
      return InvalidArgument(fmt::format("{}: tensor 'logits' is {} {}, expected F32 [{}]", path,
                                         SourceTypeName(tensor.type), tensor.ShapeText(),
                                         fmt::join(shape, ", ")));
    }
    std::vector<float> logits(positions * vocab);
    std::memcpy(logits.data(), file.data() + data + tensor.offset, tensor.bytes);
    return logits;
  }
  return NotFound(path + ": no tensor 'logits'");
}

struct BestTwo {
  int32_t token = 0;
  float margin = 0;
};

BestTwo FindBestTwo(std::span<const float> logits) {
  BestTwo best;
  float first = -INFINITY, second = -INFINITY;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > first) {
      second = first;
      first = logits[i];
      best.token = static_cast<int32_t>(i);
    } else if (logits[i] > second) {
      second = logits[i];
    }
  }
  best.margin = first - second;
  return best;
}

// log(sum(exp(logits)))
double LogSumExp(std::span<const float> logits) {
  const float best = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - best);
  return std::log(sum) + best;
}

double NegativeLogLikelihood(std::span<const float> logits, int32_t token) {
  return LogSumExp(logits) - logits[static_cast<size_t>(token)];
}

// sum p (log p - log q), p and q being softmax of the two.
double KlDivergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  const double p_norm = LogSumExp(p_logits), q_norm = LogSumExp(q_logits);
  double sum = 0;
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double log_p = p_logits[i] - p_norm;
    sum += std::exp(log_p) * (log_p - (q_logits[i] - q_norm));
  }
  return sum;
}

}  // namespace

class Evaluation::Impl {
 public:
  explicit Impl(Runner& runner) : runner_(runner) { XXH3_64bits_reset(&hash_); }

  // Runs tokens and hands every logit row of the mode to `visit`, after hashing it.
  Status Run(std::span<const int32_t> tokens, Runner::LogitsMode mode,
             const Runner::LogitsSink& visit) {
    const Runner::LogitsSink sink = [&](uint32_t position, std::span<const float> logits) {
      XXH3_64bits_update(&hash_, logits.data(), logits.size_bytes());
      hashed_ = true;
      visit(position, logits);
    };
    Runner::ForwardOptions options;
    options.logits = mode;
    options.sink = &sink;
    return runner_.Forward(tokens, options);
  }

  // Prefills the prompt and continues greedily. first_logits sees the prompt's last logits.
  struct Step {
    int32_t token;
    float margin;
  };
  Result<std::vector<Step>> Greedy(std::span<const int32_t> prompt, size_t count,
                                   std::span<const int32_t> stop,
                                   const std::function<void(std::span<const float>)>& first_logits);

  Status CompareReference(const ordered_json& item);
  void CompareContinuation(const std::string& what, std::span<const Step> steps,
                           std::span<const int32_t> expected, double min_margin);
  Status CompareAnswer(const ordered_json& item);
  // Adds a window's NLL and, with a baseline, its divergence to the sums.
  Status ReadWindow(std::span<const int32_t> ids, double* nll, Divergence* divergence);
  void RaiseError(double error) {
    report_.logits_max_abs_error = std::max(report_.logits_max_abs_error.value_or(0), error);
  }
  void Mismatch(const std::string& line) {
    if (report_.mismatches.size() >= kMaxMismatchLines) return;
    std::string& shown = report_.mismatches.emplace_back();
    for (const char c : line) shown += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  Status NeedText(const char* part) const {
    if (text_) return OkStatus();
    return FailedPrecondition(fmt::format("{} needs a tokenizer, and the store has none", part));
  }

  Runner& runner_;
  Runner* baseline_ = nullptr;
  std::vector<float> baseline_logits_;  // kBaselineTokens x vocabulary
  std::optional<TextModel> text_;
  EvaluationReport report_;
  XXH3_state_t hash_;
  bool hashed_ = false;
};

Result<std::vector<Evaluation::Impl::Step>> Evaluation::Impl::Greedy(
    std::span<const int32_t> prompt, size_t count, std::span<const int32_t> stop,
    const std::function<void(std::span<const float>)>& first_logits) {
  std::vector<Step> steps;
  BestTwo next;
  const Runner::LogitsSink look = [&](uint32_t, std::span<const float> logits) {
    if (steps.empty() && first_logits) first_logits(logits);
    next = FindBestTwo(logits);
  };
  runner_.ResetSequence();
  RETURN_IF_ERROR(Run(prompt, Runner::LogitsMode::kLast, look));
  while (true) {
    steps.push_back({next.token, next.margin});
    const bool stopped = std::find(stop.begin(), stop.end(), next.token) != stop.end();
    if (stopped || steps.size() >= count || runner_.position() >= runner_.max_context()) break;
    RETURN_IF_ERROR(Run(std::span(&steps.back().token, 1), Runner::LogitsMode::kLast, look));
  }
  return steps;
}

void Evaluation::Impl::CompareContinuation(const std::string& what, std::span<const Step> steps,
                                           std::span<const int32_t> expected, double min_margin) {
  if (!report_.greedy) report_.greedy.emplace();
  ++report_.greedy->total;
  size_t i = 0;
  while (i < expected.size() && i < steps.size() && steps[i].token == expected[i]) ++i;
  const bool same = i == expected.size();
  // Our margin at the first difference differs from the reference's by at most twice the logit error;
  // a tie there is only accepted if the reference itself had one.
  const bool tie = !same && i < steps.size() && min_margin < kTieMargin &&
                   steps[i].margin < 2 * kTieMargin;
  if (same || tie) {
    ++report_.greedy->match;
    return;
  }
  Mismatch(fmt::format("{}: step {}: token {}, expected {}", what, i,
                       i < steps.size() ? steps[i].token : -1, expected[i]));
}

Status Evaluation::Impl::CompareReference(const ordered_json& item) {
  const auto ids = item.at("ids").get<std::vector<int32_t>>();
  const auto expected = item.at("greedy_fp32").get<std::vector<int32_t>>();
  const auto top = item.at("last_logits_top").get<std::vector<std::pair<uint32_t, double>>>();
  for (const auto& [id, logit] : top) {
    if (id < runner_.config().vocab_size) continue;
    return InvalidArgument(fmt::format("last_logits_top names token {}, the vocabulary has {}", id,
                                       runner_.config().vocab_size));
  }
  ASSIGN_OR_RETURN(const std::vector<Step> steps,
                   Greedy(ids, expected.size(), {}, [&](std::span<const float> logits) {
                     for (const auto& [id, logit] : top) {
                       RaiseError(std::abs(double{logits[id]} - logit));
                     }
                   }));
  CompareContinuation(fmt::format("reference '{}'", item.value("prompt", "").substr(0, 40)), steps,
                      expected, item.value("min_margin", 1.0));
  return OkStatus();
}

Status Evaluation::Impl::CompareAnswer(const ordered_json& item) {
  const auto question = item.at("question").get<std::string>();
  const auto answer = item.at("answer").get<std::string>();
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   text_->EncodeChat({{"messages", {{{"role", "user"}, {"content", question}}}},
                                      {"add_generation_prompt", true}}));
  const std::vector<int32_t>& eos = runner_.info().eos_tokens;
  ASSIGN_OR_RETURN(const std::vector<Step> steps, Greedy(ids, kMaxAnswerTokens, eos, nullptr));
  std::vector<int32_t> tokens;
  for (const Step& step : steps) {
    if (std::find(eos.begin(), eos.end(), step.token) == eos.end()) tokens.push_back(step.token);
  }
  const std::string text = text_->tokenizer().Decode(tokens, /*skip_special_tokens=*/true);
  ++report_.chat->total;
  if (text == answer) {
    ++report_.chat->match;
  } else {
    Mismatch(fmt::format("chat '{}': '{}', expected '{}'", question, text, answer));
  }
  return OkStatus();
}

Evaluation::Evaluation() = default;
Evaluation::~Evaluation() = default;

Result<std::unique_ptr<Evaluation>> Evaluation::Create(Runner& runner) {
  std::unique_ptr<Evaluation> evaluation(new Evaluation());
  evaluation->impl_ = std::make_unique<Impl>(runner);
  Impl& impl = *evaluation->impl_;
  auto text = TextModel::Load(runner.store().manifest());
  if (text.ok()) {
    impl.text_.emplace(std::move(*text));
  } else if (text.status().code() != StatusCode::kNotFound) {
    return text.status();
  }
  return evaluation;
}

Status Evaluation::AddReference(const std::string& file) {
  return ForEachItem(file, [&](const ordered_json& item) { return impl_->CompareReference(item); });
}

Status Evaluation::AddFixture(const std::string& directory) {
  std::vector<int32_t> prompt, expected;
  size_t prefix = 0;
  RETURN_IF_ERROR(ReadJsonFile(directory + "/expected.json", [&](const ordered_json& json) {
    prompt = json.at("prompt_ids").get<std::vector<int32_t>>();
    constexpr std::string_view kGreedy = "greedy_from_first_";
    for (const auto& [name, value] : json.items()) {
      if (!name.starts_with(kGreedy)) continue;
      prefix = std::min<size_t>(std::strtoul(name.c_str() + kGreedy.size(), nullptr, 10),
                                prompt.size());
      expected = value.get<std::vector<int32_t>>();
    }
  }));
  if (prompt.empty() || prefix == 0 || expected.empty()) {
    return InvalidArgument(directory +
                           "/expected.json: expected prompt_ids and greedy_from_first_N");
  }
  const uint32_t vocab = impl_->runner_.config().vocab_size;
  ASSIGN_OR_RETURN(const std::vector<float> reference,
                   ReadLogits(directory + "/logits.safetensors", prompt.size(), vocab));
  std::vector<float> prefilled(reference.size());

  Impl& impl = *impl_;
  impl.runner_.ResetSequence();
  RETURN_IF_ERROR(impl.Run(prompt, Runner::LogitsMode::kAll,
                           [&](uint32_t position, std::span<const float> logits) {
                             const size_t at = size_t{position} * vocab;
                             std::copy(logits.begin(), logits.end(), &prefilled[at]);
                             for (uint32_t i = 0; i < vocab; ++i) {
                               impl.RaiseError(std::abs(double{logits[i]} - reference[at + i]));
                             }
                           }));
  impl.runner_.ResetSequence();
  double difference = 0;
  for (const int32_t token : prompt) {
    RETURN_IF_ERROR(impl.Run(std::span(&token, 1), Runner::LogitsMode::kLast,
                             [&](uint32_t position, std::span<const float> logits) {
                               const size_t at = size_t{position} * vocab;
                               for (uint32_t i = 0; i < vocab; ++i) {
                                 difference = std::max<double>(
                                     difference, std::abs(logits[i] - prefilled[at + i]));
                               }
                             }));
  }
  auto& worst = impl.report_.prefill_decode_max_abs_difference;
  worst = std::max(worst.value_or(0), difference);
  ASSIGN_OR_RETURN(const auto steps, impl.Greedy(std::span(prompt).first(prefix), expected.size(),
                                                 {}, nullptr));
  impl.CompareContinuation("fixture " + directory, steps, expected, 1.0);
  return OkStatus();
}

Status Evaluation::SetBaseline(Runner& baseline) {
  const uint32_t own = impl_->runner_.config().vocab_size, other = baseline.config().vocab_size;
  if (own != other) {
    return InvalidArgument(fmt::format("the baseline '{}' has a vocabulary of {}, expected {}",
                                       baseline.info().name, other, own));
  }
  if (baseline.max_context() < kWindowTokens) {
    return InvalidArgument(fmt::format("the baseline has a context of {} tokens, expected {}",
                                       baseline.max_context(), kWindowTokens));
  }
  impl_->baseline_ = &baseline;
  impl_->baseline_logits_.resize(kBaselineTokens * own);
  return OkStatus();
}

Status Evaluation::AddText(const std::string& file) {
  Impl& impl = *impl_;
  RETURN_IF_ERROR(impl.NeedText("--text"));
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(file));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   impl.text_->tokenizer().Encode(text, {.add_special_tokens = false}));
  if (impl.runner_.max_context() < kWindowTokens) {
    return InvalidArgument(fmt::format("--text needs a context of {} tokens, --max-context is {}",
                                       kWindowTokens, impl.runner_.max_context()));
  }
  const size_t windows = ids.empty() ? 0 : (ids.size() - 1) / kWindowTokens;
  if (windows == 0) {
    return InvalidArgument(fmt::format("{}: {} tokens, a window needs {}", file, ids.size(),
                                       kWindowTokens + 1));
  }
  for (const int32_t id : ids) {
    if (id >= 0 && static_cast<uint32_t>(id) < impl.runner_.config().vocab_size) continue;
    return FailedPrecondition(fmt::format("{}: the tokenizer gives token {}, the model's vocabulary "
                                          "has {}", file, id, impl.runner_.config().vocab_size));
  }
  double nll = 0;
  Divergence divergence;
  for (size_t w = 0; w < windows; ++w) {
    RETURN_IF_ERROR(impl.ReadWindow(std::span(ids).subspan(w * kWindowTokens, kWindowTokens + 1),
                                    &nll, &divergence));
  }
  const auto positions = static_cast<double>(windows * kWindowTokens);
  const std::string name = std::filesystem::path(file).filename().string();
  impl.report_.nll[name] = nll / positions;
  if (impl.baseline_ != nullptr) {
    impl.report_.divergence[name] = {divergence.kl / positions, divergence.same_best / positions};
  }
  return OkStatus();
}

Status Evaluation::Impl::ReadWindow(std::span<const int32_t> ids, double* nll,
                                    Divergence* divergence) {
  const size_t vocabulary = runner_.config().vocab_size;
  const auto baseline_row = [&](uint32_t position) {
    return std::span(baseline_logits_).subspan(position % kBaselineTokens * vocabulary, vocabulary);
  };
  const Runner::LogitsSink keep = [&](uint32_t position, std::span<const float> logits) {
    std::copy(logits.begin(), logits.end(), baseline_row(position).begin());
  };
  runner_.ResetSequence();
  if (baseline_ != nullptr) baseline_->ResetSequence();
  const size_t step = baseline_ == nullptr ? kWindowTokens : kBaselineTokens;
  for (size_t begin = 0; begin < kWindowTokens; begin += step) {
    if (baseline_ != nullptr) {
      RETURN_IF_ERROR(baseline_->Forward(ids.subspan(begin, step),
                                         {.logits = Runner::LogitsMode::kAll, .sink = &keep}));
    }
    RETURN_IF_ERROR(Run(ids.subspan(begin, step), Runner::LogitsMode::kAll,
                        [&](uint32_t position, std::span<const float> logits) {
      *nll += NegativeLogLikelihood(logits, ids[position + 1]);
      if (baseline_ == nullptr) return;
      divergence->kl += KlDivergence(baseline_row(position), logits);
      divergence->same_best +=
          FindBestTwo(logits).token == FindBestTwo(baseline_row(position)).token;
    }));
  }
  return OkStatus();
}

Status Evaluation::AddChat(const std::string& file) {
  Impl& impl = *impl_;
  RETURN_IF_ERROR(impl.NeedText("--chat"));
  RETURN_IF_ERROR(impl.text_->chat_template_status());
  impl.report_.chat.emplace();
  return ForEachItem(file, [&](const ordered_json& item) { return impl.CompareAnswer(item); });
}

const EvaluationReport& Evaluation::Finish() {
  if (impl_->hashed_) {
    impl_->report_.digest = fmt::format("{:016x}", XXH3_64bits_digest(&impl_->hash_));
  }
  return impl_->report_;
}

std::string EvaluationReport::ToJson() const {
  ordered_json json = ordered_json::object();
  if (greedy) json["greedy"] = {{"match", greedy->match}, {"total", greedy->total}};
  if (logits_max_abs_error) json["logits_max_abs_error"] = *logits_max_abs_error;
  if (prefill_decode_max_abs_difference) {
    json["prefill_decode_max_abs_difference"] = *prefill_decode_max_abs_difference;
  }
  if (!nll.empty()) json["nll"] = nll;
  for (const auto& [file, d] : divergence) {
    json["divergence"][file] = {{"kl", d.kl}, {"same_best", d.same_best}};
  }
  if (chat) json["chat"] = {{"match", chat->match}, {"total", chat->total}};
  if (!digest.empty()) json["digest"] = digest;
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string EvaluationReport::ToText() const {
  std::string text;
  const auto line = [&](const char* what, const std::string& value) {
    text += fmt::format("{:<36} {}\n", what, value);
  };
  if (greedy) {
    line("greedy continuations identical", fmt::format("{} of {}", greedy->match, greedy->total));
  }
  if (logits_max_abs_error) {
    line("largest logit error", fmt::format("{:.3g}", *logits_max_abs_error));
  }
  if (prefill_decode_max_abs_difference) {
    line("largest prefill/decode difference",
         fmt::format("{:.3g}", *prefill_decode_max_abs_difference));
  }
  for (const auto& [file, value] : nll) {
    line(("NLL of " + file).c_str(), fmt::format("{:.5f} (perplexity {:.3f})", value,
                                                 std::exp(value)));
  }
  for (const auto& [file, d] : divergence) {
    line(("KL from the baseline, " + file).c_str(),
         fmt::format("{:.6f} nats a token, same best token {:.2f} %", d.kl, 100 * d.same_best));
  }
  if (chat) line("chat answers exact", fmt::format("{} of {}", chat->match, chat->total));
  if (!digest.empty()) line("digest of all logits", digest);
  for (const std::string& mismatch : mismatches) text += "  differs: " + mismatch + "\n";
  return text;
}

}  // namespace moraine
