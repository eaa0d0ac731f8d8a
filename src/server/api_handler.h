// ApiHandler: the server without its sockets. Routes, access, and everything that can be answered without
// generating; what generates is only prepared here (parsed, tokenized) and run by the connection.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/access.h"
#include "server/api_error.h"
#include "server/api_request.h"
#include "server/generation_service.h"
#include "server/http_message.h"
#include "server/request_metrics.h"
#include "server/residency_stream.h"
#include "server/response_writer.h"
#include "server/web_page.h"

namespace moraine {

enum class Route : uint8_t {
  kNone,
  kHealth,
  kMetrics,
  kStats,
  kResidencyStream,
  kPage,
  kModels,
  kModel,
  kChatCompletions,
  kCompletions,
  kResponses,
  kMessages,
  kCountTokens,
  kTokenize,
  kDetokenize,
  kApplyTemplate,
  kProps,
  kSlots,
  kAdminRamBudget,
};

struct ApiHandlerOptions {
  AccessOptions access;
  // POST /admin/...: for peers on this machine, and for others with the API key. Off: 404.
  bool admin = false;
  uint64_t body_limit_bytes = 64ull << 20;
  std::span<const WebAsset> page = EmbeddedWebAssets();
  std::string fingerprint = "moraine";
  // Injected by tests; null: the system's.
  std::function<int64_t()> unix_time_s;
  std::function<uint64_t()> random_bits;
};

// What became of a body: an answer, or generations that are ready to be submitted.
struct PreparedRequest {
  std::optional<HttpResponse> answer;
  std::vector<GenerationRequest> generations;  // one a choice; all but on_event
  std::unique_ptr<ResponseWriter> writer;
  std::string id;
  std::string prompt_field;  // for errors of Submit
};

// What /slots says of one request.
struct SlotReport {
  std::string id;
  std::string state;  // "queued", "prefill" or "decode"
  uint32_t prompt_tokens = 0, prefilled_tokens = 0;
  uint64_t generated_tokens = 0;
};

// Thread-safe.
class ApiHandler {
 public:
  // `service` outlives the handler.
  ApiHandler(ApiHandlerOptions options, GenerationService* service);

  // Looks at a head before its body is read. Returns the answer if that settles it (refusals, OPTIONS),
  // else the route.
  std::optional<HttpResponse> CheckHead(const RequestHead& head, Route* route) const;
  // Has a body whose work is not for the I/O thread.
  static bool Prepares(Route route);
  static bool Administers(Route route) { return route == Route::kAdminRamBudget; }
  static bool TakesBody(Route route) { return Prepares(route) || Administers(route); }

  // GET /residency/stream: what to stream; null with the answer to give instead.
  std::unique_ptr<ResidencyStream> OpenResidencyStream(HttpResponse* answer) const;
  // {"ram_budget":"6GiB"} -> the budget now, its minimum and maximum.
  HttpResponse Administer(Route route, std::string_view body) const;
  // The routes without a body; `slots` is what the connections are doing.
  HttpResponse Answer(Route route, const RequestHead& head,
                      const std::vector<SlotReport>& slots) const;
  // Parses and tokenizes: up to seconds for a body of many megabytes, so not for the I/O thread.
  PreparedRequest Prepare(Route route, std::string_view body) const;

  // Adds what every response to this request has. Counts it.
  void Finalize(const RequestHead& head, HttpResponse* response);
  int64_t UnixTime() const;
  GenerationService& service() const { return *service_; }
  RequestMetrics& request_metrics() { return request_metrics_; }

 private:
  std::optional<ApiError> NotReady() const;
  std::optional<ApiError> CheckAdmin(const RequestHead& head) const;
  std::optional<ApiError> CheckModel(const std::string& asked) const;
  std::optional<ApiError> PrepareGeneration(Route route, std::string_view body,
                                            PreparedRequest* prepared) const;
  std::unique_ptr<ResponseWriter> MakeWriter(Route route, const ApiRequest& request,
                                             const nlohmann::ordered_json& body,
                                             const std::string& id,
                                             std::vector<std::unique_ptr<OutputParser>> parsers) const;
  uint64_t RandomId() const;
  HttpResponse Health() const;
  HttpResponse Metrics() const;
  HttpResponse Stats(const RequestHead& head) const;

  ApiHandlerOptions options_;
  AccessPolicy access_;
  WebPage page_;
  GenerationService* service_;
  RequestMetrics request_metrics_;
  mutable std::mutex mutex_;
  std::map<int, uint64_t> responses_by_status_;  // guarded by mutex_
};

}  // namespace moraine
