// moraine bench: measurements, and what they are measured on. One file a subcommand.
#include "commands.h"

namespace moraine {

void RegisterBenchCommand(CLI::App& app, int* exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "Measure the parts of this machine that decide");
  bench->require_subcommand(1);
  RegisterBenchMakeStoreCommand(*bench, exit_code);
  RegisterBenchIoCommand(*bench, exit_code);
  RegisterBenchKernelsCommand(*bench, exit_code);
  RegisterBenchForwardCommands(*bench, exit_code);
}

}  // namespace moraine
