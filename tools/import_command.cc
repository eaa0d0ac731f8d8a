// moraine import: a published checkpoint becomes an expert store.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "base/log.h"
#include "commands.h"
#include "common_options.h"
#include "drive_options.h"
#include "engine/import_plan.h"
#include "engine/importance.h"
#include "engine/text_model.h"
#include "model_arguments.h"
#include "models/model_names.h"
#include "progress_display.h"
#include "store/checkpoint.h"
#include "store/importer.h"

namespace moraine {
namespace {

struct ImportArguments {
  std::string checkpoint, store_directory;
  std::string experts, dense;  // empty: as the checkpoint has them
  std::string importance;      // empty: none
  DriveArguments drives;
  int threads = 0;
  bool quiet = false, json = false;
};

// What bounds an import: the drive, while threads read and write, or the CPUs. Empty if nothing was done.
std::string TimesText(const ImportProgress& last) {
  const double sum = last.reading_seconds + last.encoding_seconds + last.writing_seconds +
                     last.waiting_seconds;
  if (last.threads == 0 || sum <= 0) return "";
  const auto percent = [&](double seconds) { return 100 * seconds / sum; };
  return fmt::format("time of {} threads: {:.0f} % reading, {:.0f} % encoding, {:.0f} % writing, "
                     "{:.0f} % until that was synced\n",
                     last.threads, percent(last.reading_seconds), percent(last.encoding_seconds),
                     percent(last.writing_seconds), percent(last.waiting_seconds));
}

void PrintSummary(const ImportArguments& a, const Manifest& manifest, const ImportProgress& last) {
  uint64_t dense_bytes = 0;
  for (const DenseTensor& tensor : manifest.dense) dense_bytes += tensor.bytes;
  const double rate =
      last.seconds > 0
          ? static_cast<double>(last.done_bytes - last.resumed_bytes) * 1e-9 / last.seconds
          : 0;
  if (a.json) {
    const nlohmann::ordered_json json = {{"store", a.store_directory},
                                         {"bytes", last.total_bytes},
                                         {"expert_bytes", manifest.expert_bytes()},
                                         {"dense_bytes", dense_bytes},
                                         {"resumed_bytes", last.resumed_bytes},
                                         {"seconds", last.seconds},
                                         {"gigabytes_per_second", rate},
                                         {"threads", last.threads},
                                         {"reading_seconds", last.reading_seconds},
                                         {"encoding_seconds", last.encoding_seconds},
                                         {"writing_seconds", last.writing_seconds},
                                         {"waiting_seconds", last.waiting_seconds},
                                         {"peak_rss_bytes", PeakRssBytes()},
                                         {"notes", manifest.notes}};
    std::printf("%s\n",
                json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    return;
  }
  std::string resumed;
  if (last.resumed_bytes > 0) {
    resumed = fmt::format(" ({} of it by an earlier run)", FormatByteSize(last.resumed_bytes));
  }
  fmt::print("imported {}: {}{}, {} experts {}, dense weights {}; {:.1f} s, {:.2f} GB/s, peak RSS {}\n",
             a.store_directory, FormatByteSize(last.total_bytes), resumed, manifest.expert_count(),
             FormatByteSize(manifest.expert_bytes()), FormatByteSize(dense_bytes), last.seconds,
             rate, FormatByteSize(PeakRssBytes()));
  fmt::print("{}", TimesText(last));
  for (const std::string& note : manifest.notes) fmt::print("note: {}\n", note);
}

// Said before hours of importing, not by the first `moraine run`. Not an error: weights that are only
// evaluated need no tokenizer.
void WarnIfTextIsUnusable(const ImportArguments& a, const Manifest& manifest) {
  const auto text = TextModel::Load(manifest);
  if (!text.ok()) {
    LOG_WARN("{}; run and serve will not work with this store", text.status().message());
  } else if (!text->chat_template_status().ok()) {
    LOG_WARN("{}: {}; run needs --raw with this store", a.checkpoint,
             text->chat_template_status().message());
  }
}

Status RunImport(const ImportArguments& a) {
  ASSIGN_OR_RETURN(const NamedCheckpoint source, FindCheckpoint(a.checkpoint));
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(source.path));
  ImportPlanOptions plan_options;
  plan_options.name = source.name;
  // The options' checks have seen them.
  if (!a.experts.empty()) plan_options.experts = ParseEncoding(a.experts).value();
  if (!a.dense.empty()) plan_options.dense = ParseEncoding(a.dense).value();
  Importance importance;
  if (!a.importance.empty()) {
    ASSIGN_OR_RETURN(importance, Importance::Read(a.importance));
    plan_options.importance = &importance;
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ImportPlan> plan,
                   MakeImportPlan(*checkpoint, plan_options));
  WarnIfTextIsUnusable(a, plan->manifest());
  ASSIGN_OR_RETURN(const DriveSet drives,
                   FinishDriveOptions(a.drives, a.store_directory, a.quiet));
  ImportProgress last;
  Status status;
  {
    ProgressDisplay display("importing", a.quiet);
    ImportOptions options;
    options.store_directory = a.store_directory;
    options.thread_count = a.threads;
    options.drives = drives;
    options.on_progress = [&](const ImportProgress& progress) {
      last = progress;
      display.Update(progress.done_bytes, progress.total_bytes, progress.resumed_bytes,
                     progress.seconds);
    };
    status = Import(*checkpoint, *plan, options);
  }
  RETURN_IF_ERROR(status);
  if (!a.quiet || a.json) PrintSummary(a, plan->manifest(), last);
  return OkStatus();
}

}  // namespace

void RegisterImportCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<ImportArguments>();
  CLI::App* command = app.add_subcommand(
      "import",
      "Turn a checkpoint (safetensors or GGUF) into an expert store; resumes where it stopped");
  command
      ->add_option("CHECKPOINT", a->checkpoint,
                   "directory with config.json and *.safetensors, a GGUF file, or the name of either "
                   "(hf:org/name, ollama:name:tag, ...; moraine models lists them)")
      ->check(CheckpointNameOrPath())
      ->required();
  command->add_option("STORE_DIR", a->store_directory, "the store to make or to finish")
      ->required();
  command
      ->add_option("--experts", a->experts,
                   "encoding of the experts (default: as the checkpoint has them: bf16, or GGUF's "
                   "Q4_0 and Q8_0 bit for bit)")
      ->check(CLI::IsMember({"bf16", "q8", "q4"}));
  command
      ->add_option("--dense", a->dense,
                   "encoding of the dense weights (default: as the checkpoint has them if quantised "
                   "there, else q8 with --experts q4 or q8, else bf16)")
      ->check(CLI::IsMember({"f32", "bf16", "q8", "q4"}));
  command->add_option("--importance", a->importance,
                      "file of `moraine calibrate`: weights the error that q4 and q8 make by how much "
                      "each column matters");
  command->add_option("--threads", a->threads, "threads that read, encode and write (default: one per CPU, and six)")
      ->check(CLI::Range(0, 1024));
  AddDriveArguments(command, &a->drives);
  command->add_flag("--quiet", a->quiet, "neither progress nor summary");
  command->add_flag("--json", a->json, "the summary as one JSON object on stdout");
  command->callback([a, exit_code] {
    const Status status = RunImport(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
