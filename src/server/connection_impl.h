// The inside of a connection. Included by the files beside it that implement it: connection.cc reads and refuses
// requests, connection_generation.cc sends what takes time to make.
#pragma once

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api_response.h"
#include "server/connection.h"
#include "server/exchange.h"

namespace moraine {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

inline constexpr auto kUse = asio::as_tuple(asio::use_awaitable);

// A hold on one of the few places for large bodies.
class LargeBodyHold {
 public:
  LargeBodyHold() = default;
  explicit LargeBodyHold(ServerState* state) : state_(state) { ++state_->large_bodies; }
  LargeBodyHold(LargeBodyHold&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  LargeBodyHold& operator=(LargeBodyHold&& other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  ~LargeBodyHold() {
    if (state_ != nullptr) --state_->large_bodies;
  }

 private:
  ServerState* state_ = nullptr;
};

class TcpConnection final : public Connection, public std::enable_shared_from_this<TcpConnection> {
 public:
  TcpConnection(asio::ip::tcp::socket socket, std::shared_ptr<ServerState> state)
      : state_(std::move(state)), stream_(std::move(socket)), watch_pause_(stream_.get_executor()) {
    state_->connections.insert(this);
  }
  ~TcpConnection() override {
    SetIdle(true);
    state_->connections.erase(this);
    if (state_->on_connection_closed) state_->on_connection_closed();
  }

  asio::awaitable<void> Run();

  void Drain() override {
    if (idle_) Close();
    if (exchange_ && !exchange_->started()) exchange_->Cancel();
  }
  void CancelGeneration() override {
    if (exchange_) exchange_->Cancel();
  }
  void Close() override {
    error_code ignored;
    stream_.socket().close(ignored);
  }
  void AppendSlot(std::vector<SlotReport>* slots) const override {
    if (exchange_) slots->push_back(slot_);
  }

 private:
  enum class Next : uint8_t { kKeepAlive, kClose, kLinger };
  using Parser = http::request_parser<http::string_body>;

  const HttpServerOptions& options() const { return state_->options; }
  void SetIdle(bool idle) {
    if (idle != idle_) idle ? --state_->busy : ++state_->busy;
    idle_ = idle;
  }

  asio::awaitable<bool> WaitForFirstByte();
  asio::awaitable<Next> ServeOne();
  asio::awaitable<Next> RefuseBusy();
  asio::awaitable<Next> RefuseMalformed(error_code ec);
  asio::awaitable<bool> ReadBody(Parser* parser, bool* too_large);
  asio::awaitable<Next> Respond(HttpResponse response);
  asio::awaitable<Next> Generate(Route route, std::string body, LargeBodyHold hold);
  std::optional<ApiError> Submit(PreparedRequest* prepared);
  std::optional<ApiError> SubmitWaiting();
  void EndChoices();
  asio::awaitable<Next> SendStream(ResponseWriter* writer);
  asio::awaitable<Next> SendWhole(ResponseWriter* writer);
  asio::awaitable<Next> StreamResidency();
  asio::awaitable<bool> Write(std::string_view bytes);
  asio::awaitable<void> WatchForDisconnect(std::shared_ptr<Exchange> exchange);
  asio::awaitable<void> Linger();

  std::string HandleEvents(ResponseWriter* writer, std::optional<ApiError>* error);
  void NoteEvent(uint32_t choice, const GenerationEvent& event);
  void NoteTime(uint32_t choice, GenerationEvent::Kind kind);
  HttpResponse StreamHead() const;
  HttpResponse Refusal(const ApiError& error) const {
    return ErrorResponse(error, ErrorShapeOfPath(head_.path()));
  }
  ApiError ErrorOf(const GenerationEvent& finished) const;
  WireOptions Wire() const;
  int RetryAfterSeconds() const;
  bool ClientIsGone();

  std::shared_ptr<ServerState> state_;
  beast::tcp_stream stream_;
  asio::steady_timer watch_pause_;
  beast::flat_buffer buffer_;
  RequestHead head_;
  bool keep_alive_ = false;  // what the client wants
  bool idle_ = true;
  std::shared_ptr<Exchange> exchange_;
  // Of the request that generates:
  SlotReport slot_;
  std::string prompt_field_;
  uint32_t choice_count_ = 0, choices_running_ = 0;
  std::chrono::steady_clock::time_point began_;
  std::vector<std::optional<std::chrono::steady_clock::time_point>> last_token_;  // by choice
  std::deque<GenerationRequest> waiting_;  // the last choices, which have not been submitted yet
};

}  // namespace moraine
