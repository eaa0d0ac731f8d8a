#include <poll.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cmath>

#include "base/log.h"
#include "server/connection_impl.h"

namespace moraine {
namespace {

constexpr std::chrono::hours kForever{24 * 365};

// Runs on a worker thread. Takes all by pointer: the awaiting coroutine keeps them.
asio::awaitable<void> PrepareOnWorker(const ApiHandler* handler, Route route, const std::string* body,
                                      PreparedRequest* prepared) {
  *prepared = handler->Prepare(route, *body);
  co_return;
}

bool EndsInError(const GenerationEvent& event) {
  return event.kind == GenerationEvent::Kind::kFinished &&
         (event.finish_reason == FinishReason::kError ||
          event.finish_reason == FinishReason::kCancelled);
}

}  // namespace

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

}  // namespace moraine
