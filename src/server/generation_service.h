// GenerationService: all that the HTTP server asks of a model.
//
// Why not the Engine itself: a server has to answer /health and /v1/models while an engine is still
// loading tens of gigabytes, so there must be something that exists before it; and the wire can be
// tested with scripted events, to the byte and without a model. tools/serve_command.cc implements this
// over Engine, tests/server/fake_service.h with a thread that plays scripts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "engine/residency_feed.h"
#include "engine/stats.h"
#include "model/template/prompt_segment.h"
#include "model/tokenizer/tokenizer.h"

namespace moraine {

class TokenTrie;  // model/constraint/token_trie.h

// Thread-safe.
class GenerationService {
 public:
  virtual ~GenerationService() = default;

  // False while loading. Never becomes false again.
  virtual bool ready() const = 0;
  // While loading: the name and the time are right, the rest may be zero.
  virtual ModelInfo model_info() const = 0;

  // The rest is called only once ready.

  virtual SamplingOptions default_sampling() const = 0;
  // The chat template's source; empty if there is none.
  virtual std::string chat_template() const = 0;
  // `context` is what a chat template gets from a request (messages and the request's own variables).
  // kInvalidArgument if the template refuses, kUnsupported if there is none.
  virtual Result<RenderedPrompt> RenderChat(nlohmann::ordered_json context) const = 0;
  // Special tokens are recognised only in the template's text, never in the messages.
  virtual Result<std::vector<int32_t>> EncodePrompt(const RenderedPrompt& prompt) const = 0;
  // A raw prompt.
  virtual Result<std::vector<int32_t>> EncodeText(std::string_view text,
                                                  EncodeOptions options) const = 0;
  // For constraints; the first call takes a while.
  virtual std::shared_ptr<const TokenTrie> token_trie() const = 0;
  virtual std::string DecodeTokens(std::span<const int32_t> tokens) const = 0;
  // The bytes a token stands for, possibly half a character.
  virtual std::string TokenBytes(int32_t token) const = 0;

  // As Engine::Submit. Returns the function that cancels: thread-safe, idempotent, may be called after
  // the end. on_event is called from the service's thread, kFinished last and exactly once unless
  // Submit fails.
  virtual Result<std::function<void()>> Submit(GenerationRequest request) = 0;

  virtual EngineStats Stats() const = 0;
  virtual std::shared_ptr<ResidencyFeed> residency_feed() const = 0;

  // What Engine::SetRamBudget accepts, as text ("6GiB", "25%"). The range after it.
  virtual Result<RamBudgetRange> SetRamBudget(const std::string& text) = 0;
};

}  // namespace moraine
