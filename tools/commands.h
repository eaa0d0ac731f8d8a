// The subcommands of `moraine`, one file each.
//
// Exit codes: 0 success; 1 the operation failed (the reason is on stderr, or, for verify, a list of
// what is bad on stdout); 2 the command line was wrong. A command writes 1 or 2 to *exit_code; main
// returns it. Results go to stdout, progress and messages to stderr.
#pragma once

#include <CLI/CLI.hpp>

namespace moraine {

void RegisterImportCommand(CLI::App& app, int* exit_code);
void RegisterCalibrateCommand(CLI::App& app, int* exit_code);
void RegisterVerifyCommand(CLI::App& app, int* exit_code);
void RegisterInspectCommand(CLI::App& app, int* exit_code);
void RegisterModelsCommand(CLI::App& app, int* exit_code);
void RegisterPlanCommand(CLI::App& app, int* exit_code);
void RegisterTuneCommand(CLI::App& app, int* exit_code);
void RegisterRunCommand(CLI::App& app, int* exit_code);
void RegisterServeCommand(CLI::App& app, int* exit_code);
void RegisterStatsCommand(CLI::App& app, int* exit_code);
void RegisterEvalCommand(CLI::App& app, int* exit_code);
void RegisterWarmCommand(CLI::App& app, int* exit_code);
void RegisterDoctorCommand(CLI::App& app, int* exit_code);
void RegisterProfileCommand(CLI::App& app, int* exit_code);
void RegisterTraceCommand(CLI::App& app, int* exit_code);
void RegisterTraceRecordCommand(CLI::App& trace, int* exit_code);

struct ConfigFile;  // config_file.h
// config, completion and man, which describe all others. `config`: filled in before the callbacks run.
void RegisterDescribeCommands(CLI::App& app, const ConfigFile* config, int* exit_code);

// `moraine bench`, which holds those below.
void RegisterBenchCommand(CLI::App& app, int* exit_code);
void RegisterBenchForwardCommands(CLI::App& bench, int* exit_code);  // decode and prefill
void RegisterBenchIoCommand(CLI::App& bench, int* exit_code);
void RegisterBenchKernelsCommand(CLI::App& bench, int* exit_code);
void RegisterBenchMakeStoreCommand(CLI::App& bench, int* exit_code);

}  // namespace moraine
