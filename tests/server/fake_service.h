// FakeService: a deterministic GenerationService for tests of the wire. A thread of its own plays one
// request after the other, with a bounded queue in front, as the engine does.
//
// One token is one byte of the prompt; the answer is kAnswer, a piece a token. Marks in the prompt
// change what happens:
//   [hold]         after the first token: waits until cancelled or released
//   [prefill]      before the first token, after reporting progress 512 of 2048: the same
//   [fail]         after two tokens: kError
//   [fail-first]   before the first token: kError
//   [too-long]     Submit refuses: context length exceeded
//   [say]TEXT[/say]  the answer is TEXT, three characters a token; with [say-once] only as long as the
//                    prompt has no message of a tool
// An answer that its request's constraint does not allow is an error.
// Tests wait for what has happened with WaitFor, never by sleeping.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "server/generation_service.h"

namespace moraine {

class FakeService final : public GenerationService {
 public:
  static inline const std::vector<std::string> kAnswer = {"Hello", ",", " wörld", "", "!"};
  static constexpr uint32_t kVocabSize = 256;

  explicit FakeService(size_t queue_limit = 2);
  ~FakeService() override;

  bool ready() const override;
  ModelInfo model_info() const override;
  SamplingOptions default_sampling() const override;
  std::string chat_template() const override;
  Result<RenderedPrompt> RenderChat(nlohmann::ordered_json context) const override;
  Result<std::vector<int32_t>> EncodePrompt(const RenderedPrompt& prompt) const override;
  Result<std::vector<int32_t>> EncodeText(std::string_view text,
                                          EncodeOptions options) const override;
  std::shared_ptr<const TokenTrie> token_trie() const override;  // a token a byte
  std::string DecodeTokens(std::span<const int32_t> tokens) const override;
  std::string TokenBytes(int32_t token) const override;
  Result<std::function<void()>> Submit(GenerationRequest request) override;
  EngineStats Stats() const override;
  // The test publishes into it what it likes.
  std::shared_ptr<ResidencyFeed> residency_feed() const override { return feed_; }
  // "5GiB" is the one budget that is accepted.
  Result<RamBudgetRange> SetRamBudget(const std::string& text) override;

  void set_ready(bool ready);
  // Before the server starts. Says which format tool calls have; not rendered.
  void set_chat_template(std::string source) { chat_template_ = std::move(source); }
  // Lets every [hold] and [prefill] of now and later go on.
  void Release();

  struct Counts {
    int submitted = 0, started = 0, held = 0, finished = 0;
    int cancel_asked = 0;  // requests for which somebody asked
    int cancelled = 0;     // requests that ended so
  };
  Counts counts() const;
  // Waits until the condition holds; false after 20 s, which fails the test.
  bool WaitFor(const std::function<bool(const Counts&)>& condition) const;
  GenerationRequest last_request() const;

 private:
  struct Job {
    GenerationRequest request;
    std::string prompt;
    bool cancelled = false;
  };

  void Run();
  void Play(Job& job);
  // Returns false if the job was cancelled.
  bool Hold(Job& job);
  void Finish(Job& job, FinishReason reason, GenerationEvent event);

  const std::shared_ptr<ResidencyFeed> feed_ = std::make_shared<ResidencyFeed>();
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool ready_ = true, released_ = false, stopping_ = false;
  size_t queue_limit_;
  std::string chat_template_ = "<think></think><tool_call></tool_call>";
  std::deque<std::shared_ptr<Job>> queue_;
  std::shared_ptr<Job> running_;
  GenerationRequest last_request_;
  Counts counts_;
  std::thread thread_;
};

}  // namespace moraine
