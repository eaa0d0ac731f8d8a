// moraine calibrate: how much each column of the experts matters on a text, for
// `moraine import --importance`.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "commands.h"
#include "common_options.h"
#include "engine/calibration.h"
#include "engine/text_model.h"
#include "progress_display.h"
#include "store/posix_file.h"

namespace moraine {
namespace {

struct CalibrateArguments {
  std::string store_directory, text, out;
  uint32_t max_tokens = 0;  // 0: all of the text
  int threads = 0;
  bool quiet = false, json = false;
};

struct CalibrationText {
  std::vector<int32_t> ids;
  uint64_t bytes = 0;  // of text that they are
};

Result<CalibrationText> ReadTokens(const CalibrateArguments& a, const Store& store) {
  ASSIGN_OR_RETURN(const TextModel model, TextModel::Load(store.manifest()));
  ASSIGN_OR_RETURN(const std::string bytes, ReadWholeFile(a.text));
  CalibrationText text;
  ASSIGN_OR_RETURN(text.ids, model.tokenizer().Encode(bytes, {.add_special_tokens = false}));
  if (text.ids.empty()) return InvalidArgument(a.text + ": expected a text, found no tokens");
  text.bytes = bytes.size();
  if (a.max_tokens > 0 && text.ids.size() > a.max_tokens) {
    text.bytes = text.bytes * a.max_tokens / text.ids.size();
    text.ids.resize(a.max_tokens);
  }
  return text;
}

Status Measure(const CalibrationText& text, bool quiet, Calibration& calibration) {
  const std::span<const int32_t> ids = text.ids;
  ProgressDisplay display("calibrating", quiet || isatty(fileno(stderr)) == 0);
  const int64_t begin_ns = RealClock().NowNs();
  for (size_t begin = 0; begin < ids.size(); begin += Calibration::kWindowTokens) {
    const size_t done = std::min<size_t>(begin + Calibration::kWindowTokens, ids.size());
    RETURN_IF_ERROR(calibration.Read(ids.subspan(begin, done - begin)));
    display.Update(text.bytes * done / ids.size(), text.bytes, 0,
                   static_cast<double>(RealClock().NowNs() - begin_ns) * 1e-9);
  }
  return OkStatus();
}

Status Calibrate(const CalibrateArguments& a) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Calibration> calibration,
                   Calibration::Open(a.store_directory, a.threads));
  const Manifest& manifest = calibration->store().manifest();
  ASSIGN_OR_RETURN(const CalibrationText text, ReadTokens(a, calibration->store()));
  RETURN_IF_ERROR(Measure(text, a.quiet || a.json, *calibration));
  Importance importance = calibration->Take();
  importance.model = manifest.source.description;
  importance.text = std::filesystem::path(a.text).filename().string();
  RETURN_IF_ERROR(importance.Write(a.out));
  const uint64_t unreached = calibration->unreached_experts();
  if (a.json) {
    using Json = nlohmann::ordered_json;
    const Json json = {{"file", a.out},
                       {"tokens", importance.tokens},
                       {"experts", manifest.expert_count()},
                       {"unreached_experts", unreached},
                       {"checksum", fmt::format("{:016x}", importance.checksum())}};
    std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else if (!a.quiet) {
    fmt::print("{}: importance over {} tokens; {} of {} experts were never reached and have the "
               "mean of their layer\n",
               a.out, importance.tokens, unreached, manifest.expert_count());
  }
  return OkStatus();
}

}  // namespace

void RegisterCalibrateCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<CalibrateArguments>();
  CLI::App* command = app.add_subcommand(
      "calibrate", "Measure on a text how much the experts' weights matter, for import --importance");
  command
      ->add_option("STORE", a->store_directory,
                   "directory of an imported model, best in bf16")
      ->required();
  command->add_option("IMPORTANCE_FILE", a->out, "the file to write")->required();
  command->add_option("--text", a->text, "the text: like what the model will be used for")
      ->required();
  command->add_option("--max-tokens", a->max_tokens, "tokens of the text to read (default: all)")
      ->check(WholeNumber(UINT32_MAX) & CLI::PositiveNumber);
  command->add_option("--threads", a->threads, "compute threads (default: one per CPU)")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--quiet", a->quiet, "neither progress nor summary");
  command->add_flag("--json", a->json, "the summary as one JSON object on stdout");
  command->callback([a, exit_code] {
    const Status status = Calibrate(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
