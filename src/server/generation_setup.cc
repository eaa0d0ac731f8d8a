#include "server/generation_setup.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/constraint/token_constraint.h"
#include "server/output_format.h"
#include "server/output_grammar.h"

namespace moraine {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

// The prompt ends with <think>: some templates begin the reasoning themselves.
bool EndsInReasoning(const RenderedPrompt& prompt) {
  std::string tail;
  for (auto segment = prompt.segments.rbegin(); segment != prompt.segments.rend(); ++segment) {
    tail = segment->text + tail;
    if (tail.size() > 64) break;
  }
  const size_t last = tail.find_last_not_of(kBlanks);
  return last != std::string::npos && tail.substr(0, last + 1).ends_with(kThinkBegin);
}

struct OutputPlan {
  OutputParserOptions parser;
  bool keep_special_tokens = false;
  OutputGrammarOptions grammar;
};

std::optional<ApiError> PlanOutput(const std::string& chat_template, const ApiRequest& request,
                                   OutputPlan* plan) {
  const OutputFormat& format = FormatOfTemplate(chat_template);
  const bool has_tools = !request.tools.empty();
  if (has_tools && !format.has_tools()) {
    return UnsupportedField(
        "tools", "this model's chat template has no tools, or writes calls in an unknown format");
  }
  const bool harmony = format.arguments == OutputFormat::Arguments::kHarmony;
  plan->parser.split_reasoning = request.split_reasoning && TemplateHasReasoning(chat_template);
  if (has_tools || harmony || plan->parser.split_reasoning) plan->parser.format = &format;
  plan->parser.tools = request.tools;
  plan->grammar.format = &format;
  plan->grammar.may_reason = TemplateHasReasoning(chat_template);
  plan->keep_special_tokens = harmony || (has_tools && format.special_marks);
  return std::nullopt;
}

}  // namespace

namespace {

// Cuts off what the template writes behind the last message's text. The text is looked for where
// untrusted text is, so that no mark of the template is taken for it.
Status EndWithMessage(const std::string& message, RenderedPrompt* prompt) {
  // Templates trim: what is at the end of the text stays if it is there.
  const size_t begin = message.find_first_not_of(kBlanks);
  const size_t end = message.find_last_not_of(kBlanks) + 1;
  const std::string_view core = std::string_view(message).substr(begin, end - begin);
  const std::string_view blanks = std::string_view(message).substr(end);
  for (size_t i = prompt->segments.size(); i-- > 0;) {
    PromptSegment& segment = prompt->segments[i];
    if (segment.trusted) continue;
    const size_t at = segment.text.rfind(core);
    if (at == std::string::npos) continue;
    size_t length = at + core.size();
    if (std::string_view(segment.text).substr(length).starts_with(blanks)) length += blanks.size();
    segment.text.resize(length);
    prompt->segments.resize(i + 1);
    return OkStatus();
  }
  return Unsupported("the chat template does not repeat the last message's text, so that it cannot be "
                     "continued");
}

Result<RenderedPrompt> RenderWhole(const GenerationService& service, ApiRequest* request) {
  if (request->tool_arguments.empty()) {
    return service.RenderChat(std::move(request->template_context));
  }
  Result<RenderedPrompt> prompt = service.RenderChat(request->template_context);
  if (prompt.ok() || prompt.status().code() != StatusCode::kInvalidArgument) return prompt;
  UseArgumentText(request);
  Result<RenderedPrompt> retried = service.RenderChat(std::move(request->template_context));
  return retried.ok() ? std::move(retried) : std::move(prompt);  // the first error says more
}

Result<std::vector<int32_t>> EncodeTextPrompt(const GenerationService& service, TextPrompt prompt) {
  if (prompt.tokens) return std::move(*prompt.tokens);
  return service.EncodeText(prompt.text, {});
}

}  // namespace

Result<RenderedPrompt> RenderChatPrompt(const GenerationService& service, ApiRequest* request) {
  if (!request->continues_message) return RenderWhole(service, request);
  const std::string last = request->template_context["messages"].back()["content"];
  ASSIGN_OR_RETURN(RenderedPrompt prompt, RenderWhole(service, request));
  RETURN_IF_ERROR(EndWithMessage(last, &prompt));
  return prompt;
}

std::optional<ApiError> SetUpGeneration(const GenerationService& service, ApiRequest* request,
                                        std::function<uint64_t()> random_bits,
                                        GenerationSetup* out) {
  OutputPlan plan;
  GenerationRequest generation;
  std::vector<std::vector<int32_t>> prompts;
  if (request->kind == ApiKind::kChat) {
    if (auto error = PlanOutput(service.chat_template(), *request, &plan)) return error;
    const Result<RenderedPrompt> prompt = RenderChatPrompt(service, request);
    if (!prompt.ok()) return ErrorOfEncoding(prompt.status(), "messages");
    plan.grammar.begins_in_reasoning = plan.grammar.may_reason && EndsInReasoning(*prompt);
    plan.parser.begins_in_reasoning = plan.parser.split_reasoning && EndsInReasoning(*prompt);
    Result<std::vector<int32_t>> tokens = service.EncodePrompt(*prompt);
    if (!tokens.ok()) return ErrorOfEncoding(tokens.status(), "messages");
    prompts.push_back(std::move(*tokens));
  }
  for (TextPrompt& prompt : request->prompts) {
    Result<std::vector<int32_t>> tokens = EncodeTextPrompt(service, std::move(prompt));
    if (!tokens.ok()) return ErrorOfEncoding(tokens.status(), "prompt");
    prompts.push_back(std::move(*tokens));
  }
  if (plan.grammar.format == nullptr) plan.grammar.format = &FormatOfTemplate("");
  std::shared_ptr<const Grammar> grammar;
  if (auto error = MakeOutputGrammar(*request, plan.grammar, &grammar)) return error;
  generation.sampling = request->sampling;
  generation.max_tokens = request->max_tokens;
  generation.stop = request->stop;
  generation.ignore_eos = request->ignore_eos;
  generation.top_logprobs = request->top_logprobs;
  generation.keep_special_tokens = plan.keep_special_tokens;
  plan.parser.make_call_id = [random_bits = std::move(random_bits)] {
    return fmt::format("call_{:016x}", random_bits());
  };
  for (size_t i = 0; i < prompts.size() * request->choice_count; ++i) {
    out->generations.push_back(generation);
    out->generations.back().prompt = prompts[i / request->choice_count];
    // Choices must differ, and a request with a seed must give the same ones again.
    out->generations.back().sampling.seed = request->sampling.seed + i % request->choice_count;
    if (grammar != nullptr) {
      out->generations.back().constraint = std::make_shared<TokenConstraint>(
          grammar, service.token_trie(), service.model_info().eos_tokens);
    }
    out->parsers.push_back(MakeOutputParser(plan.parser));
  }
  return std::nullopt;
}

}  // namespace moraine
