// moraine doctor: what on this machine keeps the engine from the drive's speed, and what to do.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "commands.h"
#include "common_options.h"
#include "doctor/drive_checks.h"
#include "doctor/drive_curve.h"
#include "doctor/machine_checks.h"
#include "drive_note.h"
#include "store/store.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

struct DoctorArguments {
  std::string path = ".";
  double seconds = 10;
  bool no_measure = false, save = false, json = false;
};

struct Diagnosis {
  Target target;
  std::vector<Finding> findings;
  std::vector<CurvePoint> curve;

  bool has_problem() const {
    return std::any_of(findings.begin(), findings.end(), [](const Finding& finding) {
      return finding.status == FindingStatus::kProblem;
    });
  }
};

// The store's packs, or nothing for a directory that is no store. A store that does not open is a
// finding: the drive below it can still be looked at.
std::vector<std::string> PacksOf(const std::string& path, Diagnosis* diagnosis) {
  if (!std::filesystem::exists(path + "/STORE_FORMAT")) return {};
  const auto store = Store::Open(path, StoreMode::kReadOnly);
  if (!store.ok()) {
    diagnosis->findings.push_back(
        {"store", FindingStatus::kProblem, store.status().message(), "moraine inspect " + path});
    return {};
  }
  diagnosis->target.is_store = true;
  return (*store)->expert_pack_paths();
}

Status MeasureCurve(const DoctorArguments& a, const std::vector<std::string>& paths,
                    Diagnosis* diagnosis) {
  ASSIGN_OR_RETURN(diagnosis->curve, MeasureDriveCurve(paths, a.seconds));
  diagnosis->findings.push_back(CheckDriveCurve(diagnosis->curve));
  if (!a.save) return OkStatus();
  const CurvePoint& fastest = FastestPoint(diagnosis->curve);
  return SaveDriveNote(a.path, {fastest.gb_per_s, fastest.request_bytes, fastest.depth});
}

Result<Diagnosis> Diagnose(const DoctorArguments& a) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::canonical(a.path, error);
  if (error) return NotFound(a.path + ": " + error.message());
  if (!std::filesystem::is_directory(path)) {
    return InvalidArgument(a.path + " is no directory: expected a store, or where one will be");
  }
  Diagnosis diagnosis;
  const SystemTree tree;
  LocateTarget(tree, path.string(), &diagnosis.target);
  std::vector<std::string> files = PacksOf(path.string(), &diagnosis);
  if (a.save && files.empty()) return InvalidArgument("--save needs a store, not a directory");

  std::optional<ScratchFile> scratch;
  if (files.empty()) {
    const std::filesystem::space_info space = std::filesystem::space(path, error);
    // Without a measurement one small file is enough to ask the file system with.
    const uint64_t bytes = error ? 0 : space.available;
    Result<ScratchFile> created =
        ScratchFile::Create(path.string(), a.no_measure ? std::min(bytes, 8 * kMiB) : bytes);
    RETURN_IF_ERROR(created.status());
    scratch.emplace(std::move(*created));
    files = {scratch->path()};
  }
  ProbeFile(files[0], &diagnosis.target);
  for (Finding& finding : CheckTarget(tree, diagnosis.target)) {
    diagnosis.findings.push_back(std::move(finding));
  }
  for (Finding& finding : CheckMachine(tree, diagnosis.target, ProbeProcess())) {
    diagnosis.findings.push_back(std::move(finding));
  }
  if (!a.no_measure) RETURN_IF_ERROR(MeasureCurve(a, files, &diagnosis));
  return diagnosis;
}

void PrintJson(const Diagnosis& diagnosis) {
  Json checks = Json::array(), curve = Json::array();
  for (const Finding& finding : diagnosis.findings) {
    checks.push_back({{"check", finding.check},
                      {"status", FindingStatusName(finding.status)},
                      {"found", finding.found},
                      {"advice", finding.advice}});
  }
  for (const CurvePoint& point : diagnosis.curve) {
    curve.push_back({{"request_bytes", point.request_bytes},
                     {"depth", point.depth},
                     {"gb_per_s", point.gb_per_s},
                     {"iops", point.iops},
                     {"p50_us", point.p50_us},
                     {"p99_us", point.p99_us}});
  }
  const Json json = {{"path", diagnosis.target.path},
                     {"store", diagnosis.target.is_store},
                     {"ok", !diagnosis.has_problem()},
                     {"checks", checks},
                     {"curve", curve}};
  fmt::print("{}\n", json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void PrintCurve(const std::vector<CurvePoint>& curve) {
  fmt::print("\nGB/s, and thousand reads a second, by request size and requests in flight\n{:<12}",
             "");
  for (const CurvePoint& point : curve) {
    if (point.request_bytes == curve[0].request_bytes) fmt::print("{:>16}", point.depth);
  }
  for (const CurvePoint& point : curve) {
    if (point.depth == curve[0].depth) fmt::print("\n{:<12}", FormatByteSize(point.request_bytes));
    fmt::print("{:>7.2f}{:>7.1f} k", point.gb_per_s, point.iops * 1e-3);
  }
  fmt::print("\n");
}

void PrintText(const Diagnosis& diagnosis) {
  fmt::print("{} ({})\n\n", diagnosis.target.path,
             diagnosis.target.is_store ? "a store" : "a directory");
  for (const Finding& finding : diagnosis.findings) {
    fmt::print("{:<8} {:<13} {}\n", FindingStatusName(finding.status), finding.check,
               finding.found);
    if (!finding.advice.empty()) fmt::print("{:<22} -> {}\n", "", finding.advice);
  }
  if (!diagnosis.curve.empty()) PrintCurve(diagnosis.curve);
}

}  // namespace

void RegisterDoctorCommand(CLI::App& app, int* exit_code) {
  auto a = std::make_shared<DoctorArguments>();
  CLI::App* command = app.add_subcommand(
      "doctor", "Measure the drive, look for what slows the engine down, say what to do");
  command->add_option("PATH", a->path, "a store, or a directory on the drive (default: .)");
  command->add_option("--seconds", a->seconds, "for the drive's curve")
      ->check(CLI::Range(0.1, 600.0))
      ->capture_default_str();
  command->add_flag("--no-measure", a->no_measure, "only look, do not read for seconds");
  command->add_flag("--save", a->save, "keep the best figure in the store, for moraine stats");
  command->add_flag("--json", a->json, "one JSON object on stdout");
  command->callback([a, exit_code] {
    const Result<Diagnosis> diagnosis = Diagnose(*a);
    if (!diagnosis.ok()) {
      *exit_code = PrintError(diagnosis.status());
      return;
    }
    if (a->json) {
      PrintJson(*diagnosis);
    } else {
      PrintText(*diagnosis);
    }
    if (diagnosis->has_problem()) *exit_code = 1;
  });
}

}  // namespace moraine
