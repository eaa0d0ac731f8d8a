#include "soak_cases.h"

#include <bit>
#include <fstream>
#include <future>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/check.h"

namespace moraine {
namespace {

constexpr uint32_t kTopLogprobs = 8;
constexpr uint32_t kMostTokens = 40;         // of an answer
constexpr uint32_t kShortestExcerpt = 100;   // bytes of running text
constexpr uint32_t kLongestExcerpt = 1600;

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good(), path + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

void AnswerUndisturbed(Engine& engine, SoakCase* c) {
  Answer answer;
  std::promise<GenerationEvent> finished;
  GenerationRequest request = c->Request();
  request.on_event = [&](const GenerationEvent& event) {
    if (event.kind == GenerationEvent::Kind::kToken) answer.Add(event);
    if (event.kind == GenerationEvent::Kind::kFinished) finished.set_value(event);
  };
  const auto submitted = engine.Submit(std::move(request));
  CHECK(submitted.ok(), submitted.status().message());
  const GenerationEvent last = finished.get_future().get();
  CHECK(last.error.ok(), "the undisturbed run failed: " + last.error.message());
  c->finish_reason = last.finish_reason;
  c->tokens = std::move(answer.tokens);
  c->digests = std::move(answer.digests);
  engine.RunOnEngineThread([&](Runner& runner) {
    const auto digest = PromptLogitsDigest(runner, c->prompt, nullptr);
    CHECK(digest.ok(), digest.status().message());
    c->logits_digest = *digest;
  });
}

}  // namespace

void Digest::Add(std::span<const float> values) {
  for (const float value : values) {
    value_ = (value_ ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3ull;
  }
}

void Answer::Add(const GenerationEvent& token) {
  tokens.push_back(token.token);
  digest.Add({&token.logprobs->chosen, 1});
  for (const TokenLogprob& top : token.logprobs->top) digest.Add({&top.logprob, 1});
  digests.push_back(digest.value());
}

GenerationRequest SoakCase::Request() const {
  GenerationRequest request;
  request.prompt = prompt;
  request.sampling = sampling;
  request.max_tokens = max_tokens;
  request.top_logprobs = kTopLogprobs;
  return request;
}

Result<uint64_t> PromptLogitsDigest(Runner& runner, std::span<const int32_t> prompt,
                                    Random* cuts) {
  Digest digest;
  const Runner::LogitsSink sink = [&](uint32_t, std::span<const float> logits) {
    digest.Add(logits);
  };
  runner.ResetSequence();
  while (!prompt.empty()) {
    const size_t piece = cuts == nullptr ? prompt.size() : 1 + cuts->Below(prompt.size());
    RETURN_IF_ERROR(runner.Forward(prompt.first(piece),
                                   {.logits = Runner::LogitsMode::kAll, .sink = &sink}));
    prompt = prompt.subspan(piece);
  }
  return digest.value();
}

std::vector<SoakCase> MakeSoakCases(Engine& engine, const std::string& golden_directory,
                                    uint32_t count, uint64_t seed) {
  Random random(seed);
  const auto json = [&](const char* name) {
    return nlohmann::json::parse(ReadText(golden_directory + "/" + name));
  };
  const nlohmann::json references = json("reference.json"), chats = json("chat_eval.json");
  const std::string books = ReadText(golden_directory + "/valid-books.txt");
  std::vector<SoakCase> cases(count);
  for (uint32_t i = 0; i < count; ++i) {
    SoakCase& c = cases[i];
    std::string text;
    switch (i % 3) {
      case 0:
        text = references[random.Below(references.size())].at("prompt").get<std::string>();
        break;
      case 1:
        text = chats[random.Below(chats.size())].at("question").get<std::string>();
        break;
      case 2: {
        const uint64_t length =
            kShortestExcerpt + random.Below(kLongestExcerpt - kShortestExcerpt);
        text = books.substr(random.Below(books.size() - length), length);
        break;
      }
    }
    const auto prompt = engine.text().tokenizer().Encode(text);
    CHECK(prompt.ok(), prompt.status().message());
    c.prompt = *prompt;
    const size_t most = engine.model_info().max_context - kMostTokens;
    if (c.prompt.size() > most) c.prompt.resize(most);
    if (random.Chance(0.5)) {
      c.sampling = {.temperature = 0.8f, .top_p = 0.95f, .seed = random.Next()};
    }
    c.max_tokens = 1 + static_cast<uint32_t>(random.Below(kMostTokens));
    AnswerUndisturbed(engine, &c);
  }
  return cases;
}

}  // namespace moraine
