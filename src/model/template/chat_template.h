// Chat templates: the Jinja2 dialect in which published models ship their prompt format.
//
// An interpreter of our own because a template is untrusted input (CVE-2024-34359): it runs with no
// access to anything but the context, under hard budgets of steps, depth, memory and output, and it
// tracks which bytes came from the request (prompt_segment.h), which no library offers. Behaviour is
// that of transformers: ImmutableSandboxedEnvironment(trim_blocks, lstrip_blocks, loopcontrols), its
// tojson, raise_exception, strftime_now and {% generation %}; compared case by case with
// python3-jinja2 in tests/model/template. Deviations: list and dict methods that mutate are allowed,
// integers are 64-bit, autoescape is off and there is no Markup type.
//
// Parsing costs about 1 us per tag; rendering is dominated by copying the message texts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "base/status.h"
#include "model/template/prompt_segment.h"

namespace moraine {

namespace jinja {
struct Template;
}

struct ChatTemplateOptions {
  // One step is one evaluated node, one element handled by a filter or 256 bytes of text copied. The
  // longest published template takes about 60 steps a message, so this allows some 100,000 messages
  // and stops a runaway loop within about a second.
  int64_t max_steps = 10'000'000;
  // Nesting of macro calls, blocks, expressions and data together. Bounds the C++ stack; the depth
  // test reaches it within the default 8 MiB with ASan's larger frames.
  int max_depth = 200;
  size_t max_output_bytes = size_t{64} << 20;
  // All text and containers alive at one time, temporaries included.
  size_t max_memory_bytes = size_t{512} << 20;
  // Seconds since the epoch for strftime_now, rendered as UTC; null means the system's clock.
  std::function<int64_t()> unix_time_s = nullptr;
  // Top-level context names whose text is the model's own and may contain special tokens.
  std::set<std::string> trusted_variables = {"bos_token", "eos_token", "pad_token", "unk_token",
                                             "sep_token", "cls_token", "mask_token"};
};

// Thread-safe after Parse: Render is const and keeps its state on its own stack and heap.
class ChatTemplate {
 public:
  // kInvalidArgument "chat template line N: ..." for a syntax error, kUnsupported for a Jinja feature
  // that chat templates do not use (import, extends, ...).
  static Result<ChatTemplate> Parse(std::string_view source, ChatTemplateOptions options = {});

  // `context` is an object: messages, tools, add_generation_prompt, bos_token, enable_thinking and
  // whatever else the request passes. Errors: kInvalidArgument for what the template raises or cannot
  // evaluate, kResourceExhausted when a budget ends; both name the template's line.
  Result<RenderedPrompt> Render(const nlohmann::ordered_json& context) const;

 private:
  ChatTemplate(std::shared_ptr<const jinja::Template> root, ChatTemplateOptions options);

  // Shared, not unique, so that a ChatTemplate can be copied; the tree is immutable.
  std::shared_ptr<const jinja::Template> root_;
  ChatTemplateOptions options_;
};

}  // namespace moraine
