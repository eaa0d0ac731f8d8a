#include "fake_service.h"

#include <chrono>

#include "model/constraint/token_constraint.h"

namespace moraine {
namespace {

std::vector<std::string> AnswerOf(const std::string& prompt) {
  const size_t begin = prompt.rfind("[say]");
  const size_t end = prompt.rfind("[/say]");
  if (begin == std::string::npos || end == std::string::npos) return FakeService::kAnswer;
  const bool once = prompt.find("[say-once]") != std::string::npos;
  if (once && prompt.find("\ntool: ") != std::string::npos) return FakeService::kAnswer;
  std::vector<std::string> pieces;
  int characters = 0;
  for (const char c : prompt.substr(begin + 5, end - begin - 5)) {
    const bool starts = (c & 0xC0) != 0x80;
    if (starts && characters++ % 3 == 0) pieces.emplace_back();
    pieces.back() += c;
  }
  return pieces;
}

}  // namespace

FakeService::FakeService(size_t queue_limit)
    : queue_limit_(queue_limit), thread_([this] { Run(); }) {}

FakeService::~FakeService() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    if (running_) running_->cancelled = true;
    for (const auto& job : queue_) job->cancelled = true;
    changed_.notify_all();
  }
  thread_.join();
}

bool FakeService::ready() const {
  std::lock_guard lock(mutex_);
  return ready_;
}

void FakeService::set_ready(bool ready) {
  std::lock_guard lock(mutex_);
  ready_ = ready;
}

ModelInfo FakeService::model_info() const {
  return {.name = "fake model",
          .architecture = "fake",
          .max_context = 4096,
          .max_sequences = 3,
          .vocab_size = kVocabSize,
          .eos_tokens = {},
          .created_unix = 1700000000};
}

SamplingOptions FakeService::default_sampling() const {
  SamplingOptions sampling;
  sampling.temperature = 0.5f;
  return sampling;
}

Result<std::vector<int32_t>> FakeService::EncodeText(std::string_view text,
                                                     EncodeOptions options) const {
  std::vector<int32_t> ids;
  if (options.add_special_tokens && text.starts_with("[bos]")) ids.push_back(1);
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

std::string FakeService::DecodeTokens(std::span<const int32_t> tokens) const {
  return std::string(tokens.begin(), tokens.end());
}

std::shared_ptr<const TokenTrie> FakeService::token_trie() const {
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (int byte = 0; byte < 255; ++byte) {
    tokens.emplace_back(std::string(1, static_cast<char>(byte)), byte);
  }
  return std::make_shared<const TokenTrie>(std::move(tokens), kVocabSize);
}

std::string FakeService::chat_template() const { return chat_template_; }

// Refuses arguments of tool calls that are not text if the template has "text-arguments" in it.
Result<RenderedPrompt> FakeService::RenderChat(nlohmann::ordered_json context) const {
  std::string text;
  for (const auto& tool : context.value("tools", nlohmann::ordered_json::array())) {
    text += "tool: " + tool["function"]["name"].get<std::string>() + "\n";
  }
  for (const auto& message : context["messages"]) {
    if (message["content"] == "[refuse]") return InvalidArgument("the template refuses");
    text += message["role"].get<std::string>() + ": " + message["content"].get<std::string>() + "\n";
    for (const auto& call : message.value("tool_calls", nlohmann::ordered_json::array())) {
      const auto& arguments = call["function"]["arguments"];
      const bool wants_text = chat_template_.find("text-arguments") != std::string::npos;
      if (wants_text && !arguments.is_string()) return InvalidArgument("cannot add an object");
      text += call["function"]["name"].get<std::string>() + " <- " + arguments.dump() + "\n";
    }
  }
  return RenderedPrompt{{{text, false}}};
}

Result<std::vector<int32_t>> FakeService::EncodePrompt(const RenderedPrompt& prompt) const {
  return EncodeText(prompt.text(), {.add_special_tokens = false});
}

std::string FakeService::TokenBytes(int32_t token) const {
  return token == 3 ? "\xF0\x9F" : kAnswer.at(static_cast<size_t>(token));
}

Result<std::function<void()>> FakeService::Submit(GenerationRequest request) {
  auto job = std::make_shared<Job>();
  for (const int32_t token : request.prompt) job->prompt.push_back(static_cast<char>(token));
  if (job->prompt.find("[too-long]") != std::string::npos) {
    return InvalidArgument("context length exceeded: 5000 tokens, the context has 4096");
  }
  if (request.prompt.empty()) return InvalidArgument("prompt: expected at least one token");
  std::lock_guard lock(mutex_);
  if (queue_.size() >= queue_limit_) return ResourceExhausted("the queue is full");
  job->request = request;
  last_request_ = std::move(request);
  queue_.push_back(job);
  ++counts_.submitted;
  changed_.notify_all();
  return std::function<void()>([this, job] {
    std::lock_guard cancel_lock(mutex_);
    if (!job->cancelled) ++counts_.cancel_asked;
    job->cancelled = true;
    changed_.notify_all();
  });
}

Result<RamBudgetRange> FakeService::SetRamBudget(const std::string& text) {
  if (text != "5GiB") return InvalidArgument("RAM budget '" + text + "': the minimum is 2 GiB");
  return RamBudgetRange{2ull << 30, 5ull << 30, 8ull << 30};
}

EngineStats FakeService::Stats() const {
  EngineStats stats;
  stats.model = "fake model";
  std::lock_guard lock(mutex_);
  stats.requests = static_cast<uint64_t>(counts_.finished);
  stats.requests_cancelled = static_cast<uint64_t>(counts_.cancelled);
  stats.queue_length = static_cast<uint32_t>(queue_.size());
  stats.layers.resize(2);
  return stats;
}

void FakeService::Release() {
  std::lock_guard lock(mutex_);
  released_ = true;
  changed_.notify_all();
}

FakeService::Counts FakeService::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

GenerationRequest FakeService::last_request() const {
  std::lock_guard lock(mutex_);
  return last_request_;
}

bool FakeService::WaitFor(const std::function<bool(const Counts&)>& condition) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return condition(counts_); });
}

