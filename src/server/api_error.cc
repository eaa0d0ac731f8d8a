#include "server/api_error.h"

#include <nlohmann/json.hpp>

namespace moraine {
namespace {

// For programs: stable, whatever the names of status codes become.
const char* CodeOf(const Status& status) {
  switch (status.code()) {
    case StatusCode::kIoError: return "io_error";
    case StatusCode::kCorruption: return "corruption";
    case StatusCode::kDeadlineExceeded: return "deadline_exceeded";
    case StatusCode::kUnsupported: return "unsupported";
    default: return "internal_error";
  }
}

// Anthropic's names, which follow the status.
const char* AnthropicType(int http_status) {
  switch (http_status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    case 503: return "overloaded_error";
    default: return http_status >= 500 ? "api_error" : "invalid_request_error";
  }
}

}  // namespace

ErrorShape ErrorShapeOfPath(std::string_view path) {
  return path.starts_with("/v1/messages") ? ErrorShape::kAnthropic : ErrorShape::kOpenAi;
}

std::string ApiError::ToJson(ErrorShape shape) const {
  nlohmann::ordered_json error;
  if (shape == ErrorShape::kAnthropic) {
    error["type"] = "error";
    error["error"]["type"] = AnthropicType(http_status);
    error["error"]["message"] = message;
    return error.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  }
  error["message"] = message;
  error["type"] = type;
  error["param"] = nullptr;
  error["code"] = nullptr;
  if (param) error["param"] = *param;
  if (code) error["code"] = *code;
  nlohmann::ordered_json body;
  body["error"] = std::move(error);
  // Messages quote what was found in requests and files: never let them make invalid JSON.
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

ApiError InvalidRequest(std::string message, std::optional<std::string> param) {
  ApiError error;
  error.http_status = 400;
  error.type = "invalid_request_error";
  error.message = std::move(message);
  error.param = std::move(param);
  return error;
}

ApiError UnsupportedField(const std::string& param, std::string_view why) {
  ApiError error = InvalidRequest(param + ": not supported: " + std::string(why), param);
  error.code = "unsupported";
  return error;
}

ApiError MakeApiError(int http_status, std::string_view type, std::string_view code,
                      std::string message) {
  ApiError error;
  error.http_status = http_status;
  error.type = type;
  error.code = code;
  error.message = std::move(message);
  return error;
}

ApiError ErrorOfEncoding(const Status& status, const std::string& param) {
  ApiError error = InvalidRequest(status.message(), param);
  if (status.code() == StatusCode::kUnsupported) error.code = "unsupported";
  return error;
}

ApiError ErrorOfSubmit(const Status& status, const std::string& param, int retry_after_s) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument: {
      if (status.message().rfind("context length exceeded", 0) != 0) {
        return InvalidRequest(status.message());
      }
      ApiError error = InvalidRequest(status.message(), param);
      error.code = "context_length_exceeded";
      return error;
    }
    case StatusCode::kResourceExhausted: {
      ApiError error = MakeApiError(429, "rate_limit_error", "queue_full", status.message());
      error.may_retry = true;
      error.retry_after_s = retry_after_s;
      return error;
    }
    case StatusCode::kFailedPrecondition: {
      ApiError error = MakeApiError(503, "server_error", "shutting_down", status.message());
      error.may_retry = true;
      return error;
    }
    default:
      return ErrorOfGeneration(status);
  }
}

ApiError ErrorOfGeneration(const Status& status) {
  ApiError error = MakeApiError(500, "server_error", CodeOf(status), status.message());
  // A drive's error or a missed deadline may pass; a corrupt record will not.
  error.may_retry =
      status.code() == StatusCode::kIoError || status.code() == StatusCode::kDeadlineExceeded;
  return error;
}

HttpResponse ErrorResponse(const ApiError& error, ErrorShape shape) {
  HttpResponse response;
  response.status = error.http_status;
  response.body = error.ToJson(shape);
  if (!error.may_retry) response.fields.push_back({"x-should-retry", "false"});
  if (error.retry_after_s > 0) {
    response.fields.push_back({"retry-after", std::to_string(error.retry_after_s)});
  }
  return response;
}

}  // namespace moraine
