#include "service_manager.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/log.h"

namespace moraine {
namespace {

// Of the sockets, by the protocol.
constexpr int kFirstSocket = 3;

std::optional<long> NumberOf(const char* variable) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return std::nullopt;
  long number = 0;
  const char* end = text + std::strlen(text);
  const auto [at, error] = std::from_chars(text, end, number);
  if (error != std::errc() || at != end) return std::nullopt;
  return number;
}

int SocketOption(int fd, int option) {
  int value = -1;
  socklen_t size = sizeof(value);
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

}  // namespace

Result<std::optional<int>> InheritedSocket() {
  const std::optional<long> process = NumberOf("LISTEN_PID"), count = NumberOf("LISTEN_FDS");
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  // Another process's: children inherit the variables.
  if (!process || *process != ::getpid() || !count || *count == 0) return std::optional<int>();
  if (*count != 1) {
    return InvalidArgument("LISTEN_FDS: expected one socket, found " + std::to_string(*count));
  }
  const int domain = SocketOption(kFirstSocket, SO_DOMAIN);
  const bool is_tcp = (domain == AF_INET || domain == AF_INET6) &&
                      SocketOption(kFirstSocket, SO_TYPE) == SOCK_STREAM &&
                      SocketOption(kFirstSocket, SO_ACCEPTCONN) == 1;
  if (!is_tcp) {
    return InvalidArgument("LISTEN_FDS: expected a listening TCP socket at descriptor 3");
  }
  ::fcntl(kFirstSocket, F_SETFD, FD_CLOEXEC);
  return std::optional<int>(kFirstSocket);
}

void NotifyServiceManager(std::string_view state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  // '@' stands for the null byte of an abstract address.
  if ((path[0] != '/' && path[0] != '@') || length >= sizeof(address.sun_path)) {
    return LOG_WARN("NOTIFY_SOCKET: expected the path of a socket, found {}", path);
  }
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  const bool sent = fd >= 0 && ::sendto(fd, state.data(), state.size(), MSG_NOSIGNAL,
                                        reinterpret_cast<const sockaddr*>(&address), size) ==
                                   static_cast<ssize_t>(state.size());
  if (!sent) LOG_WARN("NOTIFY_SOCKET {}: {}", path, std::strerror(errno));
  if (fd >= 0) ::close(fd);
}

}  // namespace moraine
