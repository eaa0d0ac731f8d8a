// Exchange: the events of one request's generations (its choices) on their way from the service's thread
// to the coroutine that writes them.
//
// Push is posted to the I/O thread, where everything else happens too, so there is no lock. The queue
// needs no limit of its own: a generation ends at the context's length, so a client that reads nothing
// costs at most that many events until the write times out.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"

namespace moraine {

// Owned by the I/O thread, but for Listener's functions. Shared: by the coroutine, by the listener that
// the service holds until kFinished, and by the watcher of the socket.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  using Executor = boost::asio::any_io_executor;
  // `on_finished` runs on the I/O thread, exactly once: when each choice has had its kFinished or was
  // abandoned.
  Exchange(Executor executor, uint32_t choice_count, std::function<void()> on_finished);

  // What the service calls for one choice, from one thread at a time; keeps the exchange and the I/O
  // thread alive up to and including kFinished.
  std::function<void(const GenerationEvent&)> Listener(uint32_t choice);
  // Submit succeeded: `cancel` is how to stop it.
  void Submitted(std::function<void()> cancel) { cancels_.push_back(std::move(cancel)); }
  // Submit failed: no event of `count` choices will come.
  void Abandon(uint32_t count) { End(count); }

  enum class Wake : uint8_t { kEvents, kTimeout, kDisconnected };
  // Waits until there is an event or the client is gone, at most `limit`.
  boost::asio::awaitable<Wake> Next(std::chrono::nanoseconds limit);
  struct Event {
    uint32_t choice = 0;
    GenerationEvent event;
  };
  // The oldest event; only after kEvents.
  Event Take();
  bool has_events() const { return !events_.empty(); }

  // A kStarted has come.
  bool started() const { return started_; }
  void Cancel();
  // The client is gone: cancels, and wakes the coroutine.
  void Disconnect();

 private:
  void Push(Event event);
  void End(uint32_t count);

  Executor executor_;
  // Keeps the I/O thread running until the service is done with the listener.
  boost::asio::executor_work_guard<Executor> work_;
  boost::asio::steady_timer wake_;
  std::function<void()> on_finished_;
  std::vector<std::function<void()>> cancels_;
  std::deque<Event> events_;
  uint32_t unfinished_;
  bool started_ = false;
  bool disconnected_ = false;
};

}  // namespace moraine
