#include "server/http_get.h"

#include <fmt/format.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <utility>

namespace moraine {
namespace {

struct Url {
  std::string host, port = "80", path = "/";
};

Result<Url> ParseUrl(const std::string& text) {
  constexpr std::string_view kScheme = "http://";
  const Status bad = InvalidArgument("URL: expected http://HOST[:PORT][/PATH], found " + text);
  if (text.rfind(kScheme, 0) != 0) return bad;
  Url url;
  std::string authority = text.substr(kScheme.size());
  if (const size_t slash = authority.find('/'); slash != std::string::npos) {
    url.path = authority.substr(slash);
    authority.resize(slash);
  }
  const size_t bracket = authority.find(']');
  const size_t colon = authority.find(':', bracket == std::string::npos ? 0 : bracket);
  url.host = authority.substr(0, colon);
  if (colon != std::string::npos) url.port = authority.substr(colon + 1);
  if (bracket != std::string::npos && url.host.size() > 2) {
    url.host = url.host.substr(1, url.host.size() - 2);
  }
  const bool clean = text.find_first_of(" \r\n") == std::string::npos;
  if (url.host.empty() || url.port.empty() || !clean) return bad;
  return url;
}

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

Result<Socket> Connect(const Url& url, int timeout_s) {
  const std::string where = url.host + ":" + url.port;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found); error != 0) {
    return IoError(where + ": " + gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  int last_error = 0;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    Socket socket_of(socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    const timeval limit{.tv_sec = timeout_s, .tv_usec = 0};
    setsockopt(socket_of.fd(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(socket_of.fd(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));  // connect, too
    if (connect(socket_of.fd(), a->ai_addr, a->ai_addrlen) == 0) return socket_of;
    last_error = errno;
  }
  return IoErrorFromErrno("cannot connect to " + where, last_error);
}

Result<HttpGetResult> ParseResponse(const std::string& text, const std::string& url) {
  const size_t body = text.find("\r\n\r\n");
  HttpGetResult result;
  const bool is_http = text.rfind("HTTP/1.", 0) == 0 && text.size() > 12 && body != std::string::npos;
  if (!is_http ||
      std::from_chars(text.data() + 9, text.data() + 12, result.status).ec != std::errc()) {
    return IoError(url + ": expected an HTTP response, found " +
                   std::to_string(text.size()) + " bytes of something else");
  }
  result.body = text.substr(body + 4);
  return result;
}

}  // namespace

Result<HttpGetResult> HttpGet(const HttpGetOptions& options) {
  ASSIGN_OR_RETURN(const Url url, ParseUrl(options.url));
  ASSIGN_OR_RETURN(const Socket connection, Connect(url, options.timeout_s));
  // HTTP/1.0: the body ends with the connection, in one piece.
  std::string request = fmt::format("GET {} HTTP/1.0\r\nhost: {}\r\n", url.path, url.host);
  if (!options.api_key.empty()) request += "authorization: Bearer " + options.api_key + "\r\n";
  request += "\r\n";
  for (size_t sent = 0; sent < request.size();) {
    const ssize_t count =
        send(connection.fd(), request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
    if (count <= 0) return IoErrorFromErrno(options.url, errno);
    sent += static_cast<size_t>(count);
  }
  std::string response;
  char bytes[16 * 1024];
  for (;;) {
    const ssize_t count = recv(connection.fd(), bytes, sizeof(bytes), 0);
    if (count < 0) return IoErrorFromErrno(options.url, errno);
    if (count == 0) return ParseResponse(response, options.url);
    response.append(bytes, static_cast<size_t>(count));
    if (response.size() > options.limit_bytes) {
      return IoError(fmt::format("{}: more than {} bytes", options.url, options.limit_bytes));
    }
  }
}

}  // namespace moraine
