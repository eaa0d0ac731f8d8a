#include "server/exchange.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/check.h"

namespace moraine {

namespace asio = boost::asio;

Exchange::Exchange(Executor executor, std::function<void()> on_finished)
    : executor_(executor),
      work_(executor),
      wake_(executor),
      on_finished_(std::move(on_finished)) {}

std::function<void(const GenerationEvent&)> Exchange::Listener() {
  return [self = shared_from_this()](const GenerationEvent& event) {
    asio::post(self->executor_, [self, event]() mutable { self->Push(std::move(event)); });
  };
}

void Exchange::Push(GenerationEvent event) {
  const bool finished = event.kind == GenerationEvent::Kind::kFinished;
  if (event.kind == GenerationEvent::Kind::kStarted) started_ = true;
  events_.push_back(std::move(event));
  wake_.cancel();
  if (finished) End();
}

void Exchange::End() {
  cancel_ = nullptr;
  if (on_finished_) std::exchange(on_finished_, nullptr)();
  work_.reset();
}

asio::awaitable<Exchange::Wake> Exchange::Next(std::chrono::nanoseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  // The timer serves as a condition variable: Push and Disconnect cancel the wait.
  while (!disconnected_ && events_.empty() && std::chrono::steady_clock::now() < deadline) {
    wake_.expires_at(deadline);
    co_await wake_.async_wait(asio::as_tuple(asio::use_awaitable));
  }
  if (disconnected_) co_return Wake::kDisconnected;
  co_return events_.empty() ? Wake::kTimeout : Wake::kEvents;
}

GenerationEvent Exchange::Take() {
  CHECK(!events_.empty(), "Take without an event");
  GenerationEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

void Exchange::Cancel() {
  if (cancel_) cancel_();
}

void Exchange::Disconnect() {
  disconnected_ = true;
  Cancel();
  wake_.cancel();
}

}  // namespace moraine
