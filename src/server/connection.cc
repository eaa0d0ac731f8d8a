#include "server/connection.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cmath>
#include <deque>
#include <exception>
#include <optional>

#include "base/log.h"
#include "server/api_response.h"
#include "server/exchange.h"

namespace moraine {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kUse = asio::as_tuple(asio::use_awaitable);
// Below this a body's memory does not matter.
constexpr uint64_t kLargeBodyBytes = 1 << 20;
// A client that is still sending when we refuse it would get a reset, which destroys the answer before
// it is read: so what it sends is thrown away for a while.
constexpr std::chrono::seconds kLingerTime{2};
// One writev's worth; Node reads 64 KiB at a time.
constexpr size_t kReadBytes = 64 * 1024;
// What an idle connection holds ready: most heads.
constexpr size_t kIdleReadBytes = 2048;
constexpr std::chrono::hours kForever{24 * 365};

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

// Runs on a worker thread. Takes all by pointer: the awaiting coroutine keeps them.
asio::awaitable<void> PrepareOnWorker(const ApiHandler* handler, Route route, const std::string* body,
                                      PreparedRequest* prepared) {
  *prepared = handler->Prepare(route, *body);
  co_return;
}

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

bool TcpConnection::ClientIsGone() {
  // POLLRDHUP: the client has sent FIN, even with unread bytes before it. A client that only closes its
  // sending half is taken as gone: no client of this API does that, and proxies mean the end by it.
  pollfd descriptor{stream_.socket().native_handle(), POLLRDHUP, 0};
  return ::poll(&descriptor, 1, 0) > 0 &&
         (descriptor.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

asio::awaitable<void> TcpConnection::WatchForDisconnect(std::shared_ptr<Exchange> exchange) {
  const auto self = shared_from_this();
  while (exchange_ == exchange) {
    const auto [ec] = co_await stream_.socket().async_wait(asio::ip::tcp::socket::wait_read, kUse);
    if (exchange_ != exchange) break;
    if (ec || ClientIsGone()) {
      LOG_INFO("{}: the client is gone, cancelled", slot_.id);
      exchange->Disconnect();
      break;
    }
    // The client has sent its next request already; the socket stays readable until that is read.
    watch_pause_.expires_after(options().disconnect_poll_interval);
    co_await watch_pause_.async_wait(kUse);
  }
}

asio::awaitable<TcpConnection::Next> TcpConnection::Generate(Route route, std::string body,
                                                             LargeBodyHold hold) {
  const auto executor = stream_.get_executor();
  PreparedRequest prepared;
  co_await asio::co_spawn(*state_->workers,
                          PrepareOnWorker(state_->handler, route, &body, &prepared),
                          asio::use_awaitable);
  body = std::string();
  hold = LargeBodyHold();
  if (prepared.answer) co_return co_await Respond(std::move(*prepared.answer));
  if (auto error = Submit(&prepared)) co_return co_await Respond(Refusal(*error));

  asio::co_spawn(executor, WatchForDisconnect(exchange_), asio::detached);
  ResponseWriter* writer = prepared.writer.get();
  Next next = Next::kClose;
  if (writer->streams()) {
    next = co_await SendStream(writer);
  } else {
    next = co_await SendWhole(writer);
  }
  EndChoices();
  // Ends the watcher: nothing else is under way on this socket.
  error_code ignored;
  stream_.socket().cancel(ignored);
  watch_pause_.cancel();
  co_return next;
}

// The first choice is accepted, or the request is refused. Others that find the queue full follow when one
// before them ends.
std::optional<ApiError> TcpConnection::Submit(PreparedRequest* prepared) {
  began_ = std::chrono::steady_clock::now();
  last_token_.assign(prepared->generations.size(), std::nullopt);
  waiting_.assign(std::move_iterator(prepared->generations.begin()),
                  std::move_iterator(prepared->generations.end()));
  choice_count_ = static_cast<uint32_t>(waiting_.size());
  choices_running_ = 0;
  prompt_field_ = prepared->prompt_field;
  slot_ = SlotReport();
  slot_.id = prepared->id;
  slot_.state = "queued";
  exchange_ = std::make_shared<Exchange>(
      stream_.get_executor(), choice_count_, [state = state_, began = began_] {
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        state->mean_generation_s = 0.8 * state->mean_generation_s + 0.2 * took.count();
      });
  std::optional<ApiError> error = SubmitWaiting();
  if (error) EndChoices();
  return error;
}

std::optional<ApiError> TcpConnection::SubmitWaiting() {
  while (!waiting_.empty()) {
    GenerationRequest generation = waiting_.front();  // a copy: a refusal must not lose it
    generation.on_event =
        exchange_->Listener(choice_count_ - static_cast<uint32_t>(waiting_.size()));
    Result<std::function<void()>> submitted =
        state_->draining ? FailedPrecondition("the server is shutting down")
                         : state_->handler->service().Submit(std::move(generation));
    if (!submitted.ok()) {
      const bool full = submitted.status().code() == StatusCode::kResourceExhausted;
      if (full && choices_running_ > 0) return std::nullopt;
      return ErrorOfSubmit(submitted.status(), prompt_field_, RetryAfterSeconds());
    }
    exchange_->Submitted(std::move(*submitted));
    waiting_.pop_front();
    ++choices_running_;
  }
  return std::nullopt;
}

// Whatever has not finished never will.
void TcpConnection::EndChoices() {
  const auto exchange = std::exchange(exchange_, nullptr);
  exchange->Abandon(static_cast<uint32_t>(waiting_.size()));
  waiting_.clear();
  exchange->Cancel();
}

ApiError TcpConnection::ErrorOf(const GenerationEvent& finished) const {
  if (finished.finish_reason == FinishReason::kError) return ErrorOfGeneration(finished.error);
  // The client is there, so it was not the one who cancelled.
  return ErrorOfSubmit(FailedPrecondition("the server is shutting down"), "", 0);
}

bool EndsInError(const GenerationEvent& event) {
  return event.kind == GenerationEvent::Kind::kFinished &&
         (event.finish_reason == FinishReason::kError ||
          event.finish_reason == FinishReason::kCancelled);
}

void TcpConnection::NoteTime(uint32_t choice, GenerationEvent::Kind kind) {
  RequestMetrics& metrics = state_->handler->request_metrics();
  const auto now = std::chrono::steady_clock::now();
  if (kind == GenerationEvent::Kind::kFinished) metrics.NoteEnd(now - began_);
  if (kind != GenerationEvent::Kind::kToken) return;
  auto& last = last_token_[choice];
  if (last) {
    metrics.NoteNextToken(now - *last);
  } else {
    metrics.NoteFirstToken(now - began_);
  }
  last = now;
}

void TcpConnection::NoteEvent(uint32_t choice, const GenerationEvent& event) {
  NoteTime(choice, event.kind);
  switch (event.kind) {
    case GenerationEvent::Kind::kStarted:
      slot_.prompt_tokens = event.timings.prompt_tokens;
      slot_.state = "prefill";
      break;
    case GenerationEvent::Kind::kPrefillProgress:
      slot_.prompt_tokens = event.timings.prompt_tokens;
      slot_.prefilled_tokens = event.prefilled_tokens;
      break;
    case GenerationEvent::Kind::kToken:
      slot_.prefilled_tokens = slot_.prompt_tokens;
      slot_.state = "decode";
      ++slot_.generated_tokens;
      break;
    case GenerationEvent::Kind::kFinished: break;
  }
}

// Turns all waiting events into text of the stream, up to the first that is an error.
std::string TcpConnection::HandleEvents(ResponseWriter* writer, std::optional<ApiError>* error) {
  std::string text;
  while (exchange_->has_events()) {
    const Exchange::Event next = exchange_->Take();
    if (EndsInError(next.event)) {
      NoteTime(next.choice, next.event.kind);
      *error = ErrorOf(next.event);
      return text;
    }
    NoteEvent(next.choice, next.event);
    text += writer->Handle(next.choice, next.event);
    if (next.event.kind == GenerationEvent::Kind::kFinished) {
      --choices_running_;
      if ((*error = SubmitWaiting())) return text;
    }
  }
  return text;
}

HttpResponse TcpConnection::StreamHead() const {
  HttpResponse response;
  response.content_type = "text/event-stream; charset=utf-8";
  response.fields.push_back({"cache-control", "no-cache"});
  response.fields.push_back({"x-accel-buffering", "no"});  // nginx would hold the events back
  response.fields.push_back({"x-request-id", slot_.id});
  return response;
}

// The head goes out on admission (kStarted), or with the first ping while the request still waits in the
// queue: until then a failure gets its real status.
asio::awaitable<TcpConnection::Next> TcpConnection::SendStream(ResponseWriter* writer) {
  const WireOptions wire = Wire();
  const bool chunked = !head_.http_1_0;
  bool head_sent = false;
  for (;;) {
    const Exchange::Wake wake = co_await exchange_->Next(options().ping_interval);
    if (wake == Exchange::Wake::kDisconnected) co_return Next::kClose;
    std::string text;
    std::optional<ApiError> error;
    if (wake == Exchange::Wake::kTimeout) {
      text = StreamPing(slot_.prefilled_tokens, slot_.prompt_tokens);
    } else {
      text = HandleEvents(writer, &error);
    }
    const bool finished = error || writer->done();
    if (error && !head_sent && text.empty()) {
      co_return co_await Respond(Refusal(*error));
    }
    if (error) {
      // A real status is logged by Finalize; this one's 200 went out long ago.
      LOG_WARN("{}: the stream ends with an error: {}", slot_.id, error->message);
      text += writer->StreamError(*error);
    }
    std::string bytes;
    if (!head_sent) {
      HttpResponse response = StreamHead();
      state_->handler->Finalize(head_, &response);
      bytes = SerializeStreamHead(response, {.keep_alive = wire.keep_alive && chunked && !error,
                                             .unix_time_s = wire.unix_time_s},
                                  chunked);
      head_sent = true;
    }
    if (!text.empty()) bytes += chunked ? FrameChunk(text) : text;
    if (finished && chunked) bytes += kLastChunk;
    if (!bytes.empty()) {
      const bool written = co_await Write(bytes);
      if (!written) co_return Next::kClose;
    }
    if (finished) {
      co_return wire.keep_alive && chunked && !error ? Next::kKeepAlive : Next::kClose;
    }
  }
}

asio::awaitable<TcpConnection::Next> TcpConnection::SendWhole(ResponseWriter* writer) {
  for (;;) {
    const Exchange::Wake wake = co_await exchange_->Next(kForever);
    if (wake == Exchange::Wake::kDisconnected) co_return Next::kClose;
    std::optional<ApiError> error;
    HandleEvents(writer, &error);
    if (error) co_return co_await Respond(Refusal(*error));
    if (!writer->done()) continue;
    HttpResponse response;
    response.body = writer->FullBody();
    response.fields.push_back({"x-request-id", slot_.id});
    co_return co_await Respond(std::move(response));
  }
}

// Until the client goes or the server drains; looked at between two frames.
asio::awaitable<TcpConnection::Next> TcpConnection::StreamResidency() {
  HttpResponse response;
  const std::unique_ptr<ResidencyStream> stream = state_->handler->OpenResidencyStream(&response);
  if (stream == nullptr || head_.method == "HEAD") co_return co_await Respond(std::move(response));
  state_->handler->Finalize(head_, &response);
  const bool chunked = !head_.http_1_0;
  std::string bytes = SerializeStreamHead(
      response, {.keep_alive = false, .unix_time_s = state_->handler->UnixTime()}, chunked);
  asio::steady_timer tick(stream_.get_executor());
  while (!state_->draining && !ClientIsGone()) {
    const std::string frame = stream->Next();
    if (!frame.empty()) bytes += chunked ? FrameChunk(frame) : frame;
    if (!bytes.empty()) {
      const bool written = co_await Write(bytes);
      if (!written) co_return Next::kClose;
      bytes.clear();
    }
    tick.expires_after(ResidencyStream::kInterval);
    co_await tick.async_wait(kUse);
  }
  if (chunked) co_await Write(kLastChunk);
  co_return Next::kClose;
}

// When a place in a full queue should be free: the running request is half done on average, but it is
// better to be late than to be refused again.
int TcpConnection::RetryAfterSeconds() const {
  return static_cast<int>(std::clamp(std::ceil(state_->mean_generation_s), 1.0, 30.0));
}

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