void FakeService::Run() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      running_.reset();
      changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      running_ = queue_.front();
      queue_.pop_front();
    }
    Play(*running_);
  }
}

bool FakeService::Hold(Job& job) {
  std::unique_lock lock(mutex_);
  ++counts_.held;
  changed_.notify_all();
  changed_.wait(lock, [&] { return released_ || job.cancelled; });
  return !job.cancelled;
}

void FakeService::Finish(Job& job, FinishReason reason, GenerationEvent event) {
  event.kind = GenerationEvent::Kind::kFinished;
  event.finish_reason = reason;
  job.request.on_event(event);
  std::lock_guard lock(mutex_);
  ++counts_.finished;
  if (reason == FinishReason::kCancelled) ++counts_.cancelled;
  changed_.notify_all();
}

void FakeService::Play(Job& job) {
  const auto has = [&](const char* mark) { return job.prompt.find(mark) != std::string::npos; };
  GenerationEvent event;
  event.timings.prompt_tokens = static_cast<uint32_t>(job.request.prompt.size());
  event.timings.cached_tokens = 3;
  bool cancelled = false;
  {
    std::lock_guard lock(mutex_);
    cancelled = job.cancelled;
    if (!cancelled) ++counts_.started;
    changed_.notify_all();
  }
  if (cancelled) return Finish(job, FinishReason::kCancelled, event);
  event.kind = GenerationEvent::Kind::kStarted;
  job.request.on_event(event);
  if (has("[prefill]")) {
    GenerationEvent progress = event;
    progress.kind = GenerationEvent::Kind::kPrefillProgress;
    progress.timings.prompt_tokens = 2048;
    progress.prefilled_tokens = 512;
    job.request.on_event(progress);
    if (!Hold(job)) return Finish(job, FinishReason::kCancelled, event);
  }
  if (has("[fail-first]")) {
    event.error = Corruption("expert 7 of layer 3: checksum mismatch");
    return Finish(job, FinishReason::kError, event);
  }
  const std::vector<std::string> answer = AnswerOf(job.prompt);
  const uint32_t limit = job.request.max_tokens == 0 ? 100 : job.request.max_tokens;
  for (uint32_t i = 0; i < answer.size(); ++i) {
    if (i == limit) return Finish(job, FinishReason::kLength, event);
    if (i == 2 && has("[fail]")) {
      event.error = IoError("pack 0 at 4096: Input/output error");
      return Finish(job, FinishReason::kError, event);
    }
    GenerationEvent token;
    token.text = answer[i];
    token.token = static_cast<int32_t>(i % kAnswer.size());
    if (job.request.top_logprobs) {
      Logprobs logprobs{.chosen = -0.5f, .top = {}};
      if (*job.request.top_logprobs > 0) logprobs.top.push_back({static_cast<int32_t>(i), -0.5f});
      token.logprobs = logprobs;
    }
    if (job.request.constraint && !job.request.constraint->AcceptBytes(token.text)) {
      event.error = Internal("the constraint does not allow: " + token.text);
      return Finish(job, FinishReason::kError, event);
    }
    ++event.timings.completion_tokens;
    job.request.on_event(token);
    if (i == 0 && has("[hold]") && !Hold(job)) return Finish(job, FinishReason::kCancelled, event);
  }
  if (job.request.constraint && !job.request.constraint->can_end()) {
    event.error = Internal("the constraint does not allow the end");
    return Finish(job, FinishReason::kError, event);
  }
  Finish(job, FinishReason::kStop, event);
}

}  // namespace moraine
