// HttpServer: OpenAI's API over HTTP/1.1.
//
//   I/O thread:      accepts, reads, writes, times out; one coroutine a connection, no locks
//   worker threads:  parse and tokenize request bodies (seconds, for the largest)
//   service thread:  generates; its events are posted to the I/O thread
//
// One I/O thread is enough: it only moves a few kilobytes a second of text.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "server/api_handler.h"

namespace moraine {

struct HttpServerOptions {
  std::string host = "127.0.0.1";  // a literal address, or "localhost"
  uint16_t port = 8080;            // 0: any free one
  // A listening TCP socket in place of these two, from a service manager; the server closes it.
  std::optional<int> listening_socket;
  ApiHandlerOptions api;           // api.access.bind_address is set from `host`

  uint32_t header_limit_bytes = 64 * 1024;
  // An idle connection costs a descriptor and a few KiB, so pools of clients and proxies may keep theirs.
  uint32_t connection_limit = 4096;
  // Connections on which a request is read or answered; the rest gets 503. With a body of up to 1 MiB each, this
  // is what bounds the memory of requests.
  uint32_t busy_limit = 256;
  // Bodies above 1 MiB (or of unknown length) that are held at one time; the rest gets 503. Bounds the
  // memory of requests to this many times a few body limits.
  uint32_t large_body_limit = 4;

  // From the first byte of a head to its end, and from there to the body's end: against clients that
  // hold connections by sending a byte now and then.
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{60'000};
  // Between requests of one connection. Node's agent gives up after 5 s by default, proxies after 60.
  std::chrono::milliseconds idle_timeout{75'000};
  // One piece of a response.
  std::chrono::milliseconds write_timeout{30'000};
  std::chrono::milliseconds ping_interval{10'000};
  // How often to look for the end of a connection while the client has sent more already.
  std::chrono::milliseconds disconnect_poll_interval{250};
};

class HttpServer {
 public:
  // Binds and listens; serves when this returns. `service` outlives the server.
  static Result<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                   GenerationService* service);
  // Shutdown(0) if that has not been done.
  ~HttpServer();

  uint16_t port() const;
  std::string url() const;  // "http://127.0.0.1:8080"

  // Stops accepting, closes idle connections, cancels what still waits in the queue, lets what runs
  // finish for `grace`, then cancels it too. Returns when all connections are closed and the service has
  // finished all requests.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  HttpServer();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
