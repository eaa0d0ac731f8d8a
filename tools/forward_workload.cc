#include "forward_workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <utility>

#include "engine/text_model.h"

namespace moraine {

Result<std::unique_ptr<ForwardWorkload>> ForwardWorkload::Create(
    Runner& runner, const ForwardWorkloadOptions& options) {
  std::unique_ptr<ForwardWorkload> workload(new ForwardWorkload(runner, options));
  if (!options.text.empty()) RETURN_IF_ERROR(workload->ReadText());
  return workload;
}

Status ForwardWorkload::ReadText() {
  std::ifstream stream(options_.text, std::ios::binary);
  if (!stream) return IoErrorFromErrno(options_.text, errno);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  ASSIGN_OR_RETURN(const TextModel model, TextModel::Load(runner_.store().manifest()));
  ASSIGN_OR_RETURN(text_tokens_, model.tokenizer().Encode(text));
  if (text_tokens_.size() < options_.prompt_tokens) {
    return InvalidArgument(fmt::format("{}: {} tokens, --prompt-tokens is {}", options_.text,
                                       text_tokens_.size(), options_.prompt_tokens));
  }
  return OkStatus();
}

std::vector<int32_t> ForwardWorkload::Prompt(int round) const {
  std::vector<int32_t> prompt;
  Random random(options_.seed + static_cast<uint64_t>(round));
  const size_t offset = text_tokens_.empty()
                            ? 0
                            : random.Below(text_tokens_.size() - options_.prompt_tokens + 1);
  for (uint32_t i = 0; i < options_.prompt_tokens; ++i) {
    prompt.push_back(text_tokens_.empty()
                         ? static_cast<int32_t>(random.Below(runner_.config().vocab_size))
                         : text_tokens_[offset + i]);
  }
  return prompt;
}

Status ForwardWorkload::Begin(Stream* stream, uint32_t index, int text) {
  const uint64_t seed = options_.seed + static_cast<uint64_t>(text);
  stream->state = &runner_.sequence(index);
  stream->state->Reset();
  stream->sampler = std::make_unique<Sampler>(SamplingOptions{.temperature = 1.0f, .seed = seed},
                                              runner_.config().vocab_size);
  stream->keep = [stream](uint32_t, std::span<const float> logits) {
    stream->logits.assign(logits.begin(), logits.end());
  };
  const std::vector<int32_t> prompt = Prompt(text);
  for (size_t at = 0, count = 0; at < prompt.size(); at += count) {
    count = std::min<size_t>(runner_.prefill_chunk(), prompt.size() - at);
    BatchSegment segment = {.tokens = std::span(prompt).subspan(at, count),
                            .state = stream->state,
                            .sink = &stream->keep};
    if (at + count < prompt.size()) segment.logits = LogitsMode::kNone;
    runner_.Step({&segment, 1});
    RETURN_IF_ERROR(segment.status);
  }
  return OkStatus();
}

Status ForwardWorkload::DecodeStep(std::vector<Stream>* streams) {
  std::vector<BatchSegment> batch;
  for (Stream& stream : *streams) {
    stream.token = runner_.gpu() == nullptr
                       ? stream.sampler->Sample(stream.logits)
                       : static_cast<int32_t>(random_.Below(runner_.config().vocab_size));
    batch.push_back({.tokens = {&stream.token, 1},
                     .state = stream.state,
                     .sink = &stream.keep,
                     .decode = true});
  }
  runner_.Step(batch);
  for (const BatchSegment& segment : batch) RETURN_IF_ERROR(segment.status);
  return OkStatus();
}

Status ForwardWorkload::Compute(int round, bool decode, EngineStats* before) {
  std::vector<Stream> streams(options_.batch);
  *before = runner_.Stats();
  for (uint32_t s = 0; s < streams.size(); ++s) {
    RETURN_IF_ERROR(Begin(&streams[s], s, round * static_cast<int>(options_.batch) +
                                              static_cast<int>(s)));
  }
  for (uint32_t i = 0; decode && i < options_.warm_tokens + options_.tokens; ++i) {
    if (i == options_.warm_tokens) *before = runner_.Stats();
    RETURN_IF_ERROR(DecodeStep(&streams));
  }
  return OkStatus();
}

}  // namespace moraine
