#include "server/exchange.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/check.h"

namespace moraine {

namespace asio = boost::asio;

Exchange::Exchange(Executor executor, uint32_t choice_count, std::function<void()> on_finished)
    : executor_(executor),
      work_(executor),
      wake_(executor),
      on_finished_(std::move(on_finished)),
      unfinished_(choice_count) {}

std::function<void(const GenerationEvent&)> Exchange::Listener(uint32_t choice) {
  // One reference for all copies of the function, and given up with the last event: the service may
  // keep the function for longer than the I/O context exists, in which the timer must end. The event
  // carries the reference to the I/O thread, so that it is never the service's thread that ends it.
  auto held = std::make_shared<std::shared_ptr<Exchange>>(shared_from_this());
  return [held, choice](const GenerationEvent& event) {
    const bool last = event.kind == GenerationEvent::Kind::kFinished;
    std::shared_ptr<Exchange> self = last ? std::move(*held) : *held;
    CHECK(self != nullptr, "an event after the last one");
    const Executor executor = self->executor_;
    asio::post(executor, [self = std::move(self), choice, event]() mutable {
      self->Push({choice, std::move(event)});
    });
  };
}

void Exchange::Push(Event event) {
  const bool finished = event.event.kind == GenerationEvent::Kind::kFinished;
  if (event.event.kind == GenerationEvent::Kind::kStarted) started_ = true;
  events_.push_back(std::move(event));
  wake_.cancel();
  if (finished) End(1);
}

void Exchange::End(uint32_t count) {
  CHECK(count <= unfinished_, "more ends than choices");
  unfinished_ -= count;
  if (unfinished_ > 0) return;
  cancels_.clear();
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

Exchange::Event Exchange::Take() {
  CHECK(!events_.empty(), "Take without an event");
  Event event = std::move(events_.front());
  events_.pop_front();
  return event;
}

void Exchange::Cancel() {
  for (const auto& cancel : cancels_) cancel();
}

void Exchange::Disconnect() {
  disconnected_ = true;
  Cancel();
  wake_.cancel();
}

}  // namespace moraine
