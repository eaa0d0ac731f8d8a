// moraine: parses the command line and runs one subcommand.
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "commands.h"

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
  moraine::RegisterVerifyCommand(app, &exit_code);
  moraine::RegisterInspectCommand(app, &exit_code);
  moraine::RegisterRunCommand(app, &exit_code);
  moraine::RegisterServeCommand(app, &exit_code);
  moraine::RegisterStatsCommand(app, &exit_code);
  moraine::RegisterEvalCommand(app, &exit_code);
  moraine::RegisterWarmCommand(app, &exit_code);
  moraine::RegisterBenchCommand(app, &exit_code);
  moraine::RegisterDoctorCommand(app, &exit_code);
  moraine::RegisterProfileCommand(app, &exit_code);
  moraine::RegisterTraceCommand(app, &exit_code);
  constexpr int kUsage = 2;
  // CLI11 alone would say that a subcommand is required.
  const auto named = [&](CLI::App* command) { return command->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(named).empty()) {
    std::fprintf(stderr, "moraine: '%s' is no subcommand; moraine --help lists them\n", argv[1]);
    return kUsage;
  }
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
