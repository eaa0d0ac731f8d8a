// moraine: parses the command line and runs one subcommand.
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "commands.h"
#include "common_options.h"
#include "config_file.h"

int main(int argc, char** argv) {
  const char* const log_level = std::getenv("MORAINE_LOG");
  moraine::InitLogging(log_level != nullptr ? log_level : "info");
  CLI::App app("Serves mixture-of-experts models that are larger than memory.\n"
               "MORAINE_LOG: trace, debug, info, warn, error or off.",
               "moraine");
  app.set_version_flag("--version", "moraine " MORAINE_VERSION);
  app.require_subcommand(1);
  int exit_code = 0;
  moraine::RegisterImportCommand(app, &exit_code);
  moraine::RegisterCalibrateCommand(app, &exit_code);
  moraine::RegisterVerifyCommand(app, &exit_code);
  moraine::RegisterInspectCommand(app, &exit_code);
  moraine::RegisterModelsCommand(app, &exit_code);
  moraine::RegisterPlanCommand(app, &exit_code);
  moraine::RegisterTuneCommand(app, &exit_code);
  moraine::RegisterRunCommand(app, &exit_code);
  moraine::RegisterServeCommand(app, &exit_code);
  moraine::RegisterStatsCommand(app, &exit_code);
  moraine::RegisterEvalCommand(app, &exit_code);
  moraine::RegisterWarmCommand(app, &exit_code);
  moraine::RegisterBenchCommand(app, &exit_code);
  moraine::RegisterDoctorCommand(app, &exit_code);
  moraine::RegisterProfileCommand(app, &exit_code);
  moraine::RegisterTraceCommand(app, &exit_code);
  moraine::ConfigFile config;
  moraine::RegisterDescribeCommands(app, &config, &exit_code);
  std::string config_path;  // read by FindConfigFile; here for --help
  app.add_option("--config", config_path,
                 "configuration file (default: ~/.config/moraine/config.toml, else /etc/moraine/config.toml)")
      ->envname("MORAINE_CONFIG");
  constexpr int kUsage = 2;
  // CLI11 alone would say that a subcommand is required.
  const auto named = [&](CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(named).empty()) {
    std::fprintf(stderr, "moraine: '%s' is no subcommand; moraine --help lists them\n", argv[1]);
    return kUsage;
  }
  auto applied = moraine::ApplyConfigFile(moraine::FindConfigFile(argc, argv), &app);
  if (!applied.ok()) {
    moraine::PrintError(applied.status());
    return kUsage;
  }
  config = std::move(*applied);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;  // --help and --version arrive here, too
  }
  // A full disk behind a redirection must not look like success.
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "moraine: standard output could not be written\n");
    return 1;
  }
  return exit_code;
}
