// What `moraine tune` has found, for the commands that run a model: it stands where the user has said nothing.
// A flag goes before the environment, the environment before the configuration file, the file before what was
// tuned, that before the built-in default.
#pragma once

#include <string>

#include "command_tree.h"
#include "common_options.h"
#include "engine/tuned_settings.h"
#include "engine/tuning_record.h"
#include "store/store.h"

namespace moraine {

// $XDG_CACHE_HOME/moraine/tuning, else ~/.cache/moraine/tuning; "" without either variable.
std::string TuningCacheDirectory();
// Of this machine and these options.
TuningKey TuningKeyHere(const Store& store, const RunnerOptions& options);

// What fits this machine and these options, less what the user has set. Empty where nothing was found, or a
// record is damaged, which is logged.
TunedSettings FindTunedSettings(const RunnerArguments& arguments, const RunnerOptions& options);

// For `moraine config show`: what was found for a command as it is configured. `store`: "": the one that is
// configured, if there is one.
TunedSettings FindTunedSettings(const CommandDescription& command, const std::string& store);
// As a configuration file has it; "": not tuned. `name`: the option's, without dashes.
std::string TunedText(const TunedSettings& settings, const std::string& name);

// An option's value without flags: the environment's, else the file's, else the default.
std::string ConfiguredText(const OptionDescription& option);

}  // namespace moraine
