#include "server/access.h"

#include <arpa/inet.h>

#include <algorithm>

namespace moraine {
namespace {

bool IsIpLiteral(std::string_view name) {
  unsigned char bytes[sizeof(in6_addr)];
  const std::string text(name);
  return inet_pton(AF_INET, text.c_str(), bytes) == 1 || inet_pton(AF_INET6, text.c_str(), bytes) == 1;
}

bool IsLoopbackName(std::string_view name) {
  // RFC 6761: everything under localhost is loopback.
  if (name == "localhost" || name.ends_with(".localhost") || name == "::1") return true;
  return name.starts_with("127.") && IsIpLiteral(name);
}

bool IsWildcard(std::string_view address) { return address == "0.0.0.0" || address == "::"; }

// "name:port", "[v6]:port" -> lower-case name without brackets; nothing if it is malformed.
std::optional<std::string> HostName(std::string_view host) {
  host = TrimBlanks(host);
  std::string_view name = host, port;
  if (host.starts_with('[')) {
    const size_t end = host.find(']');
    if (end == std::string_view::npos) return std::nullopt;
    name = host.substr(1, end - 1);
    port = host.substr(end + 1);
  } else if (const size_t colon = host.find(':'); colon != std::string_view::npos) {
    name = host.substr(0, colon);
    port = host.substr(colon);
  }
  const bool port_ok = port.empty() || (port.starts_with(':') && port.size() <= 6 &&
                                        port.find_first_not_of("0123456789", 1) == port.npos);
  if (!port_ok || name.empty()) return std::nullopt;
  std::string lower = ToLowerAscii(name);
  if (lower.size() > 1 && lower.ends_with('.')) lower.pop_back();  // a fully qualified name
  return lower;
}

// A list of header names that may be written back into a response.
bool IsTokenList(std::string_view text) {
  return text.size() <= 4096 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '-' || c == '_' || c == ',' || c == ' ';
         });
}

}  // namespace

bool EqualInConstantTime(std::string_view secret, std::string_view presented) {
  // volatile: keeps the compiler from leaving the loop at the first difference.
  volatile unsigned char difference = secret.size() == presented.size() ? 0 : 1;
  for (size_t i = 0; i < secret.size(); ++i) {
    const char other = i < presented.size() ? presented[i] : '\0';
    difference = static_cast<unsigned char>(difference | (secret[i] ^ other));
  }
  return difference == 0;
}

AccessPolicy::AccessPolicy(AccessOptions options) : options_(std::move(options)) {
  for (std::string& host : options_.allowed_hosts) host = ToLowerAscii(host);
}

bool AccessPolicy::IsOurHost(std::string_view name) const {
  if (IsLoopbackName(name) || name == ToLowerAscii(options_.bind_address)) return true;
  // Bound to every address, any of them may be how the client reached us. A literal address cannot be
  // rebound: that attack needs a name.
  if (IsWildcard(options_.bind_address) && IsIpLiteral(name)) return true;
  const auto& allowed = options_.allowed_hosts;
  return std::find(allowed.begin(), allowed.end(), name) != allowed.end();
}

std::optional<ApiError> AccessPolicy::CheckHost(const RequestHead& head) const {
  const size_t count = head.Count("host");
  // Browsers, which the check is about, speak HTTP/1.1 at least and always send it.
  if (count == 0 && head.http_1_0) return std::nullopt;
  if (count != 1) {
    return MakeApiError(400, "invalid_request_error", "bad_host",
                        "Host: expected exactly one, found " + std::to_string(count));
  }
  const std::optional<std::string> name = HostName(*head.Find("host"));
  if (!name) {
    return MakeApiError(400, "invalid_request_error", "bad_host",
                        "Host: expected NAME or NAME:PORT, found " + *head.Find("host"));
  }
  if (IsOurHost(*name)) return std::nullopt;
  return MakeApiError(403, "permission_error", "host_not_allowed",
                      "Host " + *name + " is not served here; allow it with --allowed-host");
}

std::optional<ApiError> AccessPolicy::CheckKey(const RequestHead& head) const {
  if (options_.api_key.empty()) return std::nullopt;
  std::string_view presented;
  if (const std::string* key = head.Find("x-api-key")) presented = TrimBlanks(*key);
  if (const std::string* field = head.Find("authorization")) {
    // The scheme's name is case-insensitive (RFC 9110 11.1).
    const std::string_view text = TrimBlanks(*field);
    if (ToLowerAscii(text.substr(0, 7)) == "bearer ") presented = TrimBlanks(text.substr(7));
  }
  if (EqualInConstantTime(options_.api_key, presented)) return std::nullopt;
  return MakeApiError(401, "authentication_error", "invalid_api_key",
                      presented.empty() ? "an API key is needed: Authorization: Bearer KEY"
                                        : "the API key is wrong");
}

void AccessPolicy::AddCors(const RequestHead& head, HttpResponse* response) const {
  if (options_.cors_origins.empty()) return;
  response->fields.push_back({"vary", "origin"});  // a cache must not serve it to another origin
  const std::string* origin = head.Find("origin");
  const auto& ours = options_.cors_origins;
  if (origin == nullptr || std::find(ours.begin(), ours.end(), *origin) == ours.end()) return;
  response->fields.push_back({"access-control-allow-origin", *origin});
  response->fields.push_back({"access-control-expose-headers", "x-request-id, retry-after"});
}

HttpResponse AccessPolicy::Preflight(const RequestHead& head, std::string_view allowed_methods) const {
  HttpResponse response;
  response.status = 204;
  response.content_type.clear();
  response.fields.push_back({"allow", std::string(allowed_methods)});
  AddCors(head, &response);
  const bool matched = std::any_of(
      response.fields.begin(), response.fields.end(),
      [](const HttpField& field) { return field.name == "access-control-allow-origin"; });
  if (!matched) return response;
  response.fields.push_back({"access-control-allow-methods", std::string(allowed_methods)});
  response.fields.push_back({"access-control-max-age", "600"});
  // OpenAI's client sends a dozen x-stainless-* headers, new ones with every version: all are allowed.
  const std::string* headers = head.Find("access-control-request-headers");
  if (headers != nullptr && IsTokenList(*headers)) {
    response.fields.push_back({"access-control-allow-headers", *headers});
  }
  return response;
}

}  // namespace moraine
