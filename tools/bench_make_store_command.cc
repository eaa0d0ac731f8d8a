// moraine bench make-store: a store of random weights in the shape of a published model.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "commands.h"
#include "common_options.h"
#include "drive_options.h"
#include "engine/published_models.h"
#include "engine/synthetic_model.h"
#include "progress_display.h"
#include "store/importer.h"

namespace moraine {
namespace {

struct MakeStoreArguments {
  std::string store_directory, shape;
  std::string experts = "q4", dense;
  uint32_t layers = 0;
  double skew = SyntheticModelOptions().skew;
  bool exact = false;
  uint64_t seed = 1;
  DriveArguments drives;
  int threads = 0;
  bool quiet = false, json = false;
};

// Those of either table.
std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const PublishedShape& shape : PublishedShapes()) names.push_back(shape.name);
  for (const PublishedModel& model : PublishedModels()) {
    if (FindPublishedShape(model.name) == nullptr) names.push_back(model.name);
  }
  return names;
}

// The shape, or the model itself.
Status ChooseModel(const MakeStoreArguments& a, SyntheticModelOptions* options) {
  if (a.exact) {
    const PublishedModel* model = FindPublishedModel(a.shape);
    if (model == nullptr) {
      return Unsupported(fmt::format("--exact: the architecture of {} is not there", a.shape));
    }
    options->name = model->name;
    options->config = PublishedConfig(*model, a.layers);
    return OkStatus();
  }
  const PublishedShape* shape = FindPublishedShape(a.shape);
  if (shape == nullptr) {
    return Unsupported(fmt::format("--shape {}: only with --exact", a.shape));
  }
  options->shape = *shape;
  if (a.layers == 0) return OkStatus();
  options->shape.layers = a.layers;
  if (a.layers > shape->dense_layers) return OkStatus();
  return InvalidArgument(fmt::format("--layers {}: the first {} layers of {} have no experts; "
                                     "expected more", a.layers, shape->dense_layers, a.shape));
}

void PrintSummary(const MakeStoreArguments& a, const Manifest& manifest,
                  const ImportProgress& last) {
  const double rate =
      last.seconds > 0
          ? static_cast<double>(last.done_bytes - last.resumed_bytes) * 1e-9 / last.seconds
          : 0;
  if (a.json) {
    const nlohmann::ordered_json json = {{"bench", "make-store"},
                                         {"store", a.store_directory},
                                         {"shape", a.shape},
                                         {"bytes", last.total_bytes},
                                         {"expert_bytes", manifest.expert_bytes()},
                                         {"experts", manifest.expert_count()},
                                         {"resumed_bytes", last.resumed_bytes},
                                         {"seconds", last.seconds},
                                         {"gigabytes_per_second", rate},
                                         {"notes", manifest.notes}};
    std::printf("%s\n", json.dump().c_str());
    return;
  }
  fmt::print("made {}: {}, {} experts {} ({} each); {:.1f} s, {:.2f} GB/s\n", a.store_directory,
             FormatByteSize(last.total_bytes), manifest.expert_count(),
             FormatByteSize(manifest.expert_bytes()), FormatByteSize(manifest.max_record_bytes()),
             last.seconds, rate);
  for (const std::string& note : manifest.notes) fmt::print("note: {}\n", note);
}

Status MakeStore(const MakeStoreArguments& a) {
  SyntheticModelOptions model_options;
  RETURN_IF_ERROR(ChooseModel(a, &model_options));
  model_options.experts = ParseEncoding(a.experts).value();
  if (!a.dense.empty()) model_options.dense = ParseEncoding(a.dense).value();
  model_options.skew = a.skew;
  model_options.seed = a.seed;
  ASSIGN_OR_RETURN(const SyntheticModel model, MakeSyntheticModel(model_options));
  ASSIGN_OR_RETURN(const DriveSet drives,
                   FinishDriveOptions(a.drives, a.store_directory, a.quiet));
  ImportProgress last;
  Status status;
  {
    ProgressDisplay display("making", a.quiet);
    ImportOptions options;
    options.store_directory = a.store_directory;
    options.thread_count = a.threads;
    options.drives = drives;
    options.on_progress = [&](const ImportProgress& progress) {
      last = progress;
      display.Update(progress.done_bytes, progress.total_bytes, progress.resumed_bytes,
                     progress.seconds);
    };
    status = Import(*model.checkpoint, *model.plan, options);
  }
  RETURN_IF_ERROR(status);
  if (!a.quiet || a.json) PrintSummary(a, model.plan->manifest(), last);
  return OkStatus();
}

}  // namespace

void RegisterBenchMakeStoreCommand(CLI::App& bench, int* exit_code) {
  auto a = std::make_shared<MakeStoreArguments>();
  CLI::App* command = bench.add_subcommand(
      "make-store",
      "Write a store of random weights in the shape of a published model, at the drive's speed.\n"
      "qwen3-30b-a3b and qwen3-235b have all dimensions of the model; the other shapes are the expert\n"
      "geometry of theirs (hidden size, experts, top-k, layers, vocabulary) under the Qwen3-MoE\n"
      "architecture: grouped-query attention, no shared experts. Routing is skewed as in trained\n"
      "models. `tiny` is for tests.");
  command->add_option("STORE_DIR", a->store_directory, "the store to make or to finish")
      ->required();
  command->add_option("--shape", a->shape, "whose dimensions")
      ->required()
      ->check(CLI::IsMember(ShapeNames()));
  command->add_option("--layers", a->layers, "only the first so many layers (default: all)")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--exact", a->exact,
                    "the model's own architecture with all its dimensions; all experts alike");
  command->add_option("--experts", a->experts, "encoding of the experts")
      ->check(CLI::IsMember({"bf16", "q8", "q4", "q4_bf16", "mxfp4", "iq4_nl"}))
      ->capture_default_str();
  command
      ->add_option("--dense", a->dense,
                   "encoding of the dense weights (default: bf16 with bf16 experts, else q8)")
      ->check(CLI::IsMember({"f32", "bf16", "q8", "q4"}));
  command
      ->add_option("--skew", a->skew,
                   "Zipf exponent of the experts' popularity in deep layers; 0: all alike")
      ->check(CLI::Range(0.0, 4.0))
      ->capture_default_str();
  command->add_option("--seed", a->seed, "same seed and shape, same bytes")
      ->check(WholeNumber(UINT64_MAX))
      ->capture_default_str();
  command->add_option("--threads", a->threads, "writing threads (default: one per CPU)")
      ->check(CLI::Range(0, 1024));
  AddDriveArguments(command, &a->drives);
  command->add_flag("--quiet", a->quiet, "neither progress nor summary");
  command->add_flag("--json", a->json, "the summary as one JSON object on stdout");
  command->callback([a, exit_code] {
    const Status status = MakeStore(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
