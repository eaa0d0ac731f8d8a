// Who may talk to the server: Host, Origin and API key.
//
// Host is validated because of DNS rebinding: a web page can point its own name at 127.0.0.1 and then
// talk to this server as "same origin"; the one thing it cannot do is send another Host.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/http_message.h"

namespace moraine {

struct AccessOptions {
  std::string bind_address = "127.0.0.1";
  std::vector<std::string> allowed_hosts;  // names without port, beyond the loopback ones
  std::vector<std::string> cors_origins;   // "https://example.org", compared whole
  std::string api_key;                     // empty: none is asked for
};

// Thread-safe: immutable.
class AccessPolicy {
 public:
  explicit AccessPolicy(AccessOptions options);

  // 400 for a missing, repeated or malformed Host, 403 for one that is not ours.
  std::optional<ApiError> CheckHost(const RequestHead& head) const;
  // 401 unless `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
  std::optional<ApiError> CheckKey(const RequestHead& head) const;
  // Adds the CORS headers if the request's Origin is one of ours; never more than that one origin.
  void AddCors(const RequestHead& head, HttpResponse* response) const;
  // The answer to OPTIONS; needs no key, since browsers send none.
  HttpResponse Preflight(const RequestHead& head, std::string_view allowed_methods) const;

 private:
  bool IsOurHost(std::string_view name) const;

  AccessOptions options_;
};

// Takes the same time wherever the first difference is. Leaks the secret's length, as all do.
bool EqualInConstantTime(std::string_view secret, std::string_view presented);

}  // namespace moraine
