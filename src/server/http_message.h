// What the parts of the server that know no sockets exchange with those that do: a request's head,
// a response, and the bytes of a response.
//
// Responses are written by hand instead of with Beast's serializer: it is a dozen lines, it keeps
// Beast in one translation unit (17 s of compile time), and tests can compare bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moraine {

struct HttpField {
  std::string name;  // lower case
  std::string value;
};

struct RequestHead {
  std::string method;  // as sent: methods are case-sensitive
  std::string target;  // path, and query after '?'
  bool http_1_0 = false;
  bool from_loopback = false;  // the peer's address, not what it says of itself
  std::vector<HttpField> fields;

  // The first one with this lower-case name; null if there is none.
  const std::string* Find(std::string_view name) const;
  size_t Count(std::string_view name) const;
  std::string_view path() const;
  // The value of `name` in the query, not percent-decoded; empty if absent.
  std::string_view QueryValue(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpField> fields;  // beyond those that every response has
  std::string body;
  // The connection cannot be reused: its input is not where the next request begins.
  bool close = false;
};

struct WireOptions {
  bool keep_alive = true;
  bool head_only = false;  // the answer to a HEAD request
  int64_t unix_time_s = 0;
};

std::string_view ReasonPhrase(int status);
// Head and body.
std::string SerializeResponse(const HttpResponse& response, const WireOptions& wire);
// The head of a response whose body follows piece by piece: chunked, or until the connection closes
// for a client of HTTP/1.0.
std::string SerializeStreamHead(const HttpResponse& response, const WireOptions& wire, bool chunked);
// One chunk of a chunked body; `data` is not empty, since an empty chunk is the end.
std::string FrameChunk(std::string_view data);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

// Undoes %XX; a malformed escape stays as it is.
std::string PercentDecode(std::string_view text);
// ASCII only, as HTTP wants.
std::string ToLowerAscii(std::string_view text);
std::string_view TrimBlanks(std::string_view text);

}  // namespace moraine
