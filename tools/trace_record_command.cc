// moraine trace record: runs a prompt or a text and writes down the routing of every token, with what the
// next two layers' routers expected, for `trace replay` and for people.
#include <fmt/format.h>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common_options.h"
#include "engine/routing_recorder.h"
#include "engine/runner.h"
#include "engine/text_model.h"
#include "model/sampler.h"
#include "residency/routing_trace.h"

namespace moraine {
namespace {

struct RecordArguments {
  RunnerArguments runner;
  std::string out, prompt, text;
  bool raw = false;
  uint32_t max_tokens = 256, window = 512;
};

class TraceRecording {
 public:
  explicit TraceRecording(const RecordArguments& arguments) : arguments_(arguments) {}

  Status Run() {
    ASSIGN_OR_RETURN(RunnerOptions options, FinishRunnerOptions(arguments_.runner));
    if (options.defer_experts > 0 || options.prefer_resident > 0) {
      return InvalidArgument("--lossy-defer and --lossy-prefer-resident change what the routers choose: "
                             "a trace is recorded without them");
    }
    ASSIGN_OR_RETURN(runner_, Runner::Open(options));
    ASSIGN_OR_RETURN(RoutingRecorder recorder, RoutingRecorder::Create(runner_->config()));
    ASSIGN_OR_RETURN(const TextModel text, TextModel::Load(runner_->store().manifest()));
    runner_->SetRoutingRecorder(&recorder);
    ASSIGN_OR_RETURN(const uint32_t prefill_tokens,
                     arguments_.text.empty() ? Generate(text) : Read(text));
    runner_->SetRoutingRecorder(nullptr);
    const RoutingTrace trace = recorder.Take(prefill_tokens, Note());
    RETURN_IF_ERROR(WriteRoutingTrace(trace, arguments_.out));
    std::printf("%s: %u tokens (%u of a prompt), %u layers, %u experts, top %u\n",
                arguments_.out.c_str(), trace.tokens(), trace.prefill_tokens, trace.layers,
                trace.experts, trace.top_k);
    return OkStatus();
  }

 private:
  // The model's own words: a prompt, then what it answers, greedily. Returns the prompt's length.
  Result<uint32_t> Generate(const TextModel& text) {
    std::vector<int32_t> ids;
    if (arguments_.raw) {
      ASSIGN_OR_RETURN(ids, text.tokenizer().Encode(arguments_.prompt));
    } else {
      nlohmann::ordered_json messages = {{{"role", "user"}, {"content", arguments_.prompt}}};
      ASSIGN_OR_RETURN(ids, text.EncodeChat({{"messages", messages},
                                             {"add_generation_prompt", true}}));
    }
    if (ids.empty()) return InvalidArgument("the prompt has no tokens");
    std::vector<float> logits;
    const Runner::LogitsSink keep = [&](uint32_t, std::span<const float> values) {
      logits.assign(values.begin(), values.end());
    };
    RETURN_IF_ERROR(runner_->Forward(ids, {.sink = &keep}));
    const std::vector<int32_t>& ends = runner_->info().eos_tokens;
    for (uint32_t i = 0; i < arguments_.max_tokens; ++i) {
      const auto best = std::max_element(logits.begin(), logits.end());
      const auto token = static_cast<int32_t>(best - logits.begin());
      if (std::find(ends.begin(), ends.end(), token) != ends.end()) break;
      if (runner_->position() == runner_->max_context()) break;
      RETURN_IF_ERROR(runner_->Forward(std::span(&token, 1), {.sink = &keep}));
    }
    return static_cast<uint32_t>(ids.size());
  }

  // Somebody else's words, in windows that know nothing of each other. What a token takes is the same in
  // prefill and decode, bit for bit, so it is computed as a prompt and counts as decode.
  Result<uint32_t> Read(const TextModel& text) {
    std::ifstream stream(arguments_.text, std::ios::binary);
    if (!stream) return IoErrorFromErrno("open " + arguments_.text, errno);
    const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
    ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                     text.tokenizer().Encode(bytes, {.add_special_tokens = false}));
    if (ids.empty()) return InvalidArgument(arguments_.text + ": no tokens");
    if (ids.size() > arguments_.max_tokens) ids.resize(arguments_.max_tokens);
    const size_t window = std::min(arguments_.window, runner_->max_context());
    for (size_t begin = 0; begin < ids.size(); begin += window) {
      runner_->ResetSequence();
      const size_t count = std::min(window, ids.size() - begin);
      RETURN_IF_ERROR(runner_->Forward(std::span(ids).subspan(begin, count),
                                       {.logits = Runner::LogitsMode::kNone}));
    }
    return 0u;
  }

  std::string Note() const {
    const std::string& model = runner_->info().name;
    if (arguments_.text.empty()) return fmt::format("{}: a prompt and its greedy answer", model);
    return fmt::format("{} on {} in windows of {} tokens", model,
                       std::filesystem::path(arguments_.text).filename().string(),
                       arguments_.window);
  }

  const RecordArguments& arguments_;
  std::unique_ptr<Runner> runner_;
};

}  // namespace

void RegisterTraceRecordCommand(CLI::App& trace, int* exit_code) {
  auto a = std::make_shared<RecordArguments>();
  CLI::App* command =
      trace.add_subcommand("record", "Write down which experts a prompt or a text takes");
  AddRunnerArguments(command, &a->runner);
  command->add_option("TRACE", a->out, "the trace to write; gzip if the name ends in .gz")
      ->required();
  auto* source = command->add_option_group("what to run");
  CLI::Option* prompt = source->add_option("--prompt", a->prompt, "a prompt, answered greedily");
  source->add_option("--text", a->text, "a file, read as it is");
  source->require_option(1);
  command->add_flag("--raw", a->raw, "continue the prompt as it is, without the chat template")
      ->needs(prompt);
  command->add_option("--max-tokens", a->max_tokens, "tokens to generate, or to read of the text")
      ->check(WholeNumber(UINT32_MAX))
      ->capture_default_str();
  command->add_option("--window", a->window, "tokens of the text that are read in one context")
      ->check(WholeNumber(UINT32_MAX) & CLI::PositiveNumber)
      ->capture_default_str();
  command->callback([a, exit_code] {
    const Status status = TraceRecording(*a).Run();
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
