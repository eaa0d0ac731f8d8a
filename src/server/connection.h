// Connection: one client, from accept to close. All of Beast is behind this header, in connection_impl.h.
//
//            first byte            head + body read           last byte written
//   idle ----------------> reading ----------------> answering ----------------> idle, or lingering
//    |  drain, timeout        | timeout, malformed       | client gone: generation cancelled
//    +------> closed <--------+--------------------------+
//
// Owned by the I/O thread.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "server/api_handler.h"
#include "server/http_server.h"

namespace moraine {

class Connection;

// What connections share. Owned by the I/O thread.
struct ServerState {
  HttpServerOptions options;
  ApiHandler* handler = nullptr;
  boost::asio::thread_pool* workers = nullptr;
  std::set<Connection*> connections;
  std::function<void()> on_connection_closed;
  uint32_t busy = 0;  // connections that are not idle
  uint32_t large_bodies = 0;
  bool draining = false;
  double mean_generation_s = 1;  // moving average, for retry-after
};

class Connection {
 public:
  virtual ~Connection() = default;
  // The server shuts down: closes if idle, cancels a generation that has not started.
  virtual void Drain() = 0;
  // The grace period is over: cancels a generation that runs.
  virtual void CancelGeneration() = 0;
  // The last resort.
  virtual void Close() = 0;
  // Adds what it generates, if it does.
  virtual void AppendSlot(std::vector<SlotReport>* slots) const = 0;
};

// Serves the socket until it is closed. Registers itself in state->connections meanwhile.
void ServeConnection(boost::asio::ip::tcp::socket socket, std::shared_ptr<ServerState> state);

}  // namespace moraine
