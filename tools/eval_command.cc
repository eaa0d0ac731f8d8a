// moraine eval: logits, greedy agreement, NLL and chat answers against references.
#include <cstdio>
#include <memory>

#include "base/log.h"
#include "commands.h"
#include "common_options.h"
#include "engine/evaluation.h"

namespace moraine {
namespace {

struct EvalArguments {
  RunnerArguments runner;
  std::vector<std::string> references, fixtures, texts, chats;
  std::string baseline;
  bool json = false;
};

Result<EvaluationReport> Evaluate(const EvalArguments& arguments) {
  ASSIGN_OR_RETURN(RunnerOptions options, FinishRunnerOptions(arguments.runner));
  ASSIGN_OR_RETURN(const std::unique_ptr<Runner> runner, Runner::Open(options));
  ASSIGN_OR_RETURN(const auto evaluation, Evaluation::Create(*runner));
  std::unique_ptr<Runner> baseline;
  if (!arguments.baseline.empty()) {
    RunnerOptions other = options;
    other.store_directory = arguments.baseline;
    ASSIGN_OR_RETURN(baseline, Runner::Open(other));
    RETURN_IF_ERROR(evaluation->SetBaseline(*baseline));
  }
  for (const auto& file : arguments.references) {
    RETURN_IF_ERROR(evaluation->AddReference(file));
  }
  for (const auto& directory : arguments.fixtures) {
    RETURN_IF_ERROR(evaluation->AddFixture(directory));
  }
  for (const auto& file : arguments.texts) RETURN_IF_ERROR(evaluation->AddText(file));
  for (const auto& file : arguments.chats) RETURN_IF_ERROR(evaluation->AddChat(file));
  return evaluation->Finish();
}

}  // namespace

void RegisterEvalCommand(CLI::App& app, int* exit_code) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand(
      "eval", "Compare with references: logits, greedy continuations, NLL, chat answers");
  AddRunnerArguments(command, &arguments->runner);
  AddGpuArguments(command, &arguments->runner);
  command->add_option("--reference", arguments->references, "reference.json with greedy continuations");
  command->add_option("--fixture", arguments->fixtures,
                      "directory with expected.json and logits.safetensors");
  command->add_option("--text", arguments->texts, "text files for NLL, windows of 512 tokens");
  command->add_option("--chat", arguments->chats, "JSON list of {question, answer}");
  command->add_option("--against", arguments->baseline,
                      "another store of the same model, for KL and agreement on the texts; it gets "
                      "a RAM budget of the same size");
  command->add_flag("--json", arguments->json, "one JSON object on stdout");
  command->callback([arguments, exit_code] {
    if (arguments->references.empty() && arguments->fixtures.empty() &&
        arguments->texts.empty() && arguments->chats.empty()) {
      std::fprintf(stderr, "moraine eval: give at least one of --reference, --fixture, --text, "
                           "--chat\n");
      *exit_code = 2;
      return;
    }
    const auto report = Evaluate(*arguments);
    if (!report.ok()) {
      *exit_code = PrintError(report.status());
      return;
    }
    std::printf("%s\n", arguments->json ? report->ToJson().c_str() : report->ToText().c_str());
    for (const std::string& mismatch : report->mismatches) {
      if (arguments->json) LOG_INFO("differs: {}", mismatch);
    }
  });
}

}  // namespace moraine
