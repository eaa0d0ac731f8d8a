// ApiHandler: the server without its sockets. Routes, access, and everything that can be answered at
// once; what generates is only prepared here (parsed, tokenized) and run by the connection.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/access.h"
#include "server/api_error.h"
#include "server/api_request.h"
#include "server/api_response.h"
#include "server/generation_service.h"
#include "server/http_message.h"

namespace moraine {

enum class Route : uint8_t {
  kNone,
  kHealth,
  kMetrics,
  kStats,
  kModels,
  kModel,
  kChatCompletions,
  kCompletions,
  kAdminRamBudget,
};

struct ApiHandlerOptions {
  AccessOptions access;
  // POST /admin/...: for peers on this machine, and for others with the API key. Off: 404.
  bool admin = false;
  uint64_t body_limit_bytes = 64ull << 20;
  std::string fingerprint = "moraine";
  // Injected by tests; null: the system's.
  std::function<int64_t()> unix_time_s;
  std::function<uint64_t()> random_bits;
};

// A generation that is ready to be submitted.
struct PreparedGeneration {
  ApiRequest request;
  GenerationRequest generation;  // all but on_event
  CompletionIdentity identity;
};

// Thread-safe.
class ApiHandler {
 public:
  // `service` outlives the handler.
  ApiHandler(ApiHandlerOptions options, GenerationService* service);

  // Looks at a head before its body is read. Returns the answer if that settles it (refusals, OPTIONS),
  // else the route.
  std::optional<HttpResponse> CheckHead(const RequestHead& head, Route* route) const;
  static bool Generates(Route route) {
    return route == Route::kChatCompletions || route == Route::kCompletions;
  }

  static bool Administers(Route route) { return route == Route::kAdminRamBudget; }
  static bool TakesBody(Route route) { return Generates(route) || Administers(route); }

  // {"ram_budget":"6GiB"} -> the budget now, its minimum and maximum.
  HttpResponse Administer(Route route, std::string_view body) const;
  // The routes that neither generate nor administer.
  HttpResponse Answer(Route route, const RequestHead& head) const;
  // Parses and tokenizes: up to seconds for a body of many megabytes, so not for the I/O thread.
  std::optional<ApiError> Prepare(Route route, std::string_view body,
                                  PreparedGeneration* prepared) const;
  CompletionWriter MakeWriter(const PreparedGeneration& prepared) const;

  // Adds what every response to this request has. Counts it.
  void Finalize(const RequestHead& head, HttpResponse* response);
  int64_t UnixTime() const;
  GenerationService& service() const { return *service_; }

 private:
  std::optional<ApiError> NotReady() const;
  std::optional<ApiError> CheckAdmin(const RequestHead& head) const;
  std::optional<ApiError> CheckModel(const std::string& asked) const;
  HttpResponse Health() const;
  HttpResponse Metrics() const;
  HttpResponse Stats(const RequestHead& head) const;

  ApiHandlerOptions options_;
  AccessPolicy access_;
  GenerationService* service_;
  mutable std::mutex mutex_;
  std::map<int, uint64_t> responses_by_status_;  // guarded by mutex_
};

}  // namespace moraine
