// What a service manager (systemd) and a server tell each other: sockets that are open already, and how far
// the server is.
//
// The protocols are a few lines each (sd_listen_fds(3), sd_notify(3)), so libsystemd is not needed; without
// such a manager nothing happens.
#pragma once

#include <optional>
#include <string_view>

#include "base/status.h"

namespace moraine {

// The listening TCP socket that was handed over (LISTEN_FDS), if there is one: the caller's. More than one,
// or another kind of socket, is kInvalidArgument. Before the first thread: it changes the environment.
Result<std::optional<int>> InheritedSocket();

// "READY=1", "STATUS=..." or lines of them, to the socket that NOTIFY_SOCKET names. Thread-safe.
// Failures are logged.
void NotifyServiceManager(std::string_view state);

}  // namespace moraine
