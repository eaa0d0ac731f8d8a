#include "server/api_handler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "base/log.h"
#include "server/json_fields.h"

namespace moraine {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

Route FindRoute(std::string_view path) {
  if (path == "/health" || path == "/healthz") return Route::kHealth;
  if (path == "/metrics") return Route::kMetrics;
  if (path == "/stats") return Route::kStats;
  if (path == "/v1/models") return Route::kModels;
  if (path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()) return Route::kModel;
  if (path == "/v1/chat/completions") return Route::kChatCompletions;
  if (path == "/v1/completions") return Route::kCompletions;
  if (path == "/admin/ram-budget") return Route::kAdminRamBudget;
  return Route::kNone;
}

bool IsJson(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  return ToLowerAscii(TrimBlanks(type)) == "application/json";
}

uint64_t RandomBits() {
  // random_device reads the kernel's generator: ids must not be guessable from earlier ones.
  thread_local std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

ApiError BadTransfer(int status, std::string message) {
  return MakeApiError(status, "invalid_request_error", "bad_request", std::move(message));
}

// What must be known of a body before it is read.
std::optional<ApiError> CheckBodyHead(const RequestHead& head, bool wants_json) {
  if (const std::string* coding = head.Find("transfer-encoding")) {
    // Anything but exactly this is how requests are smuggled past proxies.
    if (ToLowerAscii(TrimBlanks(*coding)) != "chunked") {
      return BadTransfer(501, "transfer-encoding: only chunked, found " + *coding);
    }
  }
  if (!wants_json) return std::nullopt;
  if (head.Find("content-encoding") != nullptr) {
    return BadTransfer(415, "content-encoding: only identity, found " + *head.Find("content-encoding"));
  }
  const std::string* type = head.Find("content-type");
  if (type == nullptr || !IsJson(*type)) {
    // Also what keeps other web pages out: they cannot send this type without a preflight.
    return BadTransfer(415, "content-type: expected application/json, found " +
                                (type == nullptr ? std::string("nothing") : *type));
  }
  return std::nullopt;
}

}  // namespace

ApiHandler::ApiHandler(ApiHandlerOptions options, GenerationService* service)
    : options_(std::move(options)), access_(options_.access), service_(service) {}

std::optional<HttpResponse> ApiHandler::CheckHead(const RequestHead& head, Route* route) const {
  if (auto error = access_.CheckHost(head)) return ErrorResponse(*error);
  *route = FindRoute(head.path());
  if (Administers(*route) && !options_.admin) *route = Route::kNone;
  const std::string_view methods = TakesBody(*route) ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
  if (head.method == "OPTIONS") return access_.Preflight(head, methods);
  if (*route == Route::kNone) {
    return ErrorResponse(MakeApiError(404, "invalid_request_error", "not_found",
                                      fmt::format("there is nothing at {}", head.path())));
  }
  if (*route != Route::kHealth) {  // probes have no key
    if (auto error = access_.CheckKey(head)) {
      HttpResponse response = ErrorResponse(*error);
      response.fields.push_back({"www-authenticate", "Bearer"});
      return response;
    }
  }
  if (Administers(*route)) {
    if (auto error = CheckAdmin(head)) return ErrorResponse(*error);
  }
  const bool method_ok =
      TakesBody(*route) ? head.method == "POST" : head.method == "GET" || head.method == "HEAD";
  if (!method_ok) {
    HttpResponse response = ErrorResponse(
        MakeApiError(405, "invalid_request_error", "method_not_allowed",
                     fmt::format("{} allows {}, found {}", head.path(), methods, head.method)));
    response.fields.push_back({"allow", std::string(methods)});
    return response;
  }
  if (auto error = CheckBodyHead(head, TakesBody(*route))) return ErrorResponse(*error);
  return std::nullopt;
}

std::optional<ApiError> ApiHandler::CheckAdmin(const RequestHead& head) const {
  if (head.from_loopback || !options_.access.api_key.empty()) return std::nullopt;
  return MakeApiError(403, "invalid_request_error", "not_local",
                      fmt::format("{} is for clients on this machine, as no API key is set",
                                  head.path()));
}

HttpResponse ApiHandler::Administer(Route route, std::string_view body) const {
  CHECK(Administers(route), "Administer is for administration");
  if (auto error = NotReady()) return ErrorResponse(*error);
  Json json;
  if (auto error = ParseJsonBody(body, &json)) return ErrorResponse(*error);
  FieldReader reader(json);
  std::string budget;
  reader.String("ram_budget", &budget);
  if (reader.failed()) return ErrorResponse(*reader.error());
  if (budget.empty()) {
    return ErrorResponse(InvalidRequest(
        "ram_budget: expected a size (\"8GiB\"), a percentage of the experts (\"25%\") or \"auto\"",
        "ram_budget"));
  }
  const Result<RamBudgetRange> range = service_->SetRamBudget(budget);
  if (!range.ok()) return ErrorResponse(InvalidRequest(range.status().message(), "ram_budget"));
  HttpResponse response;
  response.body = Json{{"ram_budget_bytes", range->current_bytes},
                       {"minimum_bytes", range->minimum_bytes},
                       {"maximum_bytes", range->maximum_bytes}}.dump();
  return response;
}

std::optional<ApiError> ApiHandler::NotReady() const {
  if (service_->ready()) return std::nullopt;
  ApiError error = MakeApiError(503, "server_error", "model_loading", "the model is still loading");
  error.may_retry = true;
  error.retry_after_s = 2;
  return error;
}

HttpResponse ApiHandler::Health() const {
  HttpResponse response;
  const bool ready = service_->ready();
  response.status = ready ? 200 : 503;
  response.body = fmt::format(R"({{"status":"{}"}})", ready ? "ok" : "loading");
  if (!ready) response.fields.push_back({"retry-after", "2"});
  return response;
}

HttpResponse ApiHandler::Metrics() const {
  const bool ready = service_->ready();
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  response.body = "# HELP moraine_ready 1 once the model is loaded.\n# TYPE moraine_ready gauge\n";
  response.body += fmt::format("moraine_ready {}\n", ready ? 1 : 0);
  response.body +=
      "# HELP moraine_http_responses_total HTTP responses by status.\n"
      "# TYPE moraine_http_responses_total counter\n";
  {
    std::lock_guard lock(mutex_);
    for (const auto& [status, count] : responses_by_status_) {
      response.body += fmt::format("moraine_http_responses_total{{code=\"{}\"}} {}\n", status, count);
    }
  }
  if (ready) response.body += service_->Stats().ToPrometheus();
  return response;
}

HttpResponse ApiHandler::Stats(const RequestHead& head) const {
  if (auto error = NotReady()) return ErrorResponse(*error);
  EngineStats stats = service_->Stats();
  if (head.QueryValue("layers") == "0") stats.layers.clear();
  HttpResponse response;
  response.body = stats.ToJson();
  return response;
}

HttpResponse ApiHandler::Answer(Route route, const RequestHead& head) const {
  HttpResponse response;
  switch (route) {
    case Route::kHealth: return Health();
    case Route::kMetrics: return Metrics();
    case Route::kStats: return Stats(head);
    case Route::kModels:
      response.body = ModelListBody(service_->model_info());
      return response;
    case Route::kModel: {
      const std::string id = PercentDecode(head.path().substr(kModelPrefix.size()));
      if (auto error = CheckModel(id)) return ErrorResponse(*error);
      response.body = ModelBody(service_->model_info());
      return response;
    }
    case Route::kNone:
    case Route::kAdminRamBudget:
    case Route::kChatCompletions:
    case Route::kCompletions: break;
  }
  CHECK(false, "Answer is for routes that do not generate");
  return response;
}

std::optional<ApiError> ApiHandler::CheckModel(const std::string& asked) const {
  const std::string served = service_->model_info().name;
  if (asked == served) return std::nullopt;
  ApiError error = MakeApiError(
      404, "invalid_request_error", "model_not_found",
      fmt::format("the model '{}' does not exist; this server has '{}'", asked, served));
  error.param = "model";
  return error;
}

std::optional<ApiError> ApiHandler::Prepare(Route route, std::string_view body,
                                            PreparedGeneration* prepared) const {
  if (auto error = NotReady()) return error;
  const bool chat = route == Route::kChatCompletions;
  const ModelInfo model = service_->model_info();
  const auto random_bits = options_.random_bits ? options_.random_bits : RandomBits;
  RequestDefaults defaults{service_->default_sampling(), model.vocab_size};
  defaults.sampling.seed = random_bits();

  ApiRequest& request = prepared->request;
  if (auto error = chat ? ParseChatRequest(body, defaults, &request)
                        : ParseCompletionRequest(body, defaults, &request)) {
    return error;
  }
  if (!request.model.empty()) {
    if (auto error = CheckModel(request.model)) return error;
  }
  GenerationRequest& generation = prepared->generation;
  if (request.prompt_tokens) {
    generation.prompt = std::move(*request.prompt_tokens);
  } else {
    Result<std::vector<int32_t>> prompt = chat
                                              ? service_->EncodeChat(std::move(request.template_context))
                                              : service_->EncodeText(request.prompt_text);
    if (!prompt.ok()) return ErrorOfEncoding(prompt.status(), chat ? "messages" : "prompt");
    generation.prompt = std::move(*prompt);
  }
  generation.sampling = request.sampling;
  generation.max_tokens = request.max_tokens;
  generation.stop = request.stop;
  generation.ignore_eos = request.ignore_eos;
  generation.top_logprobs = request.top_logprobs;

  CompletionIdentity& identity = prepared->identity;
  identity.kind = request.kind;
  identity.id = fmt::format("{}-{:016x}", chat ? "chatcmpl" : "cmpl", random_bits());
  identity.created_unix = UnixTime();
  identity.model = model.name;
  identity.fingerprint = options_.fingerprint;
  return std::nullopt;
}

CompletionWriter ApiHandler::MakeWriter(const PreparedGeneration& prepared) const {
  return CompletionWriter(prepared.identity, prepared.request.include_usage,
                          prepared.request.top_logprobs.has_value(),
                          [this](int32_t token) { return service_->TokenBytes(token); });
}

void ApiHandler::Finalize(const RequestHead& head, HttpResponse* response) {
  if (head.method != "OPTIONS") access_.AddCors(head, response);
  if (response->status >= 500 && response->status != 503) {
    LOG_WARN("{} {}: {} {}", head.method, head.path(), response->status, response->body);
  }
  std::lock_guard lock(mutex_);
  ++responses_by_status_[response->status];
}

int64_t ApiHandler::UnixTime() const {
  if (options_.unix_time_s) return options_.unix_time_s();
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace moraine
