// moraine run: one prompt, streamed to stdout, with a report of where time and bytes went on stderr.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <future>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "common_options.h"
#include "engine_session.h"

namespace moraine {
namespace {

struct RunArguments {
  RunnerArguments runner;
  std::string prompt, system;
  bool raw = false, json = false, quiet = false, layers = false, no_warm = false;
  uint32_t max_tokens = 512;
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<uint32_t> top_k;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

// Ctrl-C cancels the generation; what was generated and the report are still printed.
std::atomic<Generation*> running_generation{nullptr};
void HandleInterrupt(int) {
  if (Generation* generation = running_generation.load()) generation->Cancel();
}

Result<std::vector<int32_t>> EncodePrompt(const Engine& engine, const RunArguments& a,
                                          const std::string& prompt) {
  if (a.raw) return engine.text().tokenizer().Encode(prompt);
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  if (!a.system.empty()) messages.push_back({{"role", "system"}, {"content", a.system}});
  messages.push_back({{"role", "user"}, {"content", prompt}});
  return engine.text().EncodeChat({{"messages", messages}, {"add_generation_prompt", true}});
}

SamplingOptions Sampling(const Engine& engine, const RunArguments& a) {
  SamplingOptions s = engine.default_sampling();
  s.temperature = a.temperature.value_or(s.temperature);
  s.top_p = a.top_p.value_or(s.top_p);
  s.top_k = a.top_k.value_or(s.top_k);
  s.min_p = a.min_p.value_or(s.min_p);
  s.repetition_penalty = a.repetition_penalty.value_or(s.repetition_penalty);
  s.presence_penalty = a.presence_penalty.value_or(s.presence_penalty);
  s.frequency_penalty = a.frequency_penalty.value_or(s.frequency_penalty);
  s.seed = a.seed.value_or(static_cast<uint64_t>(RealClock().NowNs()));
  return s;
}

void PrintJson(const std::string& text, const std::string& prompt, const GenerationEvent& end,
               const EngineStats& stats) {
  const char* reasons[] = {"stop", "length", "cancelled", "error"};
  nlohmann::ordered_json json = {
      {"prompt", prompt},
      {"text", text},
      {"finish_reason", reasons[static_cast<int>(end.finish_reason)]},
      {"prompt_tokens", end.timings.prompt_tokens},
      {"completion_tokens", end.timings.completion_tokens},
      {"prefill_seconds", static_cast<double>(end.timings.prefill_ns) * 1e-9},
      {"decode_seconds", static_cast<double>(end.timings.decode_ns) * 1e-9},
      {"stats", nlohmann::ordered_json::parse(stats.ToJson())}};
  if (!end.error.ok()) json["error"] = end.error.message();
  std::printf("%s\n",
              json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

Status Run(const RunArguments& a) {
  EngineOptions options;
  ASSIGN_OR_RETURN(options.runner, FinishRunnerOptions(a.runner));
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(std::move(options)));
  std::string prompt = a.prompt;
  if (prompt == "-") {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  if (!a.no_warm) RETURN_IF_ERROR(WarmEngine(*engine));
  GenerationRequest request;
  ASSIGN_OR_RETURN(request.prompt, EncodePrompt(*engine, a, prompt));
  request.sampling = Sampling(*engine, a);
  request.max_tokens = a.max_tokens;
  request.stop = a.stop;
  request.ignore_eos = a.ignore_eos;

  std::string text;
  std::promise<GenerationEvent> finished;
  const bool stream = !a.json;
  request.on_event = [&](const GenerationEvent& event) {
    text += event.text;
    if (stream && !event.text.empty()) {
      std::fwrite(event.text.data(), 1, event.text.size(), stdout);
      std::fflush(stdout);
    }
    if (event.kind == GenerationEvent::Kind::kFinished) finished.set_value(event);
  };
  ASSIGN_OR_RETURN(const auto generation, engine->Submit(std::move(request)));
  running_generation = generation.get();
  std::signal(SIGINT, HandleInterrupt);
  const GenerationEvent end = finished.get_future().get();
  std::signal(SIGINT, SIG_DFL);
  running_generation = nullptr;

  const EngineStats stats = engine->Stats();
  if (stream) {
    if (text.empty() || text.back() != '\n') std::printf("\n");
    std::fflush(stdout);
    if (!a.quiet) std::fprintf(stderr, "\n%s", stats.ToText(a.layers).c_str());
  } else {
    PrintJson(text, prompt, end, stats);
  }
  KeepStatistics(*engine);
  return end.finish_reason == FinishReason::kError ? end.error : OkStatus();
}

}  // namespace

void RegisterRunCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<RunArguments>();
  CLI::App* command = app.add_subcommand("run", "Answer one prompt, streaming to stdout");
  AddRunnerArguments(command, &a->runner);
  AddGpuArguments(command, &a->runner);
  command->add_option("PROMPT", a->prompt, "the prompt; - reads stdin")->required();
  command->add_option("--system", a->system, "system message");
  command->add_flag("--raw", a->raw, "continue the prompt as it is, without the chat template");
  command->add_flag("--json", a->json, "one JSON object at the end instead of a stream");
  command->add_flag("--quiet", a->quiet, "no report on stderr");
  command->add_flag("--layers", a->layers, "the report with one line a layer");
  command->add_flag("--no-warm", a->no_warm, "do not preload the experts of the saved heat profile");
  command->add_option("--max-tokens", a->max_tokens, "longest answer; 0: to the context's end")
      ->check(WholeNumber(UINT32_MAX))
      ->capture_default_str();
  struct NumberOption {
    const char *name, *help;
    std::optional<float>* target;
  };
  const NumberOption numbers[] = {
      {"--temperature", "0: greedy (default: the model's)", &a->temperature},
      {"--top-p", "sample among the likeliest tokens of this total probability", &a->top_p},
      {"--min-p", "drop tokens below this share of the likeliest one's probability", &a->min_p},
      {"--repetition-penalty", "divides the logits of tokens already there; 1: none",
       &a->repetition_penalty},
      {"--presence-penalty", "subtracted once from a token already generated",
       &a->presence_penalty},
      {"--frequency-penalty", "subtracted each time a token was generated",
       &a->frequency_penalty}};
  for (const NumberOption& option : numbers) {
    command->add_option(option.name, *option.target, option.help)->check(Number());
  }
  command->add_option("--top-k", a->top_k, "sample among the k likeliest tokens; 0: all")
      ->check(WholeNumber(UINT32_MAX));
  command->add_option("--seed", a->seed, "same seed, same answer (default: another every time)")
      ->check(WholeNumber(UINT64_MAX));
  command->add_option("--stop", a->stop, "strings that end the answer");
  command->add_flag("--ignore-eos", a->ignore_eos, "go on after the model's end-of-text token");
  command->callback([a, exit_code] {
    const Status status = Run(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
