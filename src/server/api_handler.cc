#include "server/api_handler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "base/log.h"
#include "server/api_request.h"
#include "server/api_response.h"
#include "server/generation_setup.h"
#include "server/json_fields.h"
#include "server/messages_api.h"
#include "server/responses_api.h"
#include "server/text_routes.h"

namespace moraine {
namespace {

constexpr std::string_view kModelPrefix = "/v1/models/";

Route FindRoute(std::string_view path) {
  if (path == "/health" || path == "/healthz") return Route::kHealth;
  if (path == "/metrics") return Route::kMetrics;
  if (path == "/stats") return Route::kStats;
  if (path == "/residency/stream") return Route::kResidencyStream;
  if (path == "/v1/models") return Route::kModels;
  if (path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()) return Route::kModel;
  if (path == "/v1/chat/completions") return Route::kChatCompletions;
  if (path == "/v1/completions") return Route::kCompletions;
  if (path == "/v1/responses") return Route::kResponses;
  if (path == "/v1/messages") return Route::kMessages;
  if (path == "/v1/messages/count_tokens") return Route::kCountTokens;
  if (path == "/tokenize") return Route::kTokenize;
  if (path == "/detokenize") return Route::kDetokenize;
  if (path == "/apply-template") return Route::kApplyTemplate;
  if (path == "/props") return Route::kProps;
  if (path == "/slots") return Route::kSlots;
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
    : options_(std::move(options)), access_(options_.access), page_(options_.page), service_(service) {}

bool ApiHandler::Prepares(Route route) {
  switch (route) {
    case Route::kChatCompletions:
    case Route::kCompletions:
    case Route::kResponses:
    case Route::kMessages:
    case Route::kCountTokens:
    case Route::kTokenize:
    case Route::kDetokenize:
    case Route::kApplyTemplate: return true;
    default: return false;
  }
}

std::optional<HttpResponse> ApiHandler::CheckHead(const RequestHead& head, Route* route) const {
  const ErrorShape shape = ErrorShapeOfPath(head.path());
  if (auto error = access_.CheckHost(head)) return ErrorResponse(*error, shape);
  *route = page_.Has(head.path()) ? Route::kPage : FindRoute(head.path());
  if (Administers(*route) && !options_.admin) *route = Route::kNone;
  const std::string_view methods = TakesBody(*route) ? "POST, OPTIONS" : "GET, HEAD, OPTIONS";
  if (head.method == "OPTIONS") return access_.Preflight(head, methods);
  if (*route == Route::kNone) {
    return ErrorResponse(MakeApiError(404, "invalid_request_error", "not_found",
                                      fmt::format("there is nothing at {}", head.path())),
                         shape);
  }
  if (*route != Route::kHealth && *route != Route::kPage) {  // probes have no key, nor who asks for one
    if (auto error = access_.CheckKey(head)) {
      HttpResponse response = ErrorResponse(*error, shape);
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
                     fmt::format("{} allows {}, found {}", head.path(), methods, head.method)),
        shape);
    response.fields.push_back({"allow", std::string(methods)});
    return response;
  }
  if (auto error = CheckBodyHead(head, TakesBody(*route))) return ErrorResponse(*error, shape);
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
  response.body += request_metrics_.ToPrometheus();
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

std::unique_ptr<ResidencyStream> ApiHandler::OpenResidencyStream(HttpResponse* answer) const {
  if (auto error = NotReady()) {
    *answer = ErrorResponse(*error);
    return nullptr;
  }
  auto watch = service_->residency_feed()->TryWatch(ResidencyStream::kViewerLimit);
  if (watch == nullptr) {
    ApiError error = MakeApiError(503, "server_error", "too_many_viewers",
                                  fmt::format("{} others watch already", ResidencyStream::kViewerLimit));
    error.may_retry = true;
    error.retry_after_s = 10;
    *answer = ErrorResponse(error);
    return nullptr;
  }
  answer->content_type = "application/octet-stream";
  answer->fields = {{"cache-control", "no-store"}, {"x-accel-buffering", "no"}};
  return std::make_unique<ResidencyStream>(std::move(watch));
}

HttpResponse ApiHandler::Answer(Route route, const RequestHead& head,
                                const std::vector<SlotReport>& slots) const {
  HttpResponse response;
  switch (route) {
    case Route::kHealth: return Health();
    case Route::kMetrics: return Metrics();
    case Route::kStats: return Stats(head);
    case Route::kPage: return page_.Answer(head);
    case Route::kModels:
      response.body = ModelListBody(service_->model_info());
      return response;
    case Route::kModel: {
      const std::string id = PercentDecode(head.path().substr(kModelPrefix.size()));
      if (auto error = CheckModel(id)) return ErrorResponse(*error);
      response.body = ModelBody(service_->model_info());
      return response;
    }
    case Route::kProps:
      if (auto error = NotReady()) return ErrorResponse(*error);
      response.body = PropsBody(*service_, options_.fingerprint);
      return response;
    case Route::kSlots:
      response.body = SlotsBody(slots);
      return response;
    default: break;
  }
  CHECK(false, "Answer is for routes without a body");
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

uint64_t ApiHandler::RandomId() const {
  return options_.random_bits ? options_.random_bits() : RandomBits();
}

PreparedRequest ApiHandler::Prepare(Route route, std::string_view body) const {
  PreparedRequest prepared;
  std::optional<ApiError> error = NotReady();
  if (!error) {
    HttpResponse answer;
    switch (route) {
      case Route::kTokenize: error = Tokenize(*service_, body, &answer.body); break;
      case Route::kDetokenize: error = Detokenize(*service_, body, &answer.body); break;
      case Route::kCountTokens: error = CountTokens(*service_, body, &answer.body); break;
      case Route::kApplyTemplate: error = ApplyTemplate(*service_, body, &answer.body); break;
      default: error = PrepareGeneration(route, body, &prepared);
    }
    if (!error && prepared.writer == nullptr) prepared.answer = std::move(answer);
  }
  const bool anthropic = route == Route::kMessages || route == Route::kCountTokens;
  const ErrorShape shape = anthropic ? ErrorShape::kAnthropic : ErrorShape::kOpenAi;
  if (error) prepared.answer = ErrorResponse(*error, shape);
  return prepared;
}

namespace {

// The body as it came goes to *json if the answer repeats parts of it.
std::optional<ApiError> ReadRequest(Route route, std::string_view body,
                                    const RequestDefaults& defaults, Json* json,
                                    ApiRequest* request) {
  if (route == Route::kChatCompletions) return ParseChatRequest(body, defaults, request);
  if (route == Route::kCompletions) return ParseCompletionRequest(body, defaults, request);
  if (auto error = ParseJsonBody(body, json)) return error;
  Json chat;
  if (auto error = route == Route::kResponses
                       ? TranslateResponsesRequest(*json, &chat)
                       : TranslateMessagesRequest(*json, /*counts=*/false, &chat)) {
    return error;
  }
  return ReadChatRequest(chat, defaults, request);
}

// As each API's clients know them.
const char* IdPrefix(Route route) {
  switch (route) {
    case Route::kChatCompletions: return "chatcmpl-";
    case Route::kResponses: return "resp_";
    case Route::kMessages: return "msg_";
    default: return "cmpl-";
  }
}

}  // namespace

std::optional<ApiError> ApiHandler::PrepareGeneration(Route route, std::string_view body,
                                                      PreparedRequest* prepared) const {
  RequestDefaults defaults{service_->default_sampling(), service_->model_info().vocab_size};
  defaults.sampling.seed = RandomId();
  ApiRequest request;
  Json json;
  if (auto error = ReadRequest(route, body, defaults, &json, &request)) return error;
  if (!request.model.empty()) {
    if (auto error = CheckModel(request.model)) return error;
  }
  GenerationSetup setup;
  if (auto error = SetUpGeneration(*service_, &request, [this] { return RandomId(); }, &setup)) {
    return error;
  }
  prepared->id = fmt::format("{}{:016x}", IdPrefix(route), RandomId());
  prepared->prompt_field = route == Route::kCompletions ? "prompt"
                           : route == Route::kResponses ? "input"
                                                        : "messages";
  prepared->generations = std::move(setup.generations);
  prepared->writer = MakeWriter(route, request, json, prepared->id, std::move(setup.parsers));
  prepared->writer->set_choices_per_prompt(request.choice_count);
  if (!request.parallel_tool_calls) prepared->writer->set_max_tool_calls(1);
  return std::nullopt;
}

std::unique_ptr<ResponseWriter> ApiHandler::MakeWriter(
    Route route, const ApiRequest& request, const Json& body, const std::string& id,
    std::vector<std::unique_ptr<OutputParser>> parsers) const {
  const std::string model = service_->model_info().name;
  if (route == Route::kMessages) {
    return std::make_unique<MessagesWriter>(MessagesWriterOptions{id, model, request.stream},
                                            std::move(parsers));
  }
  if (route == Route::kResponses) {
    return std::make_unique<ResponsesWriter>(
        ResponsesWriterOptions{id, UnixTime(), model, request.stream, body}, std::move(parsers));
  }
  CompletionWriterOptions options;
  options.identity = {request.kind, id, UnixTime(), model, options_.fingerprint};
  options.streams = request.stream;
  options.include_usage = request.include_usage;
  options.with_logprobs = request.top_logprobs.has_value();
  options.with_progress = request.return_progress;
  options.token_bytes = [this](int32_t token) { return service_->TokenBytes(token); };
  return std::make_unique<CompletionWriter>(std::move(options), std::move(parsers));
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
