#include "server/connection.h"

#include <fmt/format.h>

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <exception>

#include "base/log.h"
#include "server/connection_impl.h"

namespace moraine {
namespace {

// Below this a body's memory does not matter.
constexpr uint64_t kLargeBodyBytes = 1 << 20;
// A client that is still sending when we refuse it would get a reset, which destroys the answer before
// it is read: so what it sends is thrown away for a while.
constexpr std::chrono::seconds kLingerTime{2};
// One writev's worth; Node reads 64 KiB at a time.
constexpr size_t kReadBytes = 64 * 1024;
// What an idle connection holds ready: most heads.
constexpr size_t kIdleReadBytes = 2048;

RequestHead MakeHead(const http::request_parser<http::string_body>::value_type& message) {
  RequestHead head;
  head.method = std::string(message.method_string());
  head.target = std::string(message.target());
  head.http_1_0 = message.version() == 10;
  for (const auto& field : message) {
    head.fields.push_back({ToLowerAscii({field.name_string().data(), field.name_string().size()}),
                           std::string(field.value())});
  }
  return head;
}

}  // namespace

asio::awaitable<void> TcpConnection::Run() {
  const auto self = shared_from_this();
  Next next = Next::kKeepAlive;
  while (next == Next::kKeepAlive && stream_.socket().is_open()) {
    const bool more = co_await WaitForFirstByte();
    if (!more) co_return;
    if (state_->busy > options().busy_limit) {
      next = co_await RefuseBusy();
    } else {
      next = co_await ServeOne();
    }
    if (state_->draining && next == Next::kKeepAlive) next = Next::kClose;
  }
  if (next == Next::kLinger) co_await Linger();
  error_code ignored;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
}

asio::awaitable<bool> TcpConnection::WaitForFirstByte() {
  if (buffer_.size() > 0) co_return true;  // a pipelined request
  if (state_->draining) co_return false;
  SetIdle(true);
  buffer_ = beast::flat_buffer();  // what a request has made of it
  stream_.expires_after(options().idle_timeout);
  const auto [ec, count] = co_await stream_.async_read_some(buffer_.prepare(kIdleReadBytes), kUse);
  SetIdle(false);
  buffer_.commit(count);
  co_return !ec;
}

// Its head is not even parsed. Not counted while it lingers: else those who try again would keep each other out.
asio::awaitable<TcpConnection::Next> TcpConnection::RefuseBusy() {
  SetIdle(true);
  head_ = RequestHead();
  keep_alive_ = false;
  ApiError error = MakeApiError(503, "server_error", "too_many_requests",
                                fmt::format("{} requests are being read or answered",
                                            options().busy_limit));
  error.may_retry = true;
  error.retry_after_s = 1;
  HttpResponse response = Refusal(error);
  response.close = true;
  return Respond(std::move(response));
}

asio::awaitable<TcpConnection::Next> TcpConnection::ServeOne() {
  Parser parser;
  parser.header_limit(options().header_limit_bytes);
  parser.body_limit(options().api.body_limit_bytes);
  head_ = RequestHead();
  keep_alive_ = false;
  stream_.expires_after(options().header_timeout);
  const auto [ec, count] = co_await http::async_read_header(stream_, buffer_, parser, kUse);
  if (ec) co_return co_await RefuseMalformed(ec);
  head_ = MakeHead(parser.get());
  error_code gone;
  head_.from_loopback = stream_.socket().remote_endpoint(gone).address().is_loopback() && !gone;
  keep_alive_ = parser.get().keep_alive();

  Route route = Route::kNone;
  std::optional<HttpResponse> refusal = state_->handler->CheckHead(head_, &route);
  LargeBodyHold hold;
  const auto length = parser.content_length();
  const bool large = !parser.is_done() && (!length || *length > kLargeBodyBytes);
  if (!refusal && large) {
    if (state_->large_bodies >= options().large_body_limit) {
      ApiError error = MakeApiError(503, "server_error", "too_many_large_bodies",
                                    "too many large requests are being read");
      error.may_retry = true;
      error.retry_after_s = 1;
      refusal = Refusal(error);
    } else {
      hold = LargeBodyHold(state_.get());
    }
  }
  if (refusal) {
    // A small body that is refused is read, so that the connection can go on.
    if (large) refusal->close = true;
    if (!large && !parser.is_done()) {
      bool too_large = false;
      const bool complete = co_await ReadBody(&parser, &too_large);
      if (!complete) refusal->close = true;
    }
    co_return co_await Respond(std::move(*refusal));
  }

  bool too_large = false;
  const bool complete = co_await ReadBody(&parser, &too_large);
  if (too_large) co_return co_await RefuseMalformed(http::error::body_limit);
  if (!complete) co_return Next::kClose;
  if (ApiHandler::Administers(route)) {
    co_return co_await Respond(state_->handler->Administer(route, parser.get().body()));
  }
  if (route == Route::kResidencyStream) co_return co_await StreamResidency();
  if (!ApiHandler::Prepares(route)) {
    std::vector<SlotReport> slots;
    for (const Connection* connection : state_->connections) connection->AppendSlot(&slots);
    co_return co_await Respond(state_->handler->Answer(route, head_, slots));
  }
  co_return co_await Generate(route, std::move(parser.get().body()), std::move(hold));
}

asio::awaitable<TcpConnection::Next> TcpConnection::RefuseMalformed(error_code ec) {
  ApiError error = MakeApiError(400, "invalid_request_error", "malformed_http",
                                "malformed HTTP request: " + ec.message());
  if (ec == http::error::header_limit || ec == http::error::buffer_overflow) {
    error.http_status = 431;
    error.code = "header_too_large";
    error.message =
        fmt::format("the head is larger than {} bytes", options().header_limit_bytes);
  } else if (ec == http::error::body_limit) {
    error.http_status = 413;
    error.code = "body_too_large";
    error.message =
        fmt::format("the body is larger than {} bytes", options().api.body_limit_bytes);
  } else if (ec.category() != http::make_error_code(http::error::bad_method).category() ||
             ec == http::error::end_of_stream || ec == http::error::partial_message) {
    co_return Next::kClose;  // a time-out or a broken connection: nobody reads an answer
  }
  HttpResponse response = Refusal(error);
  response.close = true;
  co_return co_await Respond(std::move(response));
}

// False: the connection broke, timed out or the body is too large.
asio::awaitable<bool> TcpConnection::ReadBody(Parser* parser, bool* too_large) {
  if (parser->is_done()) co_return true;
  const std::string* expect = head_.Find("expect");
  if (expect != nullptr && ToLowerAscii(*expect) == "100-continue") {
    const bool written = co_await Write("HTTP/1.1 100 Continue\r\n\r\n");
    if (!written) co_return false;
  }
  buffer_.reserve(kReadBytes);  // else it is read in pieces of what a head needs
  stream_.expires_after(options().body_timeout);
  const auto [ec, count] = co_await http::async_read(stream_, buffer_, *parser, kUse);
  *too_large = ec == http::error::body_limit;
  co_return !ec;
}

WireOptions TcpConnection::Wire() const {
  return {.keep_alive = keep_alive_ && !state_->draining,
          .head_only = head_.method == "HEAD",
          .unix_time_s = state_->handler->UnixTime()};
}

asio::awaitable<TcpConnection::Next> TcpConnection::Respond(HttpResponse response) {
  state_->handler->Finalize(head_, &response);
  const WireOptions wire = Wire();
  const std::string bytes = SerializeResponse(response, wire);
  const bool written = co_await Write(bytes);
  if (!written) co_return Next::kClose;
  if (response.close) co_return Next::kLinger;
  co_return wire.keep_alive ? Next::kKeepAlive : Next::kClose;
}

asio::awaitable<bool> TcpConnection::Write(std::string_view bytes) {
  stream_.expires_after(options().write_timeout);
  const auto [ec, count] =
      co_await asio::async_write(stream_, asio::buffer(bytes.data(), bytes.size()), kUse);
  stream_.expires_never();
  co_return !ec;
}

asio::awaitable<void> TcpConnection::Linger() {
  error_code ignored;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kLingerTime);
  std::array<char, kReadBytes> discarded;
  for (;;) {
    const auto [ec, count] = co_await stream_.async_read_some(asio::buffer(discarded), kUse);
    if (ec) co_return;
  }
}

namespace {

asio::awaitable<void> RunConnection(std::shared_ptr<TcpConnection> connection) {
  co_await connection->Run();
}

}  // namespace

void ServeConnection(asio::ip::tcp::socket socket, std::shared_ptr<ServerState> state) {
  const auto executor = socket.get_executor();
  auto connection = std::make_shared<TcpConnection>(std::move(socket), std::move(state));
  asio::co_spawn(executor, RunConnection(std::move(connection)), [](std::exception_ptr error) {
    if (!error) return;
    try {  // out of memory, most likely: this connection is lost, the others go on
      std::rethrow_exception(error);
    } catch (const std::exception& what) {
      LOG_ERROR("connection: {}", what.what());
    }
  });
}

}  // namespace moraine
