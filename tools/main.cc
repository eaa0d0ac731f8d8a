// moraine: parses the command line and runs one subcommand.
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
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    constexpr int kUsage = 2;
    return app.exit(error) == 0 ? 0 : kUsage;  // --help and --version arrive here, too
  }
  return exit_code;
}
