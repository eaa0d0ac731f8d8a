// ApiError: one failure as OpenAI's and Anthropic's clients understand it.
//
// Always {"error":{"message","type","param","code"}} as application/json: with any other shape OpenAI's
// clients lose type, param and code, with any other content type they return a string. /v1/messages has
// {"type":"error","error":{"type","message"}}; both APIs' clients retry 408, 409, 429 and 5xx by themselves, so what would fail again says
// `x-should-retry: false`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "server/http_message.h"

namespace moraine {

enum class ErrorShape : uint8_t { kOpenAi, kAnthropic };
// Of what is answered at this path.
ErrorShape ErrorShapeOfPath(std::string_view path);

struct ApiError {
  int http_status = 500;
  std::string message;
  std::string type;  // "invalid_request_error", "server_error", ...
  std::optional<std::string> param;
  std::optional<std::string> code;
  bool may_retry = false;
  int retry_after_s = 0;  // 0: not said

  std::string ToJson(ErrorShape shape = ErrorShape::kOpenAi) const;
};

// 400. "temperature: expected a number from 0 to 2, found the string \"warm\"".
ApiError InvalidRequest(std::string message, std::optional<std::string> param = std::nullopt);
// 400 with code "unsupported": a field that is understood and refused, rather than ignored with a
// result other than the one that was asked for.
ApiError UnsupportedField(const std::string& param, std::string_view why);
ApiError MakeApiError(int http_status, std::string_view type, std::string_view code,
                      std::string message);

// What EncodeChat and EncodeText refuse: the request's text is at fault. `param`: the field it was in.
ApiError ErrorOfEncoding(const Status& status, const std::string& param);
// What Submit refuses. `retry_after_s` is for a full queue.
ApiError ErrorOfSubmit(const Status& status, const std::string& param, int retry_after_s);
// What a generation ended with.
ApiError ErrorOfGeneration(const Status& status);

HttpResponse ErrorResponse(const ApiError& error, ErrorShape shape = ErrorShape::kOpenAi);

}  // namespace moraine
